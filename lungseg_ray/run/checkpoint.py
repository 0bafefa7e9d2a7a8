"""Everything a run needs to go on, in files that need no trust: safetensors, plain tensors and numbers, checksums."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from lungseg_ray.errors import UserError
from lungseg_ray.run.progress import Progress
from lungseg_ray.storage import Location

WEIGHTS = "weights.safetensors"
AVERAGE = "average.safetensors"
TRAINING = "training.pt"
PROGRESS = "progress.json"
CHECKSUMS = "checksums.json"
_NAME = re.compile(r"checkpoint_\d{9}")
PART = ".part"
"""Suffix of the hidden folder that becomes a checkpoint when it is complete."""


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


def is_checkpoint(place: Location) -> bool:
    """Whether a place is named as a checkpoint is."""
    return _NAME.fullmatch(place.name) is not None


def is_unfinished(place: Location) -> bool:
    """Whether a place is named as a checkpoint is that was never finished."""
    return place.name.startswith(".checkpoint_") and place.name.endswith(PART)


def step_of(place: Location) -> int:
    """The step after which the checkpoint that lies there was made."""
    return int(place.name.rsplit("_", 1)[1])


def folder_name(step: int) -> str:
    """The folder's name of the checkpoint after `step` steps; names sort as steps do."""
    return f"checkpoint_{step:09d}"


def copy_to_cpu(content: Checkpoint) -> Checkpoint:
    """A copy on the CPU that training does not change any more; tensors in the plain layout that safetensors asks."""
    return Checkpoint(
        weights=_copied(content.weights),
        average=_copied(content.average),
        training=_copied(content.training),
        progress=content.progress,
    )


def write_folder(directory: Path, content: Checkpoint) -> None:
    """Writes the files of a `snapshot` into an empty folder, the checksums last.

    Raises:
        OSError: if they cannot be written. The libraries' own writers would turn a full disk into errors of their own.
    """
    training = io.BytesIO()
    torch.save(content.training, training)
    files = {
        WEIGHTS: save(content.weights),
        **({AVERAGE: save(content.average)} if content.average is not None else {}),
        TRAINING: training.getvalue(),
        PROGRESS: json.dumps(vars(content.progress), indent=1).encode(),
    }
    files[CHECKSUMS] = json.dumps({file: _sha256(data) for file, data in files.items()}, indent=1).encode()
    for file, data in files.items():
        with (directory / file).open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())


def read_folder(directory: Path) -> Checkpoint:
    """Reads a checkpoint's files, to the CPU; nothing in them is executed."""
    average = directory / AVERAGE
    return Checkpoint(
        weights=load_file(directory / WEIGHTS, device="cpu"),
        average=load_file(average, device="cpu") if average.exists() else None,
        training=torch.load(directory / TRAINING, map_location="cpu", weights_only=True),
        progress=Progress(**json.loads((directory / PROGRESS).read_text())),
    )


def read_checkpoint(place: Location) -> Checkpoint:
    """Reads a checkpoint wherever it lies."""
    if place.is_local:
        return read_folder(Path(place.path))
    with tempfile.TemporaryDirectory(prefix="lungseg-") as folder:
        place.download(Path(folder))
        return read_folder(Path(folder))


def find_damage(place: Location) -> str | None:
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


def list_checkpoints(run: Location) -> list[Location]:
    """The checkpoints of a run, the newest first, whole or not."""
    return [place for place, _ in reversed(run.list()) if is_checkpoint(place)]


def find_newest(run: Location, *, any_finished: bool) -> tuple[Location | None, list[str]]:
    """The newest checkpoint of a run that passes its checksums, and what is wrong with the newer ones.

    A run that has finished none yet may have left a part of its first in a bucket; that is no loss.

    Args:
        run: its folder.
        any_finished: whether the run has finished a checkpoint.

    Raises:
        UserError: if it has, and none passes.
    """
    wrong: list[str] = []
    for place in list_checkpoints(run):
        reason = find_damage(place)
        if reason is None:
            return place, wrong
        wrong.append(reason)
        any_finished = any_finished or (place / CHECKSUMS).exists()
    if any_finished:
        raise UserError(
            "\n  ".join([f"{run}: none of its {len(wrong)} checkpoints can be used:", *wrong]) + "\n"
            "Nothing was changed. Restore one of them, or start again under another runs.name."
        )
    return None, wrong


def _copied(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True).contiguous()
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list) else tree


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
