"""Finds annotations in a tree that has no mask images: files of annotation tools, and tables of run lengths."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.annotations.documents import is_annotation, read_collection
from lungseg_ray.corpus.annotations.runs import EMPTY, LONGEST_ROW, RunLengths, cells_of, is_relative
from lungseg_ray.corpus.layouts.matching import Item, bare
from lungseg_ray.corpus.layouts.roles import Parsed, Roles, normal, read_words
from lungseg_ray.corpus.layouts.table import plain
from lungseg_ray.corpus.layouts.tree import SUFFIXES, Entry, FileTree
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
_ORGANS = ("left lung", "right lung", "heart")
_IMAGE_COLUMNS = ("imageid", "imageindex", "image", "dicomid", "path", "filename", "imagename", "file", "id", "uid")
_QUALITY = "dicercamean"
_FIRST_ROWS = 200
_LONGEST_HEADER = 1 << 16


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
    """

    items: list[Item] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    marks_nothing: bool = False
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
        _add_collection(found, tree, entry)
    if not found.items:
        for entry in tree.files:
            if entry.path.lower().endswith(_TABLES) and entry.path.count("/") <= 2:
                _add_table(found, tree, entry, settings)
        _require_one_table(tree, found.items)
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


def _add_collection(found: Annotations, tree: FileTree, entry: Entry) -> None:
    suffix = f".{entry.path.lower().rpartition('.')[2]}"
    try:
        drawings = read_collection(entry.place.read_bytes(), suffix)
    except BadFileError as error:
        if error.reason in ("unreadable", "unsupported"):
            found.doubts.append(f"The file {shown(entry.path)} is not used: {error.detail}.")
        return
    if not drawings:
        return
    names = Counter(shape.name for drawing in drawings.values() for shape in drawing.shapes)
    if not names:
        found.doubts.append(
            f"The file {shown(entry.path)} is not used: its annotations have no areas, but boxes alone or kinds that "
            "are not read. Export polygons or masks."
        )
        return
    found.structures += [name for name in names if name and name not in found.structures]
    found.items += _items(
        tree, entry, {name: drawing.model_dump_json() for name, drawing in drawings.items()}, "drawing"
    )
    found.used.add(entry.path)
    structures = ", ".join(f"{shown(name)} ({count})" for name, count in names.most_common(6))
    found.said.append(
        f"annotations: {shown(entry.path)} has shapes for {counted(len(drawings), 'image')}: {structures}"
    )


def _items(tree: FileTree, entry: Entry, entries: Mapping[str, str], kind: str) -> list[Item]:
    """Returns a mask for each image that a file annotates, in the folder that the file names."""
    beside = f"{entry.path.rpartition('/')[0]}/".lstrip("/")
    if not any(one.path.startswith(beside) and one.path.lower().endswith(SUFFIXES) for one in tree.files):
        beside = ""
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
        at = length = quotes = 0
        lines: list[bytes] = []
        for line in stream:
            lines.append(line)
            length += len(line)
            quotes += line.count(b'"')
            # A quoted cell may have line breaks, as the landmarks of CheXmask do.
            if quotes % 2 and length < LONGEST_ROW:
                continue
            text = b"".join(lines).decode("utf-8-sig" if at == 0 else "utf-8", errors="replace")
            if cells := cells_of(text, separator):
                yield _Line(at, length, cells)
            at, length, quotes, lines = at + length, 0, 0, []


@dataclass(frozen=True)
class _Columns:
    """The columns of a table of run lengths, by their numbers.

    Attributes:
        image: The column that names the image.
        runs: The columns of run lengths, each with the name of what they mark; empty if the table does not say.
        size: The columns of height and width; empty if there are none.
        quality: The column of the quality of the masks; None if there is none.
    """

    image: int
    runs: list[tuple[int, str]]
    size: list[int]
    quality: int | None

    @property
    def by_organ(self) -> bool:
        """Whether the columns name what is marked, as those of CheXmask do."""
        return bool(self.runs[0][1])

    @property
    def last(self) -> int:
        """The last of the columns."""
        return max(self.image, *(number for number, _ in self.runs), *self.size, self.quality or 0)


def _columns(header: _Line | None) -> _Columns | None:
    """Finds the columns of a table of run lengths; None if a table is something else."""
    names = [plain(cell) for cell in header.cells] if header else []
    runs = [(number, "") for number, name in enumerate(names) if name in _RUNS][:1]
    organs = [(names.index(plain(name)), name) for name in _ORGANS if plain(name) in names]
    image = next((names.index(name) for name in _IMAGE_COLUMNS if name in names), None)
    if image is None or not (runs or len(organs) > 1):
        return None
    size = [names.index(name) for name in ("height", "width") if name in names]
    return _Columns(
        image, runs or organs, size if len(size) == 2 else [], names.index(_QUALITY) if _QUALITY in names else None
    )


def _separator(place: Location) -> str:
    return "\t" if place.name.lower().endswith(".tsv") else ","


def names_runs(place: Location) -> bool:
    """Returns whether a file is a table of run lengths, of images that are elsewhere.

    Raises:
        OSError: If the file cannot be read.
    """
    return place.name.lower().endswith(_TABLES) and place.is_file() and _columns(_header(place)) is not None


def _header(place: Location) -> _Line | None:
    """Returns the first row of a table; None if it has none, or one that is too long for names of columns."""
    with translate_errors(place), place.filesystem.open_input_stream(place.path) as stream:
        first, end, _ = stream.read(_LONGEST_HEADER).partition(b"\n")
    whole = end or len(first) < _LONGEST_HEADER
    cells = cells_of(first.decode("utf-8-sig", errors="replace"), _separator(place)) if whole else []
    return _Line(0, len(first) + len(end), cells) if cells else None


def _add_table(found: Annotations, tree: FileTree, entry: Entry, settings: CorpusSettings) -> None:
    columns = _columns(_header(entry.place))
    if columns is None:
        return
    separator = _separator(entry.place)
    rows = islice(_lines(entry.place, separator), 1, None)
    first = list(islice(rows, _FIRST_ROWS))
    relative = not columns.by_organ and _is_relative(first, columns.runs[0][0], entry)
    by_image: dict[str, list[tuple[int, int]]] = defaultdict(list)
    size_of: dict[str, tuple[int, int] | None] = {}
    empty = left_out = 0
    for line in chain(first, rows):
        if len(line.cells) <= columns.last:
            continue
        name = line.cells[columns.image].strip()
        quality = 1.0 if columns.quality is None else _number(line.cells[columns.quality])
        if quality < settings.min_quality:
            left_out += 1
            continue
        by_image[name].append((line.start, line.length))
        size_of[name] = _int_size([line.cells[number] for number in columns.size])
        empty += all(line.cells[number].strip().lower() in EMPTY for number, _ in columns.runs)
    entries = {
        name: RunLengths(
            rows=places,
            cells=columns.runs,
            size=size_of[name],
            relative=relative,
            # The tables of competitions count down the columns, and that of CheXmask along the rows.
            order="rows" if columns.by_organ else "columns",
            separator=separator,
        ).model_dump_json()
        for name, places in by_image.items()
    }
    found.structures += [name for _, name in columns.runs if name and name not in found.structures]
    found.items += _items(tree, entry, entries, "runs")
    found.used.add(entry.path)
    how = "from 1, along rows" if columns.by_organ else "from the end of the run before" if relative else "from 1"
    text = f"annotations: {shown(entry.path)} has run lengths for {counted(len(entries), 'image')}, counted {how}"
    if columns.by_organ:
        text += f", of {', '.join(name for _, name in columns.runs)}"
    if empty:
        text += f"; {empty} of them mark nothing, and are kept (corpus.empty_masks)"
        found.marks_nothing = True
    if left_out:
        text += f"; {left_out} below corpus.min_quality = {settings.min_quality:g} are left out"
    found.said.append(text)


def _require_one_table(tree: FileTree, items: Sequence[Item]) -> None:
    """Raises a `UserError` if two tables annotate the same image, as those of CheXmask for two sizes of the images."""
    images = {bare(normal(entry.place.name)) for entry in tree.files if entry.path.lower().endswith(SUFFIXES)}
    tables: dict[str, str] = {}
    for item in items:
        place = item.source.uri if item.source else ""
        other = tables.setdefault(item.entry.path, place)
        if other != place and item.stem in images:
            raise UserError(
                f"{tree.name}: {other} and {place} both have run lengths for {shown(item.entry.path)}. Expected one "
                "mask for an image: name the table that is drawn on these images as a root of its own, such as "
                f"--corpus.root IMAGES --corpus.root {other}"
            )


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
    """Returns the height and width in two cells; None if there are no such cells, or no numbers in them."""
    try:
        height, width = (int(float(cell)) for cell in cells)
    except ValueError:
        return None
    return height, width
