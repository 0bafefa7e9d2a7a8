"""Runs work in chunks on Ray Data, for the jobs that read many images independently of one another."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeVar

import cv2
import pyarrow as pa
import ray
import torch
from pydantic import TypeAdapter

from lungseg_ray.cluster.memory import reuse_memory
from lungseg_ray.cluster.planning import cores
from lungseg_ray.cluster.session import available
from lungseg_ray.errors import JobFailedError, UserError
from lungseg_ray.storage import PATIENCE_SECONDS, retry

Row = TypeVar("Row")
_ERRORS: dict[str, type[Exception]] = {"user": UserError, "job": JobFailedError, "system": OSError}


_MOST_TASKS = 4096
"""With more chunks than this, a task runs several."""


class Work(Protocol):
    """Work on numbered chunks, in three stages.

    On CPUs, one task runs all stages of a chunk. With GPUs, the stages run in different processes, so that no GPU waits
    for a CPU that decodes or encodes. What a stage returns must be small enough to be copied.
    """

    def prepare(self, chunk: int) -> Any:
        """Reads and decodes a chunk, on a CPU."""

    def compute(self, prepared: Any, device: str, /) -> Any:
        """Runs the networks on it, on the device."""

    def finish(self, computed: Any) -> list[Any]:
        """Encodes and writes the results, on a CPU, and returns rows."""


def map_chunks(
    work: Work,
    count: int,
    kind: type[Row],
    *,
    workers: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    resource: str = "GPU",
) -> Iterator[Row]:
    """Runs work on Ray Data, and yields the rows that its chunks return.

    A process runs many tasks in succession, so that what the work caches in it serves many chunks. A stage that fails
    because a bucket cannot be used is repeated for up to `PATIENCE_SECONDS`.

    Args:
        work: The work.
        count: The number of chunks.
        kind: The type of the rows: a data class, or a union of data classes, whose fields JSON can encode.
        workers: The largest number of processes that run the networks at the same time; 0 for as many as fit.
        device: The device that the networks run on: "cpu", "cuda" with one GPU per process, or "auto", which is "cuda"
            if the cluster has a GPU and "cpu" otherwise.
        resource: The resource of Ray that stands for a device other than a CPU.

    Yields:
        The rows, in the order of the chunks.

    Raises:
        JobFailedError: If the work raises it, such as for a shard that is damaged.
        UserError: If the work raises it, if `device` is "cuda" and the cluster has no GPU, or if the cluster has no
            CPU.
        OSError: If a file cannot be read or written; for a bucket, after `PATIENCE_SECONDS` of repetition.
    """
    cpus, _ = available()
    devices = int(ray.cluster_resources().get(resource, 0))
    if device == "cuda" and not devices:
        raise UserError("device = cuda needs a GPU; the cluster has none. Use device = cpu.")
    if cpus < 1:
        raise UserError(
            "The cluster has no CPU for this work at the moment. Add a node, or ask an autoscaled cluster for one with "
            "ray.autoscaler.sdk.request_resources."
        )
    # The work is put into the object store once. Otherwise what it contains, such as the records of a corpus, would be
    # unpickled for each chunk.
    reference = ray.put(work)
    if device == "cpu" or not devices:
        chunks = ray.data.range(count, override_num_blocks=min(count, _MOST_TASKS))
        size = min(workers or _cpus_that_compute(), cpus, count)
        stage = _Stage(reference, ("prepare", "compute", "finish"), "cpu", kind)
        done = _map(chunks, stage, compute=ray.data.TaskPoolStrategy(size=size))
    else:
        actors = min(workers or devices, devices, count)
        options: dict[str, Any] = {"num_gpus": 1} if resource == "GPU" else {"resources": {resource: 1}}
        chunks = ray.data.range(count, override_num_blocks=count)
        prepared = _map(chunks, _Stage(reference, ("prepare",), "cpu", None))
        computed = prepared.map_batches(
            _Device,
            fn_constructor_args=(_Stage(reference, ("compute",), "cuda" if resource == "GPU" else "cpu", None),),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=0,
            **options,
        )
        done = _map(computed, _Stage(reference, ("finish",), "cpu", kind))
    done.context.execution_options.preserve_order = True
    adapter = TypeAdapter(kind)
    for row in done.iter_rows():
        if row["trouble"]:
            # Tasks return their errors as rows, since an exception would lose its type on the way through Ray.
            raise _ERRORS[row["row"].decode()](row["trouble"])
        found: Row = adapter.validate_json(row["row"])
        yield found


def _map(data: ray.data.Dataset, stage: _Stage, **options: Any) -> ray.data.Dataset:
    return data.map_batches(stage, batch_size=None, batch_format="pyarrow", max_calls=0, **options)


def _cpus_that_compute() -> int:
    """Returns the CPUs of all nodes; for the node of this process, no more than it has cores.

    A local cluster has more logical CPUs than cores, where it needs one for each process of a training.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [(node["NodeID"], int(node["Resources"].get("CPU", 0))) for node in ray.nodes() if node["Alive"]]
    return max(sum(min(cpus, cores()) if node == here else cpus for node, cpus in nodes), 1)


@dataclass(frozen=True)
class _Stage:
    """Runs stages of the work, one after the other; the rows of the last one are JSON, other results are pickled.

    Attributes:
        work: A reference to the work.
        names: The stages.
        device: The device to compute on.
        kind: The type of the rows; None if these stages return none.
    """

    work: ray.ObjectRef
    names: tuple[str, ...]
    device: str
    kind: Any

    def __call__(self, batch: pa.Table) -> pa.Table:
        cv2.setNumThreads(0)
        if self.device == "cpu":
            # Each process uses one thread, so that the order of a summation does not depend on the number of processes.
            torch.set_num_threads(1)
            reuse_memory()
        if "trouble" in batch.column_names and any(batch.column("trouble").to_pylist()):
            return batch
        try:
            results = [self._run(given) for given in self._given(batch)]
        except tuple(_ERRORS.values()) as error:
            kind = next(name for name, known in _ERRORS.items() if isinstance(error, known))
            return _table([kind.encode()], [str(error) or kind])
        if self.kind is None:
            encoded = [pickle.dumps(result, protocol=5) for result in results]
        else:
            encoded = [_adapter(self.kind).dump_json(row) for rows in results for row in rows]
        return _table(encoded, [""] * len(encoded))

    @staticmethod
    def _given(batch: pa.Table) -> list[Any]:
        if "id" in batch.column_names:
            return batch.column("id").to_pylist()
        # These are results of the stage before, which come from this job alone.
        return [pickle.loads(row.as_buffer()) for row in batch.column("row")]

    def _run(self, result: Any) -> Any:
        work = _unpacked(self.work)
        for name in self.names:
            result = self._patiently(work, name, result)
        return result

    def _patiently(self, work: Any, name: str, given: Any) -> Any:
        arguments = (given, self.device) if name == "compute" else (given,)
        return retry(lambda: getattr(work, name)(*arguments), seconds=PATIENCE_SECONDS)


class _Device:
    """Runs a stage in an actor, which keeps the networks on its device."""

    def __init__(self, stage: _Stage) -> None:
        self._stage = stage

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self._stage(batch)


def _table(rows: list[bytes], trouble: list[str]) -> pa.Table:
    return pa.table({"row": pa.array(rows, pa.large_binary()), "trouble": pa.array(trouble, pa.string())})


@lru_cache(maxsize=1)
def _unpacked(work: ray.ObjectRef) -> Work:
    found: Work = ray.get(work)
    return found


@lru_cache(maxsize=8)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
