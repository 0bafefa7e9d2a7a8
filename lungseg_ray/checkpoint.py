"""Everything a run needs to go on, in files that need no trust: safetensors, plain tensors and numbers, checksums."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location

WEIGHTS = "weights.safetensors"
AVERAGE = "average.safetensors"
TRAINING = "training.pt"
PROGRESS = "progress.json"
CHECKSUMS = "checksums.json"
_NAME = re.compile(r"checkpoint_\d{9}")


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        epoch: epochs finished.
        step: steps of the optimiser made.
        precision: that the run computes in.
        history: one row for each finished epoch.
    """

    epoch: int
    step: int
    precision: str
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def best(self) -> dict[str, float]:
        """The row of the epoch with the lowest validation loss; the last of equal ones, as Ray keeps it."""
        return ranked(self.history)[0]

    def stops_early(self, patience: int) -> bool:
        """Whether `patience` epochs have passed without a better validation loss; never if it is 0."""
        if not patience or not self.history:
            return False
        first = min(self.history, key=lambda row: row["val_loss"])
        return self.epoch - first["epoch"] >= patience


@dataclass(frozen=True)
class Checkpoint:
    """What `write` wrote.

    Attributes:
        weights: the model's state dict.
        average: the averaged weights; None where the run averages none.
        training: states of optimiser, schedule, scaler and average: tensors and plain numbers.
        progress: how far the run had come.
    """

    weights: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor] | None
    training: dict[str, Any]
    progress: Progress


def ranked(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The rows of a history from the best to the worst."""
    return sorted(history, key=lambda row: (row["val_loss"], -row["epoch"]))


def name(step: int) -> str:
    """The folder's name of the checkpoint after `step` steps; names sort as steps do."""
    return f"checkpoint_{step:09d}"


def write(directory: Path, content: Checkpoint) -> None:
    """Writes a checkpoint's files into an empty folder, the checksums last."""
    save_file(_plain(content.weights), directory / WEIGHTS)
    if content.average is not None:
        save_file(_plain(content.average), directory / AVERAGE)
    torch.save(content.training, directory / TRAINING)
    (directory / PROGRESS).write_text(json.dumps(vars(content.progress), indent=1))
    sums = {file.name: _sha256(file.read_bytes()) for file in sorted(directory.iterdir())}
    (directory / CHECKSUMS).write_text(json.dumps(sums, indent=1))


def read(directory: Path) -> Checkpoint:
    """Reads a checkpoint's files, to the CPU; nothing in them is executed."""
    average = directory / AVERAGE
    return Checkpoint(
        weights=load_file(directory / WEIGHTS, device="cpu"),
        average=load_file(average, device="cpu") if average.exists() else None,
        training=torch.load(directory / TRAINING, map_location="cpu", weights_only=True),
        progress=Progress(**json.loads((directory / PROGRESS).read_text())),
    )


def read_from(place: Location) -> Checkpoint:
    """Reads a checkpoint wherever it lies."""
    if place.is_local:
        return read(Path(place.path))
    with tempfile.TemporaryDirectory(prefix="lungseg-") as folder:
        place.download(Path(folder))
        return read(Path(folder))


def damage(place: Location) -> str | None:
    """What is wrong with the checkpoint that lies there, in words; None if every file is as it was written."""
    try:
        sums = json.loads((place / CHECKSUMS).read_text())
        if not isinstance(sums, dict) or not {WEIGHTS, TRAINING, PROGRESS} <= sums.keys():
            return f"{place / CHECKSUMS}: does not name the checkpoint's files"
        for file, expected in sums.items():
            if _sha256((place / file).read_bytes()) != expected:
                return f"{place / file}: its checksum is another than when it was written"
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        return f"{place}: is not complete ({Path(str(error.filename or error)).name} is missing)"
    except ValueError:
        return f"{place / CHECKSUMS}: cannot be read"
    return None


def listed(run: Location) -> list[Location]:
    """The checkpoints of a run, the newest first, whole or not."""
    return [place for place, _ in reversed(run.list()) if _NAME.fullmatch(place.name)]


def newest(run: Location, *, any_finished: bool) -> tuple[Location | None, list[str]]:
    """The newest checkpoint of a run that passes its checksums, and what is wrong with the newer ones.

    A run that has finished no epoch yet may have left a part of its first checkpoint; that is no loss.

    Args:
        run: its folder.
        any_finished: whether the run has finished an epoch.

    Raises:
        UserError: if it has, and none of its checkpoints passes.
    """
    wrong: list[str] = []
    for place in listed(run):
        reason = damage(place)
        if reason is None:
            return place, wrong
        wrong.append(reason)
    if any_finished:
        raise UserError(
            "\n  ".join([f"{run}: none of its {len(wrong)} checkpoints can be used:", *wrong]) + "\n"
            "Nothing was changed. Restore one of them, or start again under another runs.name."
        )
    return None, wrong


def _plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU in the plain memory layout; safetensors refuses any other."""
    return {key: value.detach().to("cpu").contiguous().clone() for key, value in tensors.items()}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
