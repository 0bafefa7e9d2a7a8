"""Tables that lie beside images and say whose they are, in which split, and what else is known of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts.labelmaps import TABLES_OF_VALUES
from lungseg_ray.corpus.layouts.listing import Listing
from lungseg_ray.corpus.layouts.matching import bare
from lungseg_ray.corpus.layouts.patients import AUTO
from lungseg_ray.corpus.layouts.roles import normal, read_words, words_of
from lungseg_ray.corpus.layouts.table import (
    TABLES,
    Column,
    UserTable,
    check_once,
    groups_of,
    patient_column,
    read_table,
    split_of,
)
from lungseg_ray.corpus.layouts.tree import SUFFIXES, Entry, FileTree
from lungseg_ray.corpus.record import SPLIT_NAMES, Record, SetAside, Split
from lungseg_ray.errors import UserError
from lungseg_ray.text import counted, named, shown

INDEXES = ("index.csv", "index.parquet", "index.tsv", "index.xlsx")
"""A table of one of these names must be right. Another table is used if it names images, and mentioned if not."""
_STEMS = ("stem", "image_id")
_ENOUGH = 0.5
"""A table is used if it names at least this share of the images."""
_DEEPEST = 4
"""Tables in more folders than this below the root are not looked at."""
_MOST_TABLES = 8
_LONGEST_LIST = 1 << 26
_MOST_WORDS = 2


@dataclass
class IndexEntry:
    """What tables say of an image; of several tables, the first that says something counts."""

    patient: str = ""
    split: Split | None = None
    groups: dict[str, str] = field(default_factory=dict)


@dataclass
class Indexes:
    """What the tables of a corpus say.

    Attributes:
        entries: What is said of each image, by image id.
        lonely: Rows that name no image.
        masks: The name of the mask that a table gives an image, as names are compared, and the path of the table; by
            image id.
        column: Whether corpus.patients names a column of one of the tables.
        said: Which tables are used, and how, for the user.
        doubts: Tables that are not used, as sentences for the user.
        named: The columns that corpus.columns names and that a table has.
    """

    entries: dict[str, IndexEntry] = field(default_factory=dict)
    lonely: list[SetAside] = field(default_factory=list)
    masks: dict[str, tuple[str, str]] = field(default_factory=dict)
    column: bool = False
    said: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    named: set[Column] = field(default_factory=set)


def read_indexes(
    tree: FileTree, settings: CorpusSettings, paths: Mapping[str, str], others: Collection[str] = ()
) -> Indexes:
    """Reads the tables that name images.

    Args:
        tree: The files of the corpus.
        settings: The settings of the corpus, of which `columns` and `patients` are used.
        paths: The path of each image, by image id.
        others: The paths of tables that are used for something else.

    Returns:
        What the tables say.

    Raises:
        UserError: If a table named `index` is wrong, or if no table has a column that corpus.columns names.
        OSError: If a table cannot be read.
    """
    found = Indexes()
    tables = [
        entry
        for entry in tree.files
        if entry.path.lower().endswith(TABLES)
        and entry.path.count("/") <= _DEEPEST
        and entry.path not in others
        and entry.path.rpartition("/")[2].lower() not in TABLES_OF_VALUES
    ]
    tables.sort(key=lambda entry: (not _is_index(entry), entry.path.count("/"), entry.path))
    lists = _split_lists(tree)
    names = _Names(paths if tables or lists else {})
    for entry in tables[:_MOST_TABLES]:
        try:
            table = read_table(entry.place)
        except UserError as error:
            if _is_index(entry):
                raise
            found.doubts.append(f"The table {shown(entry.path)} is not used: {str(error).partition(': ')[2]}")
            continue
        _add(found, entry, table, settings, names)
    missing = sorted(settings.columns.keys() - found.named)
    if tables and missing:
        raise UserError(
            f"{tree.name}: corpus.columns names {shown(settings.columns[missing[0]])} for {missing[0]}, and none of "
            f"the tables has that column: {named([entry.path for entry in tables])}."
        )
    _add_lists(found, lists, names)
    return found


def apply(listing: Listing, found: Indexes) -> Listing:
    """Adds to each record what the tables say of it.

    Args:
        listing: The listing.
        found: What the tables say.

    Returns:
        A new listing.
    """

    def told(record: Record) -> Record:
        entry = found.entries.get(record.image_id)
        if not entry:
            return record
        return replace(
            record,
            patient_id=entry.patient or record.patient_id,
            split=entry.split or record.split,
            groups={**record.groups, **entry.groups},
        )

    return replace(
        listing,
        records=[told(record) for record in listing.records],
        unlabelled=[told(record) for record in listing.unlabelled],
        set_aside=[*listing.set_aside, *found.lonely],
    )


class _Names:
    """Finds images by what a table calls them: by id, by path, by the name of the file, with or without suffix."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self.ids = paths.keys()
        self._known: dict[str, str | None] = {}
        for image_id, path in paths.items():
            parts = normal(path).split("/")
            whole = {"/".join(parts[start:]) for start in range(len(parts))}
            for name in {normal(image_id), *whole, *(bare(one) for one in whole)}:
                # A name that two images have identifies neither.
                self._known[name] = image_id if self._known.get(name, image_id) == image_id else None
        self._known |= {normal(image_id): image_id for image_id in paths}

    def find(self, value: str) -> str | None:
        """Returns the id of the image that a value names; None if none, or several."""
        if value in self.ids:
            return value
        name = _slashed(value)
        return self._known.get(name) or self._known.get(bare(name))

    def find_all(self, values: Sequence[str]) -> list[str | None]:
        """Returns the id of the image that each value of a column names; None for those that name none, or several.

        Paths may begin with folders above the root, as those of CheXpert do, if all of the column do so alike.
        """
        found = [self.find(value) for value in values]
        paths = [_slashed(value).split("/") for value in values]
        while not any(found) and len({path[0] for path in paths}) == 1 and all(len(path) > 2 for path in paths):
            paths = [path[1:] for path in paths]
            found = [self.find("/".join(path)) for path in paths]
        return found


def _slashed(value: str) -> str:
    return normal(value.replace("\\", "/").removeprefix("./"))


def _is_index(entry: Entry) -> bool:
    return entry.path in INDEXES


def _add(found: Indexes, entry: Entry, table: UserTable, settings: CorpusSettings, names: _Names) -> None:
    column = _image_column(table, names, settings, must=_is_index(entry))
    if column is None:
        found.doubts.append(
            f"The table {shown(entry.path)} is not used: none of its columns ({named(table.columns)}) names the images."
        )
        return
    ids = [row[column] for row in table.rows]
    if _is_index(entry):
        if "" in ids:
            raise UserError(f"{entry.place}: row {ids.index('') + 1} after the header has no {column}.")
        check_once(entry.place, ids, range(1, len(ids) + 1))
    patient, split = _patient_column(table, settings), _find(table, "split", settings)
    found.named |= {name for name, text in settings.columns.items() if text in table.columns}
    found.column = found.column or (patient is not None and settings.patients != AUTO)
    try:
        splits = [split_of(row, split, entry.place, number) for number, row in enumerate(table.rows, start=1)]
    except UserError as error:
        if _is_index(entry) or (split and table.has_splits(split)):
            # What is neither to train nor to validate or test is not shared out.
            raise
        found.doubts.append(f"Splits are not taken from a table: {error}")
        splits = [None] * len(table.rows)
    # A table without a column for the split may be that of a split, as train.csv is; valid_images.csv of all is not.
    images = names.find_all([row[column] for row in table.rows])
    whole = None if split else read_words(entry.place.stem).split
    if whole != "train" and len({*images} - {None}) == len(names.ids):
        whole = None
    fixed: list[str | None] = [column, patient, split, *(_usual(table, name) for name in ("patient", "mask", "image"))]
    mask = _find(table, "mask", settings)
    used = contradicted = 0
    for number, (row, image_id) in enumerate(zip(table.rows, images, strict=True), start=1):
        if image_id is None:
            if _is_index(entry):
                name = shown(row[column])
                detail = f"row {number} after the header names it; expected an image of that name, found none"
                found.lonely.append(SetAside(name, str(entry.place), "no_image", detail))
            continue
        used += 1
        if mask and row[mask].lower().endswith(SUFFIXES):
            found.masks[image_id] = bare(normal(row[mask].replace("\\", "/").rpartition("/")[2])), entry.path
        told = found.entries.setdefault(image_id, IndexEntry())
        whose, side = row[patient] if patient else "", splits[number - 1] or whole
        contradicted += bool(whose and told.patient and whose != told.patient)
        contradicted += bool(side and told.split and side != told.split)
        told.patient, told.split = told.patient or whose, told.split or side
        told.groups = {**groups_of(row, fixed), **told.groups}
    if contradicted:
        found.doubts.append(
            f"{counted(contradicted, 'row')} of the table {shown(entry.path)} give an image another patient or split "
            "than a row before did, which counts."
        )
    meanings = [
        f"{what} from its column {shown(name)}" for what, name in (("patients", patient), ("splits", split)) if name
    ]
    found.said.append(
        f"table {shown(entry.path)}: {counted(used, 'image')} by its column {shown(column)}"
        + "".join(f", {one}" for one in meanings)
        + (f", which are to {whole}" if whole else "")
        + (f"; read {table.note}" if table.note else "")
    )


def _split_lists(tree: FileTree) -> list[tuple[Entry, Split]]:
    """Returns the text files that are named by a split, such as `test_list.txt`, with that split.

    A file of train and val, such as `trainval.txt`, comes last: of what no other file names, val is taken as usual.
    """
    found: list[tuple[bool, Entry, Split]] = []
    for entry in tree.files:
        if entry.path.lower().endswith(".txt") and entry.path.count("/") <= _DEEPEST and entry.size <= _LONGEST_LIST:
            words = words_of(entry.place.stem)
            splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
            both = _is_both(entry)
            if both or len(splits) == 1:
                found.append((both, entry, "train" if both else splits.pop()))
    return [(entry, split) for _, entry, split in sorted(found, key=lambda one: one[0])][:_MOST_TABLES]


def _add_lists(found: Indexes, lists: Sequence[tuple[Entry, Split]], names: _Names) -> None:
    """Takes the splits from text files, of which nearly each line is the name of an image."""
    splits: dict[str, Split] = {}
    used: Counter[str] = Counter()
    contradicted = 0
    for entry, split in lists:
        text = entry.place.read_bytes().decode("utf-8-sig", errors="replace")
        lines = list(filter(None, map(str.strip, text.splitlines())))
        images = [_listed(line, names) for line in lines]
        there = [image_id for image_id in images if image_id]
        # A part of a set lacks images that its lists name.
        named_alike = all(bare(normal(line)) != normal(line) for line in lines)
        if not there or (
            len(there) < _ENOUGH * len(lines) and not (named_alike and len(there) >= _ENOUGH * len(names.ids))
        ):
            if there:
                found.doubts.append(f"The list {shown(entry.path)} is not used: most of its lines name no image.")
            continue
        for image_id in there:
            contradicted += splits.get(image_id, split) != split and not _is_both(entry)
            if image_id not in splits:
                splits[image_id] = split
                used[f"{shown(entry.path)} to {split}"] += 1
    if contradicted:
        found.doubts.append(f"{counted(contradicted, 'image')} are in the lists of two splits; the first list counts.")
    for image_id, split in splits.items():
        told = found.entries.setdefault(image_id, IndexEntry())
        told.split = told.split or split
    if used:
        said = ", ".join(f"{counted(count, 'image')} by {name}" for name, count in used.items())
        found.said.append(f"splits: {said}")


def _listed(line: str, names: _Names) -> str | None:
    """Returns the image that a line of a list names; beside it may be its mask, or whether a class is in it."""
    words = line.split()
    return names.find(line) or (names.find(words[0]) if len(words) <= _MOST_WORDS else None)


def _is_both(entry: Entry) -> bool:
    words = words_of(entry.place.stem)
    return "trainval" in words or {SPLIT_NAMES.get(word) for word in words} >= {"train", "val"}


def _are_names(values: Iterable[str]) -> bool:
    """Whether values of a column are more than numbers."""
    return any(not value.isdigit() for value in values if value)


def _usual(table: UserTable, column: Column) -> str | None:
    return table.find(column, {})


def _find(table: UserTable, column: Column, settings: CorpusSettings) -> str | None:
    """Finds a column as `UserTable.find`, and none if the user names one that another table has."""
    given = settings.columns.get(column)
    return table.find(column, settings.columns) if given is None or given in table.columns else None


def _patient_column(table: UserTable, settings: CorpusSettings) -> str | None:
    return _find(table, "patient", settings) if settings.patients == AUTO else patient_column(table, settings.patients)


def _image_column(table: UserTable, names: _Names, settings: CorpusSettings, *, must: bool) -> str | None:
    """Returns the column that names images: that of the usual name, or the one whose values are names of images."""
    if "image" in settings.columns:
        return _find(table, "image", settings)
    hits = {
        column: len(table.rows) - names.find_all([row[column] for row in table.rows]).count(None)
        for column in table.columns
    }
    usual = next((name for name in _STEMS if name in table.columns), None)
    if must and usual:
        return usual
    enough = _ENOUGH * min(len(names.ids), max(len(table.rows), 1))
    given = table.find("image", {})
    if given is not None and hits[given] >= enough:
        return given
    # Numbers of rows are names of images by chance; names of files are none.
    fitting = [column for column in table.columns if hits[column] >= enough]
    if fitting:
        return max(fitting, key=lambda column: (_are_names(row[column] for row in table.rows), hits[column]))
    if must:
        raise UserError(f"{table.place}: expected a column stem (or image_id), found {named(table.columns)}.")
    return None
