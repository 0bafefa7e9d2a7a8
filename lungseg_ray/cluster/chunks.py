"""Runs work in chunks on Ray Data tasks, for the jobs that read many images independently of one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

import cv2
import pyarrow as pa
import ray
import torch
from pydantic import TypeAdapter

from lungseg_ray.cluster.planning import cores
from lungseg_ray.cluster.session import available
from lungseg_ray.errors import JobFailedError, UserError
from lungseg_ray.storage import PATIENCE_SECONDS, retry

Row = TypeVar("Row")
_ERRORS: dict[str, type[Exception]] = {"user": UserError, "job": JobFailedError, "system": OSError}


def map_chunks(
    work: Callable[[int, str], list[Row]],
    count: int,
    kind: type[Row],
    *,
    workers: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Iterator[Row]:
    """Runs work in Ray Data tasks, one chunk per task, and yields the rows that the chunks return.

    A process runs many tasks in succession, so that what the work caches in it serves many chunks. A chunk that fails
    because a bucket cannot be used is repeated for up to `PATIENCE_SECONDS`.

    Args:
        work: The function to run. It takes the number of a chunk, 0 to `count` - 1, and the device to compute on,
            "cpu" or "cuda". It returns rows.
        count: The number of chunks.
        kind: The type of the rows: a data class, or a union of data classes, whose fields JSON can encode.
        workers: The largest number of tasks that run at the same time; 0 for as many as fit.
        device: The device that the tasks compute on: "cpu", "cuda" with one GPU per task, or "auto", which is "cuda"
            if the cluster has a GPU and "cpu" otherwise.

    Yields:
        The rows, in the order in which the chunks finish.

    Raises:
        JobFailedError: If the work raises it, such as for a shard that is damaged.
        UserError: If the work raises it, if `device` is "cuda" and the cluster has no GPU, or if the cluster has no
            CPU.
        OSError: If a file cannot be read or written; for a bucket, after `PATIENCE_SECONDS` of repetition.
    """
    cpus, gpus = available()
    if device == "cuda" and not gpus:
        raise UserError("device = cuda needs a GPU; the cluster has none. Use device = cpu.")
    on_gpu = device != "cpu" and gpus > 0
    if cpus < 1:
        raise UserError(
            "The cluster has no CPU for this work at the moment. Add a node, or ask an autoscaled cluster for one with "
            "ray.autoscaler.sdk.request_resources."
        )
    fit = gpus if on_gpu else max(min(cpus, cores()), 1)
    done = ray.data.range(count, override_num_blocks=count).map_batches(
        # The work is put into the object store once. Otherwise what it contains, such as the records of a corpus,
        # would be unpickled for each chunk.
        _ChunkTask(ray.put(work), kind, "cuda" if on_gpu else "cpu"),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=min(workers or fit, cpus, count)),
        num_gpus=1 if on_gpu else None,
        max_calls=0,
    )
    adapter = TypeAdapter(kind)
    for row in done.iter_rows():
        if row["trouble"]:
            # Tasks return their errors as rows, since an exception would lose its type on the way through Ray.
            raise _ERRORS[row["row"].decode()](row["trouble"])
        found: Row = adapter.validate_json(row["row"])
        yield found


@dataclass(frozen=True)
class _ChunkTask:
    work: ray.ObjectRef
    kind: Any
    device: str

    def __call__(self, batch: pa.Table) -> pa.Table:
        cv2.setNumThreads(0)
        if self.device == "cpu":
            # Each process uses one thread, so that the order of a summation does not depend on the number of processes.
            torch.set_num_threads(1)
        try:
            rows = [row for number in batch.column("id").to_pylist() for row in self._patiently(number)]
        except tuple(_ERRORS.values()) as error:
            kind = next(name for name, known in _ERRORS.items() if isinstance(error, known))
            return pa.table({"row": pa.array([kind.encode()], pa.binary()), "trouble": [str(error) or kind]})
        encoded = [_adapter(self.kind).dump_json(row) for row in rows]
        return pa.table({"row": pa.array(encoded, pa.binary()), "trouble": [""] * len(rows)})

    def _patiently(self, number: int) -> list[Any]:
        return retry(lambda: _unpacked(self.work)(number, self.device), seconds=PATIENCE_SECONDS)


@lru_cache(maxsize=1)
def _unpacked(work: ray.ObjectRef) -> Callable[[int, str], list[Any]]:
    return ray.get(work)


@lru_cache(maxsize=8)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
