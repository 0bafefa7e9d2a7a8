"""The page of masks that differ from what models predict: the most suspicious first, with both outlines."""

from __future__ import annotations

from collections.abc import Sequence

from lungseg_ray.evaluation.mask_scores import ComparedMask
from lungseg_ray.imaging import PREDICTED, TRUTH, Pixels, fit_labels_to, fit_to, hex_colour, overlay, png
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

_ACROSS, _SIDE, _ROWS = 3, 320, 500
_SEEN, _UNSEEN = "trained on", "not trained on"


def mask_page(masks: Sequence[ComparedMask], pictures: Sequence[tuple[Pixels, Pixels, Pixels]], *, title: str) -> Page:
    """Builds the page.

    Args:
        masks: The masks, the most suspicious first, at least one.
        pictures: For the first of them the image (H, W, C), its mask and the predicted labels, both (H, W), all uint8.
        title: The title of the page.
    """
    unseen = sum(not one.seen for one in masks)
    facts = [
        KeyFigure("Masks", str(len(masks)), "that were compared"),
        KeyFigure("By models that have not seen them", str(unseen), f"the others by one that was {_SEEN} them"),
    ]
    parts: list[Part] = [KeyFigures(facts)]
    if unseen < len(masks):
        parts.append(
            Note(
                "A model follows the masks that it was trained on, also wrong ones. A sweep over feed.leave_out gives "
                "each of them a model that was not."
            )
        )
    drawn = [_picture(one, *given) for one, given in zip(masks, pictures, strict=False)]
    grid = ImageGrid(
        [""] * _ACROSS,
        [drawn[at : at + _ACROSS] for at in range(0, len(drawn), _ACROSS)],
        _SIDE,
        [Key("mask", hex_colour(TRUTH), "▬"), Key("prediction", hex_colour(PREDICTED[0]), "▬")],
    )
    styles = charts.styles([_UNSEEN, _SEEN])
    points = []
    for name, seen in ((_UNSEEN, False), (_SEEN, True)):
        if some := [one for one in masks if one.seen is seen]:
            xs, ys, notes = zip(*((one.certain, one.dice, one.image_id) for one in some), strict=True)
            points.append(charts.Series(styles[name], xs, ys, notes, hollow=True))
    chart = charts.scatter(points, "Dice that the model believes", "Dice of mask and prediction")
    columns = {
        Column("image"): lambda one: one.image_id,
        Column("patient"): lambda one: one.patient_id,
        Column("split", filtered=True): lambda one: one.split,
        Column("suspicion"): lambda one: Cell(f"{one.suspicion:.1f}", one.suspicion),
        Column("Dice"): lambda one: Cell(f"{one.dice:.3f}", one.dice),
        Column("believed"): lambda one: Cell(f"{one.certain:.3f}", one.certain),
        Column("model was", filtered=True): lambda one: _SEEN if one.seen else _UNSEEN,
    }
    chapters = [
        Chapter(
            "Masks to look at",
            "A mask is suspicious where it differs from the prediction by more than the model believes to be wrong. "
            "Such a mask may be wrong, or the model may be: look at both outlines.",
            [*parts, grid],
        ),
        Chapter(
            "All masks",
            "Far below the others where the model is sure: suspicious. Suspicion is the error of the mask through the "
            "error that the model believes to make.",
            [
                Charts([Chart("", chart)], [styles[name].key for name in (_UNSEEN, _SEEN)]),
                make_table(list(masks[:_ROWS]), columns),
                *([Note(f"These are {_ROWS} of {counted(len(masks), 'mask')}.")] if len(masks) > _ROWS else []),
            ],
        ),
    ]
    return Page(title, "", chapters)


def _picture(one: ComparedMask, image: Pixels, mask: Pixels, labels: Pixels) -> Image:
    small = fit_to(image, _SIDE)
    drawn = overlay(small, *(fit_labels_to(each, _SIDE) for each in (labels, mask)))
    return Image(
        embedded(png(drawn)),
        f"{one.image_id} ({one.split}): Dice {one.dice:.3f}, believed {one.certain:.3f}",
    )
