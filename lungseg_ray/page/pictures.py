"""The pictures of a page: validation images with outlines of their labels, and PNG files that are embedded in it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt
import torch

from lungseg_ray.errors import JobFailedError, UserError
from lungseg_ray.imaging import PREDICTED, TRUTH, fit_labels_to, fit_to, hex_colour, overlay
from lungseg_ray.inference import predictor
from lungseg_ray.numerics import metrics
from lungseg_ray.numerics.sampling import evenly_spaced
from lungseg_ray.page.elements import Image, ImageGrid, Key, Note
from lungseg_ray.shards.format import ShardRow, read_rows
from lungseg_ray.shards.index import read_index
from lungseg_ray.storage import Location

IMAGES = 4
"""The largest number of validation images that are shown."""
_SIDE = 400
"""The longer side of a picture, in pixels."""
_QUALITY = 85
"""The quality of JPEG pictures, 0 to 100."""

Pixels = npt.NDArray[np.uint8]


def overlays(models: Mapping[str, Location], shards: Location, *, fingerprint: str) -> ImageGrid | Note:
    """Draws the outlines that several models predict on the same few validation images.

    Args:
        models: The folder `best/` of each model, by the heading of its pictures.
        shards: The folder of the shards.
        fingerprint: The fingerprint of the shards that the models were trained on.

    Returns:
        A row for each image: the image alone, then one picture for each model. A note with the reason if the pictures
        cannot be drawn, for example because the shards are missing or have another fingerprint.
    """
    try:
        index = read_index(shards)
        if index.fingerprint != fingerprint:
            return _missing(f"{shards} holds other shards than those that the trials were trained on.")
        places = [(shard, row) for shard in index.of("val") for row in shard.usable]
        chosen = [places[number] for number in evenly_spaced(len(places), IMAGES)]
        rows = [read_rows(shards, shard, [row])[0] for shard, row in chosen]
        columns = [[_plain(row) for row in rows], *(_seen(place, rows) for place in models.values())]
    except (UserError, JobFailedError, OSError) as error:
        return _missing(str(error))
    names = index.corpus.class_names
    predicted = [
        Key(f"predicted {name}", hex_colour(PREDICTED[label % len(PREDICTED)]), "▬") for label, name in enumerate(names)
    ]
    return ImageGrid(
        ["X-ray", *models],
        [list(row) for row in zip(*columns, strict=True)],
        _SIDE,
        [Key("true outline", hex_colour(TRUTH), "▬"), *predicted],
    )


def embedded(png: bytes) -> str:
    """Converts the content of a PNG file to a data URI with a JPEG picture, which has a tenth of the size."""
    return picture_uri(np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB), np.uint8))


def _seen(place: Location, rows: list[ShardRow]) -> list[Image]:
    use = predictor.load_predictor(place)
    pictures = []
    for row in rows:
        labels = use.labels(use([row.sample.image])[0])
        counts = metrics.confusion_counts(
            torch.from_numpy(labels)[None], torch.from_numpy(row.sample.mask.copy())[None], classes=use.sidecar.classes
        )
        masks = (fit_labels_to(mask, _SIDE) for mask in (labels, row.sample.mask))
        drawn = overlay(fit_to(row.sample.image, _SIDE), *masks)
        pictures.append(Image(picture_uri(drawn), f"Dice {float(metrics.dice(counts).mean()):.3f}"))
    return pictures


def _plain(row: ShardRow) -> Image:
    image = fit_to(row.sample.image, _SIDE)
    return Image(picture_uri(np.broadcast_to(image, (*image.shape[:2], 3))), row.image_id)


def picture_uri(rgb: Pixels) -> str:
    """Converts a picture (H, W, 3) uint8 to a data URI in JPEG."""
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(rgb[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return f"data:image/jpeg;base64,{b64encode(data.tobytes()).decode()}"


def _missing(reason: str) -> Note:
    return Note(
        f"There are no pictures: {reason.rstrip('.')}. To have them, write the page again and say with --shards where "
        "the shards lie now."
    )
