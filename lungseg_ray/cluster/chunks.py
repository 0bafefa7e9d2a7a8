"""Runs work in chunks on Ray Data, for the jobs that read many images independently of one another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, Protocol, TypeVar

import cv2
import pyarrow as pa
import ray
import torch
from pydantic import TypeAdapter

from lungseg_ray.cluster.capacity import Bundle, Capacity, plan_on_cluster, require_cpu
from lungseg_ray.cluster.devices import Call, Devices, calls_to, processes_with_device
from lungseg_ray.cluster.memory import reuse_memory
from lungseg_ray.cluster.planning import cores, tasks_for
from lungseg_ray.cluster.session import nodes_with_cpus
from lungseg_ray.cluster.watchdog import end_if_stalled
from lungseg_ray.errors import JobFailedError, UserError
from lungseg_ray.storage import PATIENCE_SECONDS, retry

Row = TypeVar("Row")
_ERRORS: dict[str, type[Exception]] = {"user": UserError, "job": JobFailedError, "system": OSError}

_MOST_TASKS = 4096
"""With more chunks than this, each task runs several."""
_CHUNKS_OF_A_TASK = 4
"""With processes that have a device, a task runs up to this number of chunks, so that it reads one while the device
computes another."""
_AHEAD = 1
"""The chunks of a task that the device may compute while the task prepares another."""
_CHUNKS, _LEAST, _MOST = 64, 4, 16
"""Chunks have from four to sixteen images, as many as leave 64 chunks or more."""


def chunk_size(images: int, batch: int | None) -> int:
    """Returns how many images a chunk has, such that a cluster can share the chunks evenly.

    Args:
        images: The number of images.
        batch: The images of a forward pass, which the size is then; None where no number is asked for.
    """
    return batch or min(max(images // _CHUNKS // _LEAST * _LEAST, _LEAST), _MOST)


class Work(Protocol):
    """Work on numbered chunks, in three stages.

    One task runs the stages of a chunk. With GPUs, `compute` runs in a process that has one, while the task reads the
    next chunk, so that no GPU waits for a CPU that decodes or encodes.
    """

    def prepare(self, chunk: int) -> tuple[Any, Any]:
        """Reads and decodes a chunk, on a CPU.

        Returns:
            What `finish` needs of it, and what the networks need, which must be small enough to be copied.
        """

    def compute(self, given: Any, device: str, /) -> Any:
        """Runs the networks on it, on the device."""

    def finish(self, prepared: Any, computed: Any) -> list[Any]:
        """Encodes and writes the results, on a CPU, and returns rows."""


class OneStage(ABC):
    """Work on numbered chunks that needs no networks, as `Work`."""

    @abstractmethod
    def run(self, chunk: int) -> list[Any]:
        """Does the work of a chunk, on a CPU, and returns rows."""

    def prepare(self, chunk: int) -> tuple[int, None]:
        """Does nothing."""
        return chunk, None

    def compute(self, given: None, device: str, /) -> None:
        """Does nothing."""
        return given

    def finish(self, prepared: int, computed: None) -> list[Any]:
        """Does the work."""
        return self.run(prepared)


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
        workers: The largest number of processes that run the networks at the same time; 0 for as many as fit, of
            GPUs those that are up when the work starts.
        device: The device that the networks run on: "cpu", "cuda" with one GPU per process, or "auto", which is "cuda"
            if the cluster has a GPU and "cpu" otherwise.
        resource: The resource of Ray that stands for a device other than a CPU.

    Yields:
        The rows, in the order of the chunks.

    Raises:
        JobFailedError: If the work raises it, such as for a shard that is damaged, if nothing moves for
            `STALL_SECONDS`, or if a machine that is needed does not come.
        UserError: If the work raises it, if `device` is "cuda" and the cluster has no GPU and cannot have one, or if
            the same is true of CPUs.
        OSError: If a file cannot be read or written; for a bucket, after `PATIENCE_SECONDS` of repetition.
    """
    planned = plan_on_cluster(partial(_planned, workers, device, resource), _Plan.needs)
    plan = planned.when_up()
    cpus = plan.cpus if planned.grows else min(_cpus_that_compute(), plan.cpus, count)
    if workers and not plan.processes:
        tasks, share = workers if planned.grows else min(workers, plan.cpus, count), 1.0
    elif planned.grows:
        # Where there is no limit, tasks that wait for a CPU make the autoscaler add one.
        tasks, share = None, 1.0
    else:
        tasks, share = tasks_for(cpus, nodes_with_cpus())
    # The work is put into the object store once. Otherwise what it contains, such as the records of a corpus, would be
    # unpickled for each task.
    reference = ray.put(work)
    with ExitStack() as stack:
        processes: Devices = ()
        chunks = 1
        if plan.processes:
            number = min(plan.processes, count)
            if planned.grows and not workers:
                # Those that wait for a device would make the autoscaler add one.
                number = min(number, max(int(ray.available_resources().get(resource, 0)), 1))
            processes = stack.enter_context(processes_with_device(number, resource))
            chunks = min(max(count // (4 * cpus), 1), _CHUNKS_OF_A_TASK)
        networks = _Networks(reference, "cuda" if processes and resource == "GPU" else "cpu")
        # Items instead of a range, whose numbers would be made by tasks of their own.
        blocks = min(-(-count // chunks), _MOST_TASKS)
        done = ray.data.from_items(list(range(count)), override_num_blocks=blocks).map_batches(
            _Task(networks, processes, kind),
            batch_size=None,
            batch_format="pyarrow",
            max_calls=0,
            compute=ray.data.TaskPoolStrategy(size=tasks and min(tasks, blocks)),
            num_cpus=share,
        )
        done.context.execution_options.preserve_order = True
        end_if_stalled(done)
        adapter = TypeAdapter(kind)
        for row in done.iter_rows():
            if row["trouble"]:
                # Tasks return their errors as rows, since an exception would lose its type on the way through Ray.
                raise _ERRORS[row["row"].decode()](row["trouble"])
            found: Row = adapter.validate_json(row["row"])
            yield found


@dataclass(frozen=True)
class _Plan:
    """How a cluster is used.

    Attributes:
        cpus: The logical CPUs for data tasks.
        processes: The number of processes with a device; 0 if the tasks run the networks.
        resource: The resource of Ray that stands for a device.
    """

    cpus: int
    processes: int
    resource: str

    def needs(self) -> list[Bundle]:
        """Returns what a data task needs, and what a process with a device needs if there are such."""
        return [{"CPU": 1}, *([{self.resource: 1.0}] if self.processes else [])]


def _planned(workers: int, device: Literal["auto", "cpu", "cuda"], resource: str, has: Capacity) -> _Plan:
    devices = has.gpus if resource == "GPU" else int(ray.cluster_resources().get(resource, 0))
    if device == "cuda" and not devices:
        raise UserError("device = cuda needs a GPU; the cluster has none. Use device = cpu.")
    require_cpu(has)
    return _Plan(has.cpus, 0 if device == "cpu" else min(workers or devices, devices), resource)


def _cpus_that_compute() -> int:
    """Returns the CPUs of all nodes; for the node of this process, no more than it has cores.

    A local cluster has more logical CPUs than cores, where it needs one for each process of a training.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [(node["NodeID"], int(node["Resources"].get("CPU", 0))) for node in ray.nodes() if node["Alive"]]
    return max(sum(min(cpus, cores()) if node == here else cpus for node, cpus in nodes), 1)


@dataclass(frozen=True)
class _Networks:
    """Runs the networks of the work, in the process that has the device.

    Attributes:
        reference: A reference to the work.
        device: The device to compute on.
    """

    reference: ray.ObjectRef
    device: str

    def __call__(self, given: Any) -> Any:
        if self.device == "cpu":
            _use_one_thread()
        return _patiently(_unpacked(self.reference).compute, given, self.device)


@dataclass(frozen=True)
class _Task:
    """Runs the work on some chunks, and returns its rows as JSON.

    Attributes:
        networks: What runs the networks.
        processes: The processes that run it; if there are none, the task does.
        kind: The type of the rows.
    """

    networks: _Networks
    processes: Devices
    kind: Any

    def __call__(self, batch: pa.Table) -> pa.Table:
        _use_one_thread()
        chunks = batch.column("item").to_pylist()
        try:
            rows = [row for found in self._run(chunks) for row in found]
        except tuple(_ERRORS.values()) as error:
            kind = next(name for name, known in _ERRORS.items() if isinstance(error, known))
            return _table([kind.encode()], [str(error) or kind])
        encode = _adapter(self.kind).dump_json
        return _table([encode(row) for row in rows], [""] * len(rows))

    def _run(self, chunks: list[int]) -> Iterator[list[Any]]:
        """Yields the rows of each chunk."""
        work = _unpacked(self.networks.reference)
        if not self.processes:
            for chunk in chunks:
                prepared, given = _patiently(work.prepare, chunk)
                yield _patiently(work.finish, prepared, self.networks(given))
            return
        calls = calls_to(self.processes)
        running: deque[tuple[Any, Call]] = deque()
        for chunk in chunks:
            prepared, given = _patiently(work.prepare, chunk)
            running.append((prepared, calls.start(self.networks, given)))
            if len(running) > _AHEAD:
                prepared, call = running.popleft()
                yield _patiently(work.finish, prepared, calls.result(call))
        for prepared, call in running:
            yield _patiently(work.finish, prepared, calls.result(call))


def _use_one_thread() -> None:
    """Lets this process compute in one thread, so that the order of a summation does not depend on how many run."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    reuse_memory()


def _patiently(stage: Callable[..., Any], *given: Any) -> Any:
    return retry(lambda: stage(*given), seconds=PATIENCE_SECONDS)


def _table(rows: list[bytes], trouble: list[str]) -> pa.Table:
    return pa.table({"row": pa.array(rows, pa.large_binary()), "trouble": pa.array(trouble, pa.string())})


@lru_cache(maxsize=1)
def _unpacked(work: ray.ObjectRef) -> Work:
    found: Work = ray.get(work)
    return found


@lru_cache(maxsize=8)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
