"""Writes the figures of a run for TensorBoard."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from lungseg_ray.storage import Location

TENSORBOARD = "tensorboard"
_TIMINGS = ("images_per_second", "data_wait_share", "checkpoint_wait", "train_seconds", "seconds", "memory_gib")


def by_tag(row: Mapping[str, float]) -> dict[str, float]:
    """Returns the figures of an epoch under names that group them, such as `val/iou`.

    Args:
        row: The epoch's row of the history.
    """
    found = {}
    for key, value in row.items():
        if key not in ("epoch", "step"):
            part = "time" if key in _TIMINGS else "val" if key.startswith("val_") else "train"
            found[f"{part}/{key.removeprefix('val_')}"] = value
    return found


class TensorBoardWriter:
    """Writes the TensorBoard file of a run. Where the disk is full, the file ends and the run continues.

    Args:
        place: The folder of the file.
        note: Called with a message when the file is not written any more.
    """

    def __init__(self, place: Location, note: Callable[[str], None]) -> None:
        self._place = place
        self._note = note
        self._local = Path(place.path) if place.is_local else Path(tempfile.mkdtemp(prefix="lungseg-"))
        self._writer: SummaryWriter | None = None

    def open(self, *, epoch: int) -> None:
        """Starts a file.

        Args:
            epoch: Finished epochs; what earlier files hold of later epochs is hidden.
        """
        self.close()
        try:
            self._writer = SummaryWriter(str(self._local), purge_step=epoch + 1)
        except OSError as error:
            self._give_up(error)

    def write(self, row: dict[str, float]) -> None:
        """Writes the figures of an epoch.

        Args:
            row: The epoch's row of the history.
        """
        if not self._writer:
            return
        try:
            for name, value in by_tag(row).items():
                self._writer.add_scalar(name, value, row["epoch"])
            self._writer.flush()
        except OSError as error:
            self._give_up(error)
            return
        if not self._place.is_local:
            try:
                self._place.upload(self._local)
            except OSError as error:
                self._note(f"TensorBoard's file could not be written to {self._place}: {error}")

    def close(self) -> None:
        """Closes the file."""
        writer, self._writer = self._writer, None
        if writer:
            try:
                writer.close()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._note(f"TensorBoard's file in {self._local} is not written any more: {error}")
        self._writer = None
