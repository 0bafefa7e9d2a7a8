"""Processes that have a device each, and the calls of data tasks to them.

Ray Data can run such processes as a stage of its own, but it keeps CPUs free for each stage: of two CPUs, only one
would decode. And what a data task reads would travel to the device and from there to a third process.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from lungseg_ray.errors import JobFailedError

_ATTEMPTS = 3
"""How often in succession a call may lose its process."""

_Function = Callable[[Any], Any]


class _Process:
    """A process with a device, which keeps what the functions cache in it, such as networks."""

    def node(self) -> str:
        """Returns the identifier of the node that the process runs on, as soon as it runs."""
        return ray.get_runtime_context().get_node_id()

    def run(self, function: _Function, given: Any) -> Any:
        """Calls the function."""
        return function(given)


Devices = tuple["ActorHandle[_Process]", ...]
"""The processes."""


@contextmanager
def processes_with_device(count: int, resource: str) -> Iterator[Devices]:
    """Starts processes that have a device each, without waiting for them, and ends them afterwards.

    A process that ends by itself is started anew, on another node if need be.

    Args:
        count: The number of processes.
        resource: The resource of Ray that stands for a device, of which each process takes one.

    Yields:
        The processes.
    """
    options: dict[str, Any] = {"num_gpus": 1} if resource == "GPU" else {"resources": {resource: 1}}
    process = ray.remote(num_cpus=0, max_restarts=-1, **options)(_Process)
    devices = tuple(process.remote() for _ in range(count))
    try:
        yield devices
    finally:
        # Tasks that ran have references in their processes, which would keep the devices occupied.
        for device in devices:
            with suppress(ray.exceptions.RayError, ValueError):
                ray.kill(device)


@dataclass(frozen=True)
class Call:
    """A call that runs.

    Attributes:
        number: The process that runs it.
        result: A reference to its result.
        function: The function.
        given: The argument of the function.
    """

    number: int
    result: ray.ObjectRef
    function: _Function
    given: Any


class Calls:
    """The calls of a data task to processes with a device.

    A call goes to a process that runs already, on the node of the task if there is one.

    Args:
        devices: The processes.
    """

    def __init__(self, devices: Devices) -> None:
        self._devices = devices
        self._here = ray.get_runtime_context().get_node_id()
        self._nodes = {self._ask(number): number for number in range(len(devices))}
        # Tasks do not know of each other, so they do not all begin with the same process.
        self._turn = random.randrange(len(devices))

    def start(self, function: _Function, given: Any) -> Call:
        """Starts a call.

        Args:
            function: The function, which Ray can pickle; it runs in the process.
            given: Its argument.
        """
        number = self._next()
        result = self._devices[number].run.remote(function, given)
        return Call(number, result, function, given)

    def result(self, call: Call) -> Any:
        """Waits for the result of a call. A call whose process ends is made again, by any of the processes.

        Raises:
            JobFailedError: If a process ends in each of `_ATTEMPTS` attempts.
            Exception: What the function raises.
        """
        for _ in range(_ATTEMPTS):
            try:
                return ray.get(call.result)
            except RayTaskError as error:
                raise error.cause from None
            except (RayActorError, ObjectLostError) as error:
                reason = str(error).splitlines()[0]
                self._forget(call.number)
                call = self.start(call.function, call.given)
        raise JobFailedError(
            f"The process that runs the networks ended {_ATTEMPTS} times in succession while it computed the same "
            f"images ({reason}). Look at the memory of its node, or use a smaller batch."
        )

    def _ask(self, number: int) -> ray.ObjectRef:
        return self._devices[number].node.options(max_task_retries=-1).remote()

    def _forget(self, number: int) -> None:
        """Sends no more calls to a process until it answers anew."""
        self._nodes = {asked: other for asked, other in self._nodes.items() if other != number}
        self._nodes[self._ask(number)] = number

    def _next(self) -> int:
        """Returns the process for the next call: in turn those on this node, or all, as far as they run."""
        asked = [*self._nodes]
        running, _ = ray.wait(asked, num_returns=len(asked), timeout=0)
        if not running:
            running, _ = ray.wait(asked, num_returns=1)
        nodes = dict(zip((self._nodes[one] for one in running), ray.get(running), strict=True))
        near = [number for number, node in nodes.items() if node == self._here] or [*nodes]
        self._turn += 1
        return near[self._turn % len(near)]


@lru_cache(maxsize=1)
def calls_to(devices: Devices) -> Calls:
    """Returns the calls of this process to processes with a device."""
    return Calls(devices)
