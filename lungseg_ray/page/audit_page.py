"""The content of the page of an audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from lungseg_ray.audit.duplicates import NEAR, DuplicatePair
from lungseg_ray.audit.facts import EDGES, ImageFacts, read_for_audit
from lungseg_ray.audit.findings import column_counts, list_findings
from lungseg_ray.audit.outliers import FAR
from lungseg_ray.audit.result import TABLE, Audit
from lungseg_ray.corpus.record import REASONS, SPLITS
from lungseg_ray.errors import BadFileError
from lungseg_ray.imaging import PREDICTED, TRUTH, hex_colour, overlay, png
from lungseg_ray.numerics.labels import IGNORE_LABEL
from lungseg_ray.page import charts
from lungseg_ray.page.elements import (
    Cell,
    Chapter,
    Chart,
    Charts,
    Column,
    Image,
    ImageGrid,
    Key,
    KeyFigure,
    KeyFigures,
    Note,
    Page,
    Part,
    make_table,
)
from lungseg_ray.page.pictures import embedded
from lungseg_ray.text import counted

_LONGER_SIDE = 256
"""The longer side of a picture, in pixels."""
_ACROSS = 3
"""The number of pictures in a row."""
_PAIRS = 12
"""The largest number of pairs of duplicates that are shown as pictures."""
_ROWS = 500
"""The largest number of rows of a table."""
_POINTS = 2000
"""The largest number of points of a chart."""
_NO_SPLIT = "no split"
_THERE, _HERE = "training images", "this corpus"

Figure = Callable[[ImageFacts], float | None]


def audit_page(audit: Audit) -> Page:
    """Builds the page of an audit, for which it reads the few images that are shown as pictures again."""
    chapters = [
        _headline(audit),
        *_drift(audit),
        _files(audit),
        *_groups(audit),
        _exposure(audit),
        *_masks(audit),
        _duplicates(audit),
        _patients(audit),
        _outliers(audit),
    ]
    return Page(f"Audit of {audit.corpus.root}", "", chapters)


def _headline(audit: Audit) -> Chapter:
    unlabelled = len(audit.images) - len(audit.labelled)
    splits = Counter(one.split or _NO_SPLIT for one in audit.labelled)
    patients = {
        split: len({one.patient_id for one in audit.labelled if (one.split or _NO_SPLIT) == split}) for split in splits
    }
    facts = [
        KeyFigure("Images", str(len(audit.images)), f"that can be read; layout {audit.layout}"),
        KeyFigure("With a mask", str(len(audit.labelled)), f"{unlabelled} without"),
        KeyFigure("Set aside", str(len(audit.set_aside)), "files that cannot be used"),
        KeyFigure("Patients", str(audit.patients), "an image without a patient counts as one of its own"),
        *(
            KeyFigure(
                f"In {split}" if split in SPLITS else "In no split",
                counted(splits[split], "image"),
                f"of {counted(patients[split], 'patient')}",
            )
            for split in (*SPLITS, _NO_SPLIT)
            if splits[split]
        ),
    ]
    found = list_findings(audit)
    columns = {Column("weight"): lambda one: one.weight, Column("what"): lambda one: one.text}
    parts: list[Part] = [KeyFigures(facts), Note("", "What to look at")]
    parts.append(make_table(found, columns) if found else Note("Nothing stands out."))
    return Chapter(
        "Result",
        "What there is, and what is worth a look before one trains on it: mend what spoils figures or leaves images "
        f"out, look at what may be a mistake, know the rest; {TABLE} beside this page has a row for each image.",
        parts,
    )


def _drift(audit: Audit) -> Iterator[Chapter]:
    drift = audit.drift
    if drift is None:
        return
    parts: list[Part] = []
    styles = charts.styles([_THERE, _HERE])
    made = [
        Chart(
            shift.figure, charts.histogram({styles[_THERE]: shift.before, styles[_HERE]: shift.now}, shift.figure, "")
        )
        for shift in drift.shifts
    ]
    if made:
        parts.append(Charts(made, [style.key for style in styles.values()]))
    there = [Image(embedded(png(one)), _THERE) for one in drift.examples]
    labelled = audit.labelled or list(audit.images)
    step = max(len(labelled) // _ACROSS, 1)
    here = [_picture(audit, one, f"{_HERE}: {one.image_id}") for one in labelled[::step][:_ACROSS]]
    parts.append(ImageGrid([""] * _ACROSS, [row for row in (there, here) if row], _LONGER_SIDE, _outlines(audit)))
    yield Chapter(
        "Compared with training images",
        f"How these images differ from {counted(drift.images, 'training image')} in {drift.shards}. A model may be "
        "worse on images that are unlike those of its training; its expected Dice says of which.",
        parts,
    )


def _files(audit: Audit) -> Chapter:
    sizes = Counter((one.width, one.height, one.split or _NO_SPLIT) for one in audit.images).most_common(_POINTS)
    looks = _looks(audit.images)
    series = []
    for split, style in looks.items():
        points = [(width, height, count) for (width, height, of), count in sizes if of == split]
        if points:
            xs, ys, counts = zip(*points, strict=True)
            notes = [f"{counted(count, 'image')} in {split}" for count in counts]
            series.append(charts.Series(style, xs, ys, notes, hollow=True))
    made = [Chart("Size of the files", charts.scatter(series, "width, px", "height, px"))]
    spacing = _histogram(audit.images, "Pixel spacing", "mm per row", lambda one: one.spacing and one.spacing[0])
    if spacing:
        made.append(spacing)
    rows = [
        ("bits per value", _told(Counter(one.bits for one in audit.images))),
        ("format", _told(Counter(one.format for one in audit.images))),
        ("pixel spacing", _told(Counter("known" if one.spacing else "unknown" for one in audit.images))),
    ]
    columns = {Column(""): lambda row: row[0], Column("images"): lambda row: row[1]}
    parts: list[Part] = [Charts(made, [style.key for style in looks.values()]), make_table(rows, columns)]
    parts.append(Note("", "Set aside"))
    if audit.set_aside:
        reasons = Counter(one.reason for one in audit.set_aside)
        parts.append(
            make_table(
                reasons.most_common(),
                {
                    Column("reason"): lambda one: one[0],
                    Column("files"): lambda one: one[1],
                    Column("what it means"): lambda one: REASONS.get(one[0], ""),
                },
            )
        )
        parts.append(
            make_table(
                audit.set_aside[:_ROWS],
                {
                    Column("reason", filtered=True): lambda one: one.reason,
                    Column("image"): lambda one: one.image_id,
                    Column("file"): lambda one: one.uri,
                    Column("what was expected and found"): lambda one: one.detail,
                },
                sortable=True,
            )
        )
        parts += _cut(len(audit.set_aside))
    else:
        parts.append(Note("No file is set aside."))
    return Chapter(
        "Files",
        "Each square is a size that occurs, with the number of its images on hover or touch; files that cannot be used "
        "are left out of the shards with the reason that is told here.",
        parts,
    )


def _groups(audit: Audit) -> Iterator[Chapter]:
    counts = column_counts(audit.images)
    if not counts:
        return
    there = [
        split
        for split in (*SPLITS, "none")
        if any(splits[split] for values in counts.values() for splits in values.values())
    ]
    rows = [(name, value, splits) for name, values in counts.items() for value, splits in values.items()]
    columns: dict[Column, Callable[[tuple[str, str, Counter[str]]], Cell | float | str | None]] = {
        Column("column"): lambda row: row[0],
        Column("value"): lambda row: row[1],
        Column("images"): lambda row: row[2].total(),
        **{Column(split if split in SPLITS else _NO_SPLIT): _count(split) for split in there},
    }
    yield Chapter(
        "Groups",
        "Images by the columns of the corpus that have 2 to 12 values, by split; a value that is "
        "missing in a split is not learnt, or not measured.",
        [make_table(rows, columns)],
    )


def _count(split: str) -> Callable[[tuple[str, str, Counter[str]]], int]:
    return lambda row: row[2][split]


def _exposure(audit: Audit) -> Chapter:
    figures: list[tuple[str, str, Figure]] = [
        ("Mean", "mean intensity, 0 (black) to 1 (white)", lambda one: one.mean),
        ("Contrast", "standard deviation of the intensity", lambda one: one.std),
        ("Dark end", "1st percentile of the intensity", lambda one: one.low),
        ("Bright end", "99th percentile of the intensity", lambda one: one.high),
        ("Black", "share of black pixels", lambda one: one.black),
        ("White", "share of white pixels", lambda one: one.white),
    ]
    made = [_histogram(audit.images, *figure) for figure in figures]
    return Chapter(
        "Exposure",
        "How many images are how bright; a second hill is often another device or another way of exporting, and many "
        "black or white pixels are frames, letters or lost detail.",
        [Charts([chart for chart in made if chart], _keys(audit.images))],
    )


def _masks(audit: Audit) -> Iterator[Chapter]:
    images = audit.labelled
    if not images:
        return
    parts: list[Part] = []
    for name in audit.names:
        made = [
            _histogram(images, "Area", "share of the image", _of_label(name, "share")),
            _histogram(
                images, "Parts", f"connected parts of {name}, each over 1 % of it", _of_label(name, "parts"), True
            ),
            _histogram(images, "Specks", "smaller parts", _of_label(name, "specks"), True),
            _histogram(images, "Left and right", "share that lies left of the middle", _of_label(name, "left")),
            _histogram(images, "Balance of parts", "second largest for each of the largest", _of_label(name, "ratio")),
            _centroids(images, name),
        ]
        if len(audit.names) > 1:
            parts.append(Note("", name))
        parts.append(Charts([chart for chart in made if chart], _keys(images)))
    touched = {name: Counter(edge for one in images for edge in one.labels[name].touches) for name in audit.names}
    columns: dict[Column, Callable[[str], Cell | float | str | None]] = {
        Column("label"): lambda name: name,
        Column("on any edge"): lambda name: sum(bool(one.labels[name].touches) for one in images),
        **{Column(edge): _touches(touched, edge) for edge in EDGES},
    }
    parts += [
        Note("Images whose mask reaches the border: the structure is cut off there.", "Borders"),
        make_table(audit.names, columns),
    ]
    yield Chapter(
        "Masks",
        "Of most structures all masks agree in the number of parts, in size and in place; what lies apart from the "
        "hill is a rare patient or a mistake. Left is the picture's left.",
        parts,
    )


def _of_label(name: str, key: str) -> Figure:
    return lambda one: getattr(one.labels[name], key)


def _touches(touched: Mapping[str, Counter[str]], edge: str) -> Callable[[str], int]:
    return lambda name: touched[name][edge]


def _duplicates(audit: Audit) -> Chapter:
    parts: list[Part] = []
    if audit.duplicates:
        columns: dict[Column, Callable[[DuplicatePair[ImageFacts]], Cell | float | str | None]] = {
            Column("first"): lambda pair: pair.first.image_id,
            Column("second"): lambda pair: pair.second.image_id,
            Column("what is the same", filtered=True): _sameness,
            Column("bits that differ"): lambda pair: pair.bits,
            Column("splits", filtered=True): lambda pair: ", ".join(pair.splits) or _NO_SPLIT,
            Column("patients", filtered=True): lambda pair: (
                "the same" if pair.first.patient_id == pair.second.patient_id else "two"
            ),
            Column("masks", filtered=True): _masks_of,
        }
        parts.append(make_table(audit.duplicates[:_ROWS], columns, sortable=True))
        parts += _cut(len(audit.duplicates))
        # Pairs across two splits come first, since they bias the metrics on the val and test splits.
        shown = sorted(audit.duplicates, key=lambda pair: not pair.crosses_split)[:_PAIRS]
        rows = [[_picture(audit, one, _whose(one)) for one in (pair.first, pair.second)] for pair in shown]
        parts.append(ImageGrid(["first", "second"], rows, _LONGER_SIDE, _outlines(audit)))
    else:
        parts.append(Note("No image stands in the corpus more than once."))
    return Chapter(
        "Duplicates",
        f"Images with the same bytes, and images whose perceptual hashes differ in at most {NEAR} of 256 bits: copies "
        "that were scaled, compressed or adjusted, and takes of the same scene; not those that were mirrored, turned "
        "or cropped by more than a little. A copy in another split makes the figures of that split too good.",
        parts,
    )


def _whose(one: ImageFacts) -> str:
    patient = f", patient {one.patient_id}" if one.patient_id != one.image_id else ""
    return f"{one.image_id} ({_split(one)}{patient})"


def _sameness(pair: DuplicatePair[ImageFacts]) -> str:
    return "bytes" if pair.bits is None else "looks"


def _masks_of(pair: DuplicatePair[ImageFacts]) -> str:
    if not (pair.first.mask_sha256 and pair.second.mask_sha256):
        return "not both have one"
    return "the same" if pair.first.mask_sha256 == pair.second.mask_sha256 else "different"


def _patients(audit: Audit) -> Chapter:
    counts = Counter(one.patient_id for one in audit.images)
    values = {
        style: list(Counter(one.patient_id for one in audit.images if _split(one) == split).values())
        for split, style in _looks(audit.images).items()
    }
    parts: list[Part] = []
    if max(counts.values()) > 1:
        chart = Chart("", charts.histogram(values, "images of a patient in one split", "patients", whole=True))
        parts.append(Charts([chart], _keys(audit.images)))
        columns = {Column("patient"): lambda one: one[0], Column("images"): lambda one: one[1]}
        many = [one for one in counts.most_common(10) if one[1] > 1]
        parts += [Note("", "Patients with the most images"), make_table(many, columns)]
    else:
        parts.append(Note("Each image is a patient of its own; if that is not so, say it in the column patient_id."))
    parts.append(Note("", "Patients in several splits"))
    if audit.split_conflicts:
        columns = {Column("patient"): lambda one: one[0], Column("splits"): lambda one: ", ".join(one[1])}
        parts.append(make_table(list(audit.split_conflicts.items())[:_ROWS], columns))
        parts += _cut(len(audit.split_conflicts))
    else:
        parts.append(Note("There is none."))
    return Chapter(
        "Patients",
        "All images of a patient are in one split: images of one patient are much alike, and figures are "
        "too good where a patient is in two.",
        parts,
    )


def _outliers(audit: Audit) -> Chapter:
    pictures = [
        _picture(audit, one.image, f"{one.image.image_id} ({_split(one.image)}): {'; '.join(map(str, one.reasons))}")
        for one in audit.outliers
    ]
    rows = [pictures[at : at + _ACROSS] for at in range(0, len(pictures), _ACROSS)]
    parts: list[Part] = [ImageGrid([""] * _ACROSS, rows, _LONGER_SIDE, _outlines(audit))] if rows else []
    return Chapter(
        "Unlike the rest",
        "The images that are farthest from the median of all in some figure, a few for each; z counts in robust "
        f"standard deviations, and {FAR} or more is rare. Look whether image and outline are right.",
        parts or [Note("All images are alike in all figures.")],
    )


def _histogram(
    images: Sequence[ImageFacts], title: str, x_title: str, figure: Figure, whole: bool = False
) -> Chart | None:
    values = {
        style: of
        for split, style in _looks(images).items()
        if (of := [value for one in images if _split(one) == split and (value := figure(one)) is not None])
    }
    return Chart(title, charts.histogram(values, x_title, "images", whole=whole)) if values else None


def _centroids(images: Sequence[ImageFacts], name: str) -> Chart | None:
    marked = [one for one in images if one.labels[name].parts]
    marked = marked[:: -(-len(marked) // _POINTS) or 1]
    series = []
    for split, style in _looks(marked).items():
        points = [
            (one.labels[name].column, one.labels[name].row, one.image_id) for one in marked if _split(one) == split
        ]
        xs, ys, notes = zip(*points, strict=True)
        series.append(charts.Series(style, xs, ys, notes, hollow=True))
    title = "Centre of the mask in the image"
    y_title = "from the top (0) to the bottom (1)"
    return (
        Chart(title, charts.scatter(series, "from the left (0) to the right (1)", y_title, y_bounds=(1, 0)))
        if series
        else None
    )


def _split(one: ImageFacts) -> str:
    return one.split or _NO_SPLIT


def _looks(images: Sequence[ImageFacts]) -> dict[str, charts.Style]:
    """Returns a style for each split that contains some of the images; a split has the same style on all charts."""
    there = {_split(one) for one in images}
    looks = {
        split: charts.Style(split, colour, "square")
        for split, colour in zip((*SPLITS, _NO_SPLIT), charts.COLOURS, strict=False)
    }
    return {split: look for split, look in looks.items() if split in there}


def _keys(images: Sequence[ImageFacts]) -> list[Key]:
    return [style.key for style in _looks(images).values()]


def _told(counts: Mapping[object, int]) -> str:
    return ", ".join(f"{value}: {count}" for value, count in counts.items())


def _cut(number: int) -> list[Part]:
    return [Note(f"These are {_ROWS} of {number}.")] if number > _ROWS else []


def _outlines(audit: Audit) -> list[Key]:
    if len(audit.names) == 1:
        return [Key(f"outline of {audit.names[0]}", hex_colour(TRUTH), "▬")]
    return [
        Key(f"outline of {name}", hex_colour(PREDICTED[number % len(PREDICTED)]), "▬")
        for number, name in enumerate(audit.names)
    ]


def _picture(audit: Audit, one: ImageFacts, text: str) -> Image:
    """Draws a small picture of an image with the outlines of its labels."""
    try:
        sample = read_for_audit(audit.records[one.image_id], audit.corpus, longer_side=_LONGER_SIDE)
    except (BadFileError, OSError) as error:
        return Image("", f"{text}. The picture cannot be read again: {error}")
    labels = np.where(sample.mask == IGNORE_LABEL, 0, sample.mask).astype(np.uint8)
    nothing = np.zeros_like(labels)
    drawn = overlay(sample.image, nothing, labels) if len(audit.names) == 1 else overlay(sample.image, labels)
    return Image(embedded(png(drawn)), text)
