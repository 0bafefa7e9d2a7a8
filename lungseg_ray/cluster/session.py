"""The connection of a job to a Ray cluster, and the resources of that cluster."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import ray
import ray.data
from ray._private import auto_init_hook, ray_constants
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

from lungseg_ray.cluster.answers import check_answers, no_answer
from lungseg_ray.cluster.planning import cores, data_tasks
from lungseg_ray.errors import UserError
from lungseg_ray.termination import interrupt, interrupt_on_signals, report_now, undisturbed

_TEMPORARY = "/tmp"
_READER = "iter_threaded"
"""The name of the threads in which Ray Data prepares what is read."""
_READER_SECONDS = 2.0
_LEFT_SECONDS = 5.0
"""Seconds after the end of a local cluster for which its processes may still end by themselves."""
_STOPPING = "Ray is stopping; the job ends after that."
LONGEST_FOLDER = 36
"""The longest path of the folder for temporary files, bytes: a socket's has at most 107, of which Ray takes 71."""


@contextmanager
def cluster(*, processes: int) -> Iterator[None]:
    """Provides a Ray cluster for the duration of the block.

    It is the cluster that this process is connected to already, else the one that `RAY_ADDRESS` names, else a local
    one that is started here. A local cluster has a logical CPU for each process and at least one for the data, whatever
    the number of cores, and is stopped at the end of the block. The other two keep running.

    Args:
        processes: The number of training or evaluation processes that need a CPU each.

    Raises:
        UserError: If the cluster that `RAY_ADDRESS` names does not answer or does not take this process, or if a local
            cluster does not start.
    """
    if ray.is_initialized():
        quiet_data()
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            check_answers(address)
            _start(**quiet)
        else:
            with _closed_to_others(), _without_idle_processes():
                _start(
                    address="local",
                    num_cpus=max(cores(), processes + 1),
                    include_dashboard=False,
                    _temp_dir=_short_folder(),
                    **quiet,
                )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        found = no_answer(address, str(error)) if address else f"Ray does not start on this machine: {error}"
        raise UserError(found) from error
    try:
        quiet_data()
        yield
    except BaseException as error:
        # Threads that wait for Ray go on when it ends, and Ray ends the process of one that calls it then.
        report_now(error)
        _end_reading(error)
        raise
    finally:
        _stop()


@contextmanager
def _without_idle_processes() -> Iterator[None]:
    """Lets a local cluster start without processes of Ray that it does not use, whose imports take a second on 2 cores.

    They are the monitor of the autoscaler, the reader of the workers' logs, and the server of the dashboard, which Ray
    starts even where it is to have no dashboard.
    """
    node = ray._private.node.Node
    before = {name: getattr(node, name) for name in ("start_monitor", "start_log_monitor", "start_api_server")}
    for name in before:
        setattr(node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(node, name, method)


def _start(**options: Any) -> None:
    """Calls `ray.init`, which a signal must not leave half-done, and keeps the handlers of signals as they are.

    Ray's own handler of SIGTERM exits from wherever the process is, which its C++ code does not always survive.

    Raises:
        KeyboardInterrupt: If a signal arrives. Ray is stopped then.
    """
    set_handler = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda _: None
    # What Ray starts inherits the mask, so that Ctrl-C and a terminal that is closed do not end it before the job.
    terminal = {signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, terminal)
    try:
        with undisturbed("Ray is starting; the job ends after that.") as received:
            ray.init(**options)
    finally:
        ray._private.utils.set_sigterm_handler = set_handler
        signal.pthread_sigmask(signal.SIG_UNBLOCK, terminal)
    # The C++ part of Ray has a handler, too.
    interrupt_on_signals()
    if received:
        _stop()
        interrupt(received[0])


def _end_reading(error: BaseException) -> None:
    """Closes the iterators over Ray's data that an exception has left open, and waits for their threads.

    A thread that asks Ray for data after Ray has ended ends this process, before the exception becomes a message.
    """
    left: BaseException | None = error
    while left:
        # Iterators are open as long as the frames of the traceback refer to them.
        traceback.clear_frames(left.__traceback__)
        left = left.__context__
    for thread in threading.enumerate():
        if thread.name == _READER:
            thread.join(_READER_SECONDS)


def _stop() -> None:
    """Calls `ray.shutdown`, which a signal must not leave half-done."""
    node = ray._private.worker._global_node
    workers = _workers_of(node) if node else []
    if node:
        kill = node.kill_all_processes

        def kill_undisturbed(*arguments: Any, **options: Any) -> None:
            # The C++ part of Ray has just removed its handler of SIGTERM, and with it that of this process.
            with undisturbed(_STOPPING):
                kill(*arguments, **options)

        node.kill_all_processes = kill_undisturbed
    # A thread that was waiting for Ray must not start another cluster when it goes on.
    auto_init_hook.enable_auto_connect = False
    with undisturbed(_STOPPING):
        ray.shutdown()
        _, left = psutil.wait_procs(workers, timeout=_LEFT_SECONDS)
        for process in left:
            with suppress(psutil.Error):
                process.kill()
    # The next cluster of this process may have another token.
    AuthenticationTokenLoader.instance().reset_cache()


def _workers_of(node: Any) -> list[psutil.Process]:
    """Returns the processes in which a local cluster runs tasks and actors, which end by themselves when it does.

    Seldom, the C++ part of Ray waits for itself in the end of such a process, which would then be left for ever.
    """
    found: list[psutil.Process] = []
    for raylet in node.all_processes.get(ray_constants.PROCESS_TYPE_RAYLET, []):
        with suppress(psutil.Error):
            found += psutil.Process(raylet.process.pid).children(recursive=True)
    return found


@contextmanager
def _closed_to_others() -> Iterator[None]:
    """Lets a local cluster that starts in the block listen on the loopback address alone, with a token of its own.

    Ray listens there where it takes it for granted that no other machine will join, as on macOS. Elsewhere it listens
    on all addresses, and asks the system for the route to a public one. It asks for a token by default, but writes it
    into a file that every user of the machine can read.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    # Ray itself sets the mode where it is not set.
    names = (ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "RAY_AUTH_TOKEN", "RAY_AUTH_MODE")
    in_environment = {name: os.environ.get(name) for name in names}
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        for name, value in in_environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _short_folder() -> str | None:
    """Returns a folder for the files of a local cluster, if the usual one has too long a path for the sockets in it.

    Raises:
        UserError: If there is no other folder.
    """
    # Ray writes to RAY_TMPDIR, or else to TMPDIR.
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    folder = os.environ.get(name) or _TEMPORARY
    if len(os.fsencode(folder)) <= LONGEST_FOLDER:
        return None
    if name == "TMPDIR" and os.access(_TEMPORARY, os.W_OK | os.X_OK):
        return f"{_TEMPORARY}/ray"
    raise UserError(
        f"{name}: expected a path of at most {LONGEST_FOLDER} bytes, found {len(os.fsencode(folder))}, too many for "
        "the sockets of Ray. Set RAY_TMPDIR to a shorter folder."
    )


def quiet_data() -> None:
    """Removes the progress bars of Ray Data from the output of this process and of those that it starts."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def nodes_with_cpus() -> int:
    """Returns the number of nodes of the connected cluster that have a CPU."""
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes())


def available() -> tuple[int, int]:
    """Returns the logical CPUs and the GPUs of the connected cluster, each rounded down to a whole number."""
    found = ray.cluster_resources()
    return int(found.get("CPU", 0)), int(found.get("GPU", 0))


def tasks_left(workers: int, cpus_per_worker: int) -> int:
    """Returns for how many data tasks of each worker the connected cluster has CPUs now, as `data_tasks`.

    Args:
        workers: The number of training workers.
        cpus_per_worker: The logical CPUs that each of them occupies.
    """
    return data_tasks(available()[0], workers, cpus_per_worker)
