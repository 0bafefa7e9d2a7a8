"""Everything that a run needs to resume, in files that need no trust: safetensors, plain tensors, numbers, checksums.

Every file is compared with its checksum when it is read. A checkpoint is read completely only where its weights are
needed; how far the run had come is a small file of its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from pydantic import TypeAdapter
from safetensors.torch import load, save

from lungseg_ray.errors import UserError
from lungseg_ray.run.progress import Progress
from lungseg_ray.storage import Location

WEIGHTS = "weights.safetensors"
AVERAGE = "average.safetensors"
TRAINING = "training.pt"
PROGRESS = "progress.json"
CHECKSUMS = "checksums.json"
PART = ".part"
"""Suffix of the hidden folder that becomes a checkpoint when it is complete."""
_NAME = re.compile(r"checkpoint_\d{9}")

Content = TypeVar("Content")


class DamagedCheckpointError(Exception):
    """A checkpoint that cannot be used. The message names the file, and what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        weights: The state dict of the model.
        average: The averaged weights; None where the run averages none.
        training: The states of optimiser, schedule, scaler and average: tensors and plain numbers.
        progress: How far the run had come.
    """

    weights: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor] | None
    training: dict[str, Any]
    progress: Progress


@dataclass(frozen=True)
class Newest(Generic[Content]):
    """The newest checkpoint of a run that can be used.

    Attributes:
        place: Its folder; None if the run has no checkpoint yet.
        content: What was read from it; None if there is none.
        passed_over: What is wrong with each newer checkpoint, in words.
    """

    place: Location | None = None
    content: Content | None = None
    passed_over: list[str] = field(default_factory=list)


def is_checkpoint(place: Location) -> bool:
    """Whether a folder has the name of a checkpoint."""
    return _NAME.fullmatch(place.name) is not None


def is_unfinished(place: Location) -> bool:
    """Whether a folder has the name of a checkpoint that was never completed."""
    return place.name.startswith(".checkpoint_") and place.name.endswith(PART)


def step_of(place: Location) -> int:
    """Returns the step after which a checkpoint was written, from the name of its folder."""
    return int(place.name.rsplit("_", 1)[1])


def folder_name(step: int) -> str:
    """Returns the folder name of the checkpoint after a step. Names sort in the order of the steps."""
    return f"checkpoint_{step:09d}"


def list_checkpoints(run: Location) -> list[Location]:
    """Returns the folders of a run's checkpoints, complete or not, the newest first."""
    return [place for place, _ in reversed(run.list()) if is_checkpoint(place)]


def copy_to_cpu(content: Checkpoint) -> Checkpoint:
    """Returns a copy on the CPU that training does not change any more, in the contiguous layout that files need."""
    return Checkpoint(
        weights=_copied(content.weights),
        average=_copied(content.average),
        training=_copied(content.training),
        progress=content.progress,
    )


def write_folder(directory: Path, content: Checkpoint) -> None:
    """Writes the files of a checkpoint into an empty folder, the checksums last.

    Args:
        directory: The folder.
        content: The checkpoint, from `copy_to_cpu`.

    Raises:
        OSError: If a file cannot be written. The libraries' own writers turn a full disk into errors of their own.
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


def read_files(place: Location) -> dict[str, bytes]:
    """Reads all files of a checkpoint once, and compares each with its checksum.

    Returns:
        The content of each file by its name, without the checksums.

    Raises:
        DamagedCheckpointError: If a file is missing or does not match its checksum.
        OSError: If the storage does not answer.
    """
    sums = _read_checksums(place)
    return {file: _read_verified(place, file, expected) for file, expected in sums.items()}


def parse(files: Mapping[str, bytes], place: Location) -> Checkpoint:
    """Turns the files of a checkpoint into its content, on the CPU. Nothing in them is executed.

    Args:
        files: The content of each file, from `read_files`.
        place: The folder of the checkpoint, for messages.

    Raises:
        DamagedCheckpointError: If a file does not hold what it should.
    """
    file = ""
    try:
        file = WEIGHTS
        weights = load(files[WEIGHTS])
        file = AVERAGE
        average = load(files[AVERAGE]) if AVERAGE in files else None
        file = TRAINING
        training = torch.load(io.BytesIO(files[TRAINING]), map_location="cpu", weights_only=True)
        return Checkpoint(weights, average, training, _progress(files[PROGRESS], place))
    except DamagedCheckpointError:
        raise
    except Exception as error:
        # The libraries raise errors of many kinds, and their messages may quote the file.
        raise DamagedCheckpointError(f"{place / file}: cannot be loaded ({type(error).__name__})") from error


def read_checkpoint(place: Location) -> Checkpoint:
    """Reads a checkpoint; every file is read once.

    Raises:
        DamagedCheckpointError: If it cannot be used.
        OSError: If the storage does not answer.
    """
    return parse(read_files(place), place)


def read_progress(place: Location) -> Progress:
    """Reads how far the run had come when a checkpoint was written; the other files are not read.

    Raises:
        DamagedCheckpointError: If the file does not match its checksum, or if another file of the checkpoint is
            missing.
        OSError: If the storage does not answer.
    """
    sums = _read_checksums(place)
    there = {found.name for found, _ in place.list()}
    if missing := sorted(sums.keys() - there):
        raise DamagedCheckpointError(f"{place}: is not complete ({missing[0]} is missing)")
    return _progress(_read_verified(place, PROGRESS, sums[PROGRESS]), place)


def find_newest(run: Location, *, any_finished: bool, read: Callable[[Location], Content]) -> Newest[Content]:
    """Finds the newest checkpoint of a run that can be used; damaged ones are passed over.

    A run that has not finished any checkpoint may have left a part of its first one in a bucket. That is no loss.

    Args:
        run: The folder of the run.
        any_finished: Whether the run has finished a checkpoint.
        read: Reads what is needed of a checkpoint, and raises `DamagedCheckpointError` if it cannot be used.

    Raises:
        UserError: If the run has finished a checkpoint, and none can be used.
        OSError: If the storage does not answer.
    """
    wrong: list[str] = []
    for place in list_checkpoints(run):
        try:
            return Newest(place, read(place), wrong)
        except DamagedCheckpointError as error:
            wrong.append(str(error))
            any_finished = any_finished or (place / CHECKSUMS).exists()
    if any_finished:
        raise UserError(
            "\n  ".join([f"{run}: none of its {len(wrong)} checkpoints can be used:", *wrong]) + "\n"
            "Nothing was changed. Restore one of them, or start again under another runs.name."
        )
    return Newest(passed_over=wrong)


def _read_checksums(place: Location) -> dict[str, str]:
    try:
        sums = json.loads((place / CHECKSUMS).read_text())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DamagedCheckpointError(f"{place}: is not complete ({CHECKSUMS} is missing)") from None
    except (ValueError, RecursionError):
        raise DamagedCheckpointError(f"{place / CHECKSUMS}: cannot be read") from None
    if not isinstance(sums, dict) or not {WEIGHTS, TRAINING, PROGRESS} <= sums.keys() <= {*_FILES}:
        raise DamagedCheckpointError(f"{place / CHECKSUMS}: does not name the checkpoint's files")
    return sums


_FILES = (WEIGHTS, AVERAGE, TRAINING, PROGRESS)


def _read_verified(place: Location, file: str, expected: str) -> bytes:
    try:
        data = (place / file).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DamagedCheckpointError(f"{place}: is not complete ({file} is missing)") from None
    if _sha256(data) != expected:
        raise DamagedCheckpointError(f"{place / file}: its checksum is another than when it was written")
    return data


def _progress(data: bytes, place: Location) -> Progress:
    try:
        content = json.loads(data)
        _PROGRESS.validate_python(content)
        return Progress(**content)
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{place / PROGRESS}: cannot be loaded ({type(error).__name__})") from None


_PROGRESS = TypeAdapter(Progress)


def _copied(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True).contiguous()
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list) else tree


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
