"""Finds annotations in a tree that has no mask images: files of annotation tools, and tables of run lengths."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.annotations.documents import is_annotation, read_collection
from lungseg_ray.corpus.annotations.runs import EMPTY, RunLengths, cells_of, is_relative
from lungseg_ray.corpus.layouts.matching import Item
from lungseg_ray.corpus.layouts.roles import Parsed, Roles, read_words
from lungseg_ray.corpus.layouts.table import plain
from lungseg_ray.corpus.layouts.tree import Entry, FileTree
from lungseg_ray.corpus.record import MaskSource, Split
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.storage import Location, translate_errors
from lungseg_ray.text import counted, shown

_MOST_BYTES = 1 << 30
_COLLECTIONS = (".json", ".xml")
_TABLES = (".csv", ".tsv")
_MOST_OPENED = 40
"""JSON and XML files, at most, that are opened to see whether they annotate many images."""
_RUNS = ("encodedpixels", "rle", "rlemask", "maskrle", "segmentationrle")
_LUNGS = ("left lung", "right lung", "heart")
_IMAGE_COLUMNS = ("imageid", "imageindex", "image", "dicomid", "path", "filename", "imagename", "file", "id", "uid")
_QUALITY = "dicercamean"
_FIRST_ROWS = 200


@dataclass
class Annotations:
    """The annotations of a tree.

    Attributes:
        items: A mask for each annotated image, named as the annotation names the image.
        used: The paths of the files with annotations.
        said: What was found, for the user.
        doubts: What the user should check, as sentences.
        marks_nothing: Whether the annotations say of some images that nothing is marked.
        structures: The names of the structures that are annotated.
        left_out: The number of annotations that do not reach the quality that is asked for.
    """

    items: list[Item] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    marks_nothing: bool = False
    left_out: int = 0
    structures: list[str] = field(default_factory=list)


def find_annotations(tree: FileTree, settings: CorpusSettings) -> Annotations:
    """Finds the annotations of a tree.

    Args:
        tree: The files of the corpus.
        settings: The settings of the corpus, of which `min_quality` is used.

    Returns:
        The annotations; without items if there are none.

    Raises:
        UserError: If a file of annotations is damaged.
        OSError: If a file cannot be read.
    """
    found = Annotations()
    roles = Roles(entry.path.rpartition("/")[0] for entry in tree.files)
    documents = [
        entry for entry in tree.files if entry.path.lower().endswith(_COLLECTIONS) and entry.size <= _MOST_BYTES
    ]
    for entry in _few(documents):
        _add_collection(found, entry)
    if not found.items:
        for entry in tree.files:
            if entry.path.lower().endswith(_TABLES) and entry.path.count("/") <= 2:
                _add_table(found, entry, settings)
    if not found.items:
        single = [entry for entry in documents if entry.path.lower().endswith(".json")]
        if single and any(is_annotation(entry.place.read_bytes()) for entry in single[:: max(len(single) // 3, 1)][:3]):
            found.items = [Item(entry, roles.parse(entry.path.rpartition("/")[0])) for entry in single]
            found.used = {entry.path for entry in single}
            found.said.append(f"annotations: {counted(len(single), 'JSON file')} of shapes, one for each image")
    return found


def _few(documents: Sequence[Entry]) -> list[Entry]:
    """Returns the files that may annotate many images: all if there are few, else the largest."""
    if len(documents) <= _MOST_OPENED:
        return list(documents)
    return sorted(documents, key=lambda entry: -entry.size)[:3]


def _add_collection(found: Annotations, entry: Entry) -> None:
    suffix = f".{entry.path.lower().rpartition('.')[2]}"
    try:
        drawings = read_collection(entry.place.read_bytes(), suffix)
    except BadFileError as error:
        if error.reason == "unreadable":
            found.doubts.append(f"The file {shown(entry.path)} is not used: {error.detail}.")
        return
    if not drawings:
        return
    names = Counter(shape.name for drawing in drawings.values() for shape in drawing.shapes)
    found.structures += [name for name in names if name and name not in found.structures]
    found.items += _items(entry, {name: drawing.model_dump_json() for name, drawing in drawings.items()}, "drawing")
    found.used.add(entry.path)
    structures = ", ".join(f"{shown(name)} ({count})" for name, count in names.most_common(6))
    found.said.append(
        f"annotations: {shown(entry.path)} has shapes for {counted(len(drawings), 'image')}: {structures}"
    )


def _items(entry: Entry, entries: Mapping[str, str], kind: str) -> list[Item]:
    """Returns a mask for each image that a file annotates, in the folder that the file names."""
    beside = f"{entry.path.rpartition('/')[0]}/".lstrip("/")
    paths = {name: name.replace("\\", "/").strip("/") for name in entries}
    # A file that names images without a folder speaks of those beside it.
    paths = {name: path if "/" in path else f"{beside}{path}" for name, path in paths.items()}
    roles = Roles(path.rpartition("/")[0] for path in paths.values())
    split = read_words(entry.place.stem).split
    items = []
    for name, path in paths.items():
        parsed = roles.parse(path.rpartition("/")[0])
        # The folders are those of the image.
        rest = tuple(part for part in path.split("/")[:-1] if read_words(part).role is None)
        source = MaskSource(entry.place.uri, entry=f"{kind}:{entries[name]}")
        told = Entry(path, entry.place, entry.size, entry.modified_ns)
        items.append(Item(told, _as_mask(parsed, rest, split), source))
    return items


def _as_mask(parsed: Parsed, rest: tuple[str, ...], split: Split | None) -> Parsed:
    return replace(parsed, role="mask", folder="", split=parsed.split or split, side=None, kind=(), rest=rest)


@dataclass(frozen=True)
class _Line:
    """A row of a table, with its place in the file."""

    start: int
    length: int
    cells: list[str]


def _lines(place: Location, separator: str) -> Iterator[_Line]:
    """Yields the rows of a table one after the other, since tables of run lengths may be larger than the memory."""
    with (
        translate_errors(place),
        place.filesystem.open_input_stream(place.path) as raw,
        io.BufferedReader(raw, 1 << 20) as stream,
    ):
        at = 0
        for data in stream:
            text = data.decode("utf-8-sig" if at == 0 else "utf-8", errors="replace")
            cells = cells_of(text, separator)
            if cells:
                yield _Line(at, len(data), cells)
            at += len(data)


def _add_table(found: Annotations, entry: Entry, settings: CorpusSettings) -> None:
    separator = "\t" if entry.path.lower().endswith(".tsv") else ","
    rows = _lines(entry.place, separator)
    header = next(rows, None)
    if header is None:
        return
    names = [plain(cell) for cell in header.cells]
    runs = next((number for number, name in enumerate(names) if name in _RUNS), None)
    organs = {name: names.index(plain(name)) for name in _LUNGS if plain(name) in names}
    image = next((names.index(name) for name in _IMAGE_COLUMNS if name in names), None)
    if image is None or (runs is None and len(organs) < 2):
        return
    cells = [(runs, "")] if runs is not None else [(number, name) for name, number in organs.items()]
    sizes = [names.index(name) for name in ("height", "width") if name in names]
    quality = names.index(_QUALITY) if _QUALITY in names else None
    first = list(islice(rows, _FIRST_ROWS))
    relative = runs is not None and _is_relative(first, runs, entry)
    by_image: dict[str, list[tuple[int, int]]] = defaultdict(list)
    size_of: dict[str, tuple[int, int] | None] = {}
    empty = 0
    needed = max(image, *(number for number, _ in cells), *sizes, quality or 0)
    for line in chain(first, rows):
        if len(line.cells) <= needed:
            continue
        name = line.cells[image].strip()
        if quality is not None and settings.min_quality and _number(line.cells[quality]) < settings.min_quality:
            found.left_out += 1
            continue
        by_image[name].append((line.start, line.length))
        size_of[name] = _int_size([line.cells[number] for number in sizes]) if len(sizes) == 2 else None
        empty += all(line.cells[number].strip().lower() in EMPTY for number, _ in cells)
    entries = {
        name: RunLengths(
            rows=places,
            cells=cells,
            size=size_of[name],
            relative=relative,
            # The tables of competitions count down the columns, and that of CheXmask along the rows.
            order="columns" if runs is not None else "rows",
            separator=separator,
        ).model_dump_json()
        for name, places in by_image.items()
    }
    found.structures += [name for _, name in cells if name and name not in found.structures]
    found.items += _items(entry, entries, "runs")
    found.used.add(entry.path)
    how = ("from the end of the run before" if relative else "from 1") if runs is not None else "from 1, along rows"
    text = f"annotations: {shown(entry.path)} has run lengths for {counted(len(entries), 'image')}, counted {how}"
    if organs and runs is None:
        text += f", of {', '.join(organs)}"
    if empty:
        text += f"; {empty} of them mark nothing, and are kept (corpus.empty_masks)"
        found.marks_nothing = True
    if found.left_out:
        text += f"; {found.left_out} below corpus.min_quality = {settings.min_quality:g} are left out"
    found.said.append(text)


def _is_relative(rows: Sequence[_Line], cell: int, entry: Entry) -> bool:
    try:
        return is_relative([row.cells[cell] for row in rows if len(row.cells) > cell])
    except BadFileError as error:
        raise UserError(f"{entry.place}: {error.detail}.") from None


def _number(cell: str) -> float:
    """Returns the number in a cell; 0 if it holds none."""
    try:
        return float(cell)
    except ValueError:
        return 0.0


def _int_size(cells: Sequence[str]) -> tuple[int, int] | None:
    try:
        height, width = (int(float(cell)) for cell in cells)
    except ValueError:
        return None
    return height, width
