"""A folder that jobs/predict.py wrote, as other jobs read it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lungseg_ray.corpus.decode import Decoded, decode_image
from lungseg_ray.corpus.read import decode_alone, fetch
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.imaging import Pixels, texts_of_png
from lungseg_ray.jobs.predict import CLAIM, MASKS, SOURCE, TABLE
from lungseg_ray.storage import Location, locate
from lungseg_ray.text import escaped

Row = dict[str, str]
WHOLE = 1 << 16
"""A longer side that no image exceeds, so that none is reduced."""


@dataclass(frozen=True)
class Masks:
    """The masks of a prediction.

    Attributes:
        names: The paths of the images that have masks, in the folder of images.
        class_names: The names of the labels from 1 on.
        sha256: A hash of what the prediction says of its model and of these images; the same if it runs again.
    """

    names: list[str]
    class_names: list[str]
    sha256: str


@dataclass(frozen=True)
class Predicted:
    """Where the images and the masks of a prediction are, and how the images are decoded.

    Attributes:
        place: The folder of the prediction.
        images: The folder of the images.
        channels: The channels of an image.
        white: As in the sidecar of the model.
        model: A name of the model: the SHA-256 of its weights; of several, that of all together. Empty where it is not
            known.
        claim: The content of the file by which the prediction names the model and the images.
    """

    place: Location
    images: Location
    channels: int
    white: float | tuple[float, ...] | None
    model: str = ""
    claim: bytes = b""

    @classmethod
    def of(cls, place: Location) -> Predicted:
        """Reads what jobs/predict.py wrote of a prediction.

        Args:
            place: The folder of the prediction.

        Raises:
            UserError: If it is not such a folder.
            OSError: If it cannot be read; a `StorageError` for a bucket.
        """
        claim = place / CLAIM
        try:
            data = claim.read_bytes()
            content = json.loads(data)
            white = content.get("white")
            weights = str(content.get("weights_sha256") or "")
            return cls(
                place,
                images=locate(str(content["images"])),
                channels=3 if content.get("channels") == 3 else 1,
                white=tuple(map(float, white)) if isinstance(white, list) else white and float(white),
                model=hashlib.sha256(weights.encode()).hexdigest() if " " in weights else weights,
                claim=data,
            )
        except FileNotFoundError:
            raise UserError(f"{place}: expected a folder that jobs/predict.py wrote, found no {CLAIM} there.") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{claim}: expected what jobs/predict.py wrote, found something else.") from None

    def rows(self) -> Iterator[Row]:
        """Yields the rows of the table, without those of images that were set aside.

        Raises:
            UserError: If the prediction has not finished, or if all images were set aside.
            OSError: If the table cannot be read; a `StorageError` for a bucket.
        """
        try:
            text = (self.place / TABLE).read_text()
        except FileNotFoundError:
            raise UserError(
                f"{self.place}: the prediction has not finished ({TABLE} is missing). Run it again."
            ) from None
        some = False
        for row in csv.DictReader(io.StringIO(text)):
            if row.get("status") != "set aside":
                some = True
                yield row
        if not some:
            raise UserError(f"{self.place / TABLE}: there are no masks; all images were set aside.")

    def masks(self) -> Masks:
        """Returns which images have masks.

        Raises:
            UserError: As `rows`.
            OSError: As `rows`.
        """
        names: list[str] = []
        columns: list[str] = []
        content = hashlib.sha256(self.claim)
        for row in self.rows():
            names.append(row["image"])
            columns = columns or list(row)
            # What the table says of an image follows from its mask, but for the job that made it.
            content.update(json.dumps({**row, "status": ""}).encode())
        class_names = [name.removeprefix("share_") for name in columns if name.startswith("share_")]
        return Masks(names, class_names, content.hexdigest())

    def data(self, name: str) -> bytes:
        """Returns the content of the file of an image.

        Args:
            name: The path of the image in the folder of images.

        Raises:
            BadFileError: If it leads out of the folder, or if the file is too large.
            FileNotFoundError: If there is no such file.
        """
        # Names come from a table that others may have written.
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise BadFileError("bad_name", "expected a path inside the folder of images")
        return fetch(str(self.images / self._real(name)))

    def image(self, name: str, data: bytes, *, longer_side: int = WHOLE) -> Decoded:
        """Decodes an image as the prediction did.

        Args:
            name: The path of the image in the folder of images.
            data: The content of its file.
            longer_side: The largest length of the longer side, pixels.

        Raises:
            BadFileError: If it cannot be used.
        """
        uri = str(self.images / self._real(name))
        return decode_alone(data, uri, channels=self.channels, longer_side=longer_side, white=self.white)

    def labels(self, name: str, *, of: bytes) -> Pixels:
        """Returns the predicted labels of an image, (H, W) uint8.

        Args:
            name: The path of the image in the folder of images.
            of: The content of the file of the image.

        Raises:
            BadFileError: If the mask is damaged, or that of another image, which had this name before.
            FileNotFoundError: If there is no mask.
        """
        file = (self.place / MASKS / f"{self._real(name)}.png").read_bytes()
        if texts_of_png(file).get(SOURCE, found := hashlib.sha256(of).hexdigest()) != found:
            raise BadFileError("changed", "the image is another one than when its mask was predicted; predict again")
        mask = decode_image(file, channels=1).pixels[:, :, 0]
        # The labels of one class are written as 0 and 255.
        return (mask > 0).astype(np.uint8) if mask.max() == np.iinfo(np.uint8).max else mask

    def read(self, name: str, *, longer_side: int = WHOLE) -> tuple[Pixels, Pixels]:
        """Returns an image (H, W, C) and its predicted labels (h, w).

        Args:
            name: The path of the image in the folder of images.
            longer_side: The largest length of the longer side of the image, pixels.

        Raises:
            BadFileError: If the image or the mask cannot be used.
            FileNotFoundError: If one of them is missing.
        """
        data = self.data(name)
        return self.image(name, data, longer_side=longer_side).pixels, self.labels(name, of=data)

    def _real(self, shown: str) -> str:
        """Returns the name of an image by that in the table, where characters that are not printable are escaped."""
        return _names(self.place / MASKS).get(shown, shown) if "\\" in shown else shown


@lru_cache(maxsize=1)
def _names(masks: Location) -> dict[str, str]:
    """Returns the paths of masks without their suffix, by their printable form."""
    names = (place.uri[len(masks.uri) + 1 :].removesuffix(".png") for place, _ in masks.list(recursive=True))
    return {escaped(name): name for name in names}


def read_verdicts(place: Location) -> dict[str, str]:
    """Reads the file that the review page saves.

    Args:
        place: The file.

    Returns:
        The last verdict on each image: `right`, `wrong` or `unsure`.

    Raises:
        UserError: If there is no such file, or if it is another one.
        OSError: If it cannot be read; a `StorageError` for a bucket.
    """
    try:
        return {row["image"]: row["verdict"] for row in csv.DictReader(io.StringIO(place.read_text()))}
    except FileNotFoundError:
        raise UserError(f"{place}: there is no such file (--verdicts).") from None
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise UserError(f"{place}: expected columns image and verdict, as the page saves them (--verdicts).") from None
