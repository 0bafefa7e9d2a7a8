"""Finds out whose image each one is, where no table and no tag says so: from the names of files and folders.

All images of a patient must be in one split. Names that public sets and common tools give to patients are known here.
Where names merely look as if several images belonged together, they are kept together: to take two patients for one
does no harm to the figures, and to take one for two makes them too good.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lungseg_ray.corpus.layouts.roles import normal, read_words
from lungseg_ray.corpus.record import Record
from lungseg_ray.errors import UserError
from lungseg_ray.text import counted, shown, without_suffix

AUTO, NONE = "auto", "none"
_FEWEST_PATIENTS = 3
"""Names that would make fewer patients than this are not taken for names of patients."""
_LARGEST_SHARE = 0.5
"""A patient who would have a larger share of all images than this is not taken for one."""
_SHARE_OF_NAMES = 0.4
"""Folders are those of patients if the names of one level are at least this share of the number of folders."""
_WORD = r"(?:patients?|pat|pt|subjects?|subj|sub|persons?|pid|p)"
# Views, sides and numbers, by which several images of a patient are told apart.
_LAST = re.compile(
    r"(?:[-_ .](?:\d{1,3}|(?:19|20)\d{6}|[a-z]|ap|pa|ll|rl|lat|lateral|frontal|view\d*|img\d*|image\d*|left|right"
    r"|[tv]\d{1,2}|pre|post|baseline|follow[-_ ]?up\d*)|(?<=\d)[a-z])$"
)


@dataclass(frozen=True)
class _Names:
    """A way to name patients.

    Attributes:
        who: Who names them so, for the user.
        pattern: Finds the group `patient` in a path without suffix, ignoring capitals.
        restarts: Whether patients are numbered from 1 in each folder of a split.
    """

    who: str
    pattern: re.Pattern[str]
    restarts: bool = False

    def find(self, path: str) -> str | None:
        """Returns the patient of an image, in the form in which names are compared; None if its path has another form.

        Args:
            path: The path without suffix.
        """
        match = self.pattern.fullmatch(path)
        if not match:
            return None
        folders = path.split("/")[:-1] if self.restarts else []
        split = next((word for folder in folders if (word := read_words(folder).split)), None)
        return normal(f"{split}/{match['patient']}" if split else match["patient"])


def _names(who: str, pattern: str, *, restarts: bool = False) -> _Names:
    return _Names(who, re.compile(pattern, re.IGNORECASE | re.DOTALL), restarts)


_KNOWN = (
    _names("CheXpert", r"(?:.*/)?(?P<patient>patient\d{5,})/study\d+/[^/]*"),
    _names("MIMIC-CXR", r"(?:.*/)?p\d\d/(?P<patient>p\d{8})(?:/.*|_.*)"),
    _names("BIDS", r"(?:.*/)?(?P<patient>sub-[a-z0-9]+)(?:/.*|_[^/]*)?"),
    _names("NIH ChestX-ray14", r"(?:.*/)?(?P<patient>\d{8})_\d{3}(?:_[^/]*)?"),
    _names("PadChest, by study", r"(?:.*/)?(?P<patient>\d{20,})_[^/]*"),
    _names("Kermany et al.", r"(?:.*/)?(?P<patient>person\d+)_(?:virus|bacteria)_[^/]*", restarts=True),
    _names("Kermany et al.", r"(?:.*/)?(?P<patient>(?:normal2-)?im-\d{4})-\d{4}(?:-\d{4})?"),
    _names("TCGA", r"(?:.*/)?(?P<patient>TCGA-[a-z0-9]{2}-[a-z0-9]{4})[^/]*(?:/.*)?"),
    _names("the word before a number", rf"(?:.*/)?(?P<patient>(?:[^/]*[-_ .])?{_WORD}[-_ ]?\d+)(?:/.*|[-_ .][^/]*)?"),
)


@dataclass(frozen=True)
class Patients:
    """How the patients of a corpus were found.

    Attributes:
        patient: The patient of each image, by image id; images that are left out are patients of their own.
        said: How they were found, for the user; one line for each way.
        doubts: What the user should check, as sentences.
    """

    patient: Mapping[str, str] = field(default_factory=dict)
    said: Sequence[str] = ()
    doubts: Sequence[str] = ()


def name_patients(records: Sequence[Record], paths: Mapping[str, str], setting: str) -> tuple[list[Record], Patients]:
    """Gives patients to the records that have none, and says how they were found.

    Args:
        records: The records. One with a `patient_id` keeps it.
        paths: The path below the root of the corpus of each image, by image id, for those that have one.
        setting: The setting `corpus.patients`: "auto", "none", or a pattern with one group.

    Returns:
        The records, in the order of the input, and how the patients were found.

    Raises:
        UserError: If the setting is a pattern that does not fit the names.
    """
    stems = {record.image_id: without_suffix(paths[record.image_id]) for record in records if record.image_id in paths}
    told = {record.image_id: record.patient_id for record in records if record.patient_id}
    if setting == NONE or not stems.keys() - told.keys():
        return list(records), Patients()
    if setting != AUTO:
        found = _by_pattern({image_id: path for image_id, path in stems.items() if image_id not in told}, setting)
    elif told:
        found = _beside_table(_by_names(stems), told, len(stems))
    else:
        found = _by_names(stems)
    named = [
        replace(record, patient_id=found.patient[record.image_id]) if record.image_id in found.patient else record
        for record in records
    ]
    return named, found


def _beside_table(found: Patients, told: Mapping[str, str], images: int) -> Patients:
    """Gives the images that a table leaves out the patients that it names for others of the same name."""
    names: dict[str, Counter[str]] = defaultdict(Counter)
    for image_id, patient in told.items():
        if image_id in found.patient:
            names[found.patient[image_id]][patient] += 1
    rest = {
        image_id: names[name].most_common(1)[0][0] if name in names else name
        for image_id, name in found.patient.items()
        if image_id not in told
    }
    doubt = (
        f"A table names the patients of {len(told)} of {images} images. Those of the others are taken from names, or "
        "else each is a patient of its own. Complete the table if that is wrong."
    )
    return Patients(rest, found.said if rest else [], [doubt])


def _by_pattern(paths: Mapping[str, str], text: str) -> Patients:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserError(f"corpus.patients: {text!r} is neither a column of a table nor a pattern ({error}).") from None
    if pattern.groups != 1:
        raise UserError(
            f"corpus.patients: {text!r} is no column of a table here, and as a pattern it has {pattern.groups} groups; "
            "expected one, around what identifies the patient, such as '(\\d{8})_'."
        )
    found = {image_id: match[1] for image_id, path in paths.items() if (match := pattern.search(path)) and match[1]}
    if len(found) < len(paths):
        without = next(path for image_id, path in paths.items() if image_id not in found)
        raise UserError(
            f"corpus.patients: the pattern {text!r} fits {len(found)} of {len(paths)} images, and not "
            f"{shown(without)}. Expected one that fits all."
        )
    return Patients(found, [f"{_patients(found)} by the pattern {text!r}: {_example(found, paths)}"])


def _by_names(paths: Mapping[str, str]) -> Patients:
    patient: dict[str, str] = {}
    said: list[str] = []
    for names in _KNOWN:
        found = {
            image_id: who for image_id, path in paths.items() if image_id not in patient and (who := names.find(path))
        }
        if _plausible(found, len(paths)):
            patient |= found
            said.append(f"{_patients(found)} from the names, as {names.who}: {_example(found, paths)}")
    rest = {image_id: path for image_id, path in paths.items() if image_id not in patient}
    found, how = _by_repetition(rest)
    if found:
        text = f"{_patients(found)} from {how}: {_example(found, paths)}"
        doubt = (
            f"{how[0].upper()}{how[1:]} look as if {len(found)} images were of {len(set(found.values()))} patients, "
            "whose images are kept together. If each image is of another patient, say --corpus.patients none; if these "
            "are not the patients, give a pattern, such as --corpus.patients '([^/]+)_[^_/]*$', or a table with a "
            "column patient."
        )
        return Patients(patient | found, [*said, text], [doubt])
    return Patients(patient, said)


def _by_repetition(paths: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Groups images by the beginning of their names, or else by their folders, if that leaves several in a group."""
    stems = {image_id: path.rpartition("/") for image_id, path in paths.items()}
    by_name = {
        image_id: normal(f"{folder}/{start}" if folder else start)
        for image_id, (folder, _, stem) in stems.items()
        if (start := _beginning(stem.lower()))
    }
    if _repeats(by_name, len(paths)):
        return by_name, "the beginnings of names"
    by_folder = {image_id: normal(folder) for image_id, (folder, _, _) in stems.items() if folder}
    folders = set(by_folder.values())
    if _repeats(by_folder, len(paths)) and len(folders) > max(12, len(paths) // 40) and _name_many(folders):
        return by_folder, "folders"
    return {}, ""


def _beginning(stem: str) -> str:
    """Returns the name of a file without views, dates, visits and numbers at its end; empty if no number is left."""
    start = stem
    while (match := _LAST.search(start)) and any(letter.isdigit() for letter in start[: match.start()]):
        start = start[: match.start()]
    return start if start != stem else ""


def _name_many(folders: Collection[str]) -> bool:
    """Whether folders of one level have many names. Folders of splits, classes and kinds repeat a few names instead."""
    levels: dict[int, set[str]] = defaultdict(set)
    for folder in folders:
        for depth, name in enumerate(folder.split("/")):
            levels[depth].add(name)
    return max(map(len, levels.values())) >= _SHARE_OF_NAMES * len(folders)


def _plausible(found: Mapping[str, str], images: int) -> bool:
    counts = Counter(found.values())
    most = max(counts.values(), default=0)
    return len(counts) >= _FEWEST_PATIENTS and (most <= 2 or most <= _LARGEST_SHARE * images)


def _repeats(found: Mapping[str, str], images: int) -> bool:
    """Whether nearly all images fall into groups, of which many have several, and none has too many."""
    counts = Counter(found.values())
    several = sum(count for count in counts.values() if count > 1)
    return (
        len(found) >= 0.9 * images
        and several >= 0.2 * images
        and len(counts) >= max(_FEWEST_PATIENTS, images // 40)
        and max(counts.values()) <= max(40, _LARGEST_SHARE * images / 10)
    )


def _patients(found: Mapping[str, str]) -> str:
    return counted(len(set(found.values())), "patient")


def _example(found: Mapping[str, str], paths: Mapping[str, str]) -> str:
    groups: dict[str, list[str]] = defaultdict(list)
    for image_id, patient in found.items():
        groups[patient].append(paths[image_id])
    patient, images = max(groups.items(), key=lambda group: min(len(group[1]), 2))
    few = " and ".join(shown(path) for path in images[:2])
    return f"{few} {'is' if len(images) == 1 else 'are'} of {shown(patient)}"
