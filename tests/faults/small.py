"""A run that is small enough to be killed again and again, and what is left of it."""

from __future__ import annotations

import csv
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)

from lungseg_ray.run import checkpoint
from lungseg_ray.storage import Location, locate
from tests.helpers import find_damage
from tests.processes import Job, processes, wait_until

STEPS = 12
"""Steps of an epoch."""
TIMINGS = ("images_per_second", "data_wait_share", "checkpoint_wait", "train_seconds", "seconds", "memory_gib")
CORPUS = ("--corpus.phantom.count", "60", "--corpus.phantom.size", "96", "--shards.rows", "7")
SIZE = (
    *("--feed.size", "64", "--feed.batch", "4", "--feed.window", "2"),
    *("--model.architecture", "Linknet", "--model.encoder", "timm-regnety_002"),
    *("--train.precision", "fp32", "--train.threads", "1", "--evaluate.resamples", "20", "--evaluate.robustness", "0"),
    *("--optim.schedule", "plateau", "--optim.patience", "1", "--train.average", "0.9"),
)


def shard_job(shards: str, **options: Any) -> Job:
    return Job("shard.py", "--shards.root", shards, *CORPUS, **options)


def train_job(
    root: Path | str, name: str, shards: Path | str, *more: str, epochs: int = 6, workers: int = 2, **options: Any
) -> Job:
    """The job of a run of 12 steps an epoch, which keeps a checkpoint every 3 steps."""
    return Job(
        "train.py",
        *("--runs.root", str(root), "--runs.name", name, "--shards.root", str(shards), *SIZE),
        *("--train.epochs", str(epochs), "--train.workers", str(workers), "--checkpoint.every_steps", "3"),
        *more,
        **options,
    )


def kept_steps(run: Location) -> list[int]:
    """The steps of the run's checkpoints that are whole, the newest first."""
    return [checkpoint.step_of(place) for place in checkpoint.list_checkpoints(run) if find_damage(place) is None]


def newest_step(run: Location) -> int:
    return next(iter(kept_steps(run)), 0)


def reached(run: Location, step: int, job: Job, *, seconds: float = 120) -> None:
    """Waits until the run has a checkpoint of that step or a later one."""
    assert wait_until(lambda: newest_step(run) >= step or job.process.poll() is not None, seconds=seconds), job.output
    assert job.process.poll() is None, job.output


def went_on(job: Job, since: float, *, times: int = 2) -> tuple[float, int]:
    """Seconds from `since` until training started for the n-th time, and the step that it started after."""
    at = job.saw(r"^Training from", seconds=180, times=times)
    line = [line for _, line in job.lines if line.startswith("Training from")][times - 1]
    found = re.search(r"from epoch (\d+)(?:, step (\d+) of \d+)?", line)
    assert found, line
    return at - since, (int(found.group(1)) - 1) * STEPS + int(found.group(2) or 1) - 1


def history(run: Location) -> list[dict[str, float]]:
    """The figures of the finished epochs but the timings."""
    rows = csv.DictReader((run / "history.csv").read_text().splitlines())
    return [{key: float(value) for key, value in row.items() if key not in TIMINGS} for row in rows]


def assert_whole(run: Location, *, epochs: int = 6) -> None:
    """The run is finished, and its history has each epoch once."""
    assert [row["epoch"] for row in history(run)] == list(range(1, epochs + 1))
    assert [row["step"] for row in history(run)] == [STEPS * epoch for epoch in range(1, epochs + 1)]
    assert (run / "summary.json").exists()
    assert all(find_damage(place) is None for place in checkpoint.list_checkpoints(run))


def train_workers(job: Job | None = None) -> list[int]:
    """Process ids of the training workers, of one job's own cluster or of all."""
    own = job.descendants() if job else None
    return sorted(
        pid
        for pid, command in processes().items()
        if command.startswith("ray::RayTrainWorker") and (own is None or pid in own)
    )


def raylets() -> list[int]:
    return sorted(pid for pid, command in processes().items() if "/raylet/raylet " in command)


class Cluster:
    """A Ray cluster of its own head and further nodes, all on this machine, started as a user starts them.

    Args:
        folder: of its logs.
        cpus: logical CPUs of the head.
        environment: of its processes.
        python: that runs it, and stands first on the PATH of its jobs.
        metrics_port: where Prometheus finds the head's figures; 0 for any port.
        host: the address of the head.
        within: what comes before a command that is to run on the machine of the head.
        types: of further nodes, which Ray's autoscaler starts and ends; without them it has none.
        version: of the autoscaler; Ray has two.

    Attributes:
        address: for `RAY_ADDRESS`.
        dashboard: to submit jobs to.
        environment: of processes that use it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cpus: int,
        environment: Mapping[str, str] | None = None,
        python: Path = Path(sys.executable),
        metrics_port: int = 0,
        types: Mapping[str, Mapping[str, Any]] | None = None,
        version: int = 1,
        host: str = "127.0.0.1",
        within: Sequence[str] = (),
    ) -> None:
        self._python = python
        self._within = within
        self._types = types
        self._nodes: list[subprocess.Popen[str]] = []
        self._folder = folder
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        path = f"{python.parent}:{os.environ['PATH']}"
        own = {**(environment or {}), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self._started = {**os.environ, **own, "PATH": path}
        self._started.pop("RAY_ADDRESS", None)
        self.address = f"{host}:6391"
        self.dashboard = f"http://{host}:8276"
        self.environment = {**own, "RAY_ADDRESS": self.address}
        head: tuple[str, ...] = ("--head", "--port", "6391", "--dashboard-port", "8276", "--node-ip-address", host)
        if metrics_port:
            head = (*head, "--metrics-export-port", str(metrics_port))
        if types:
            config = folder / "autoscaler.json"
            config.write_text(json.dumps(autoscaled(types, self.address, version)))
            head = (*head, "--autoscaling-config", str(config))
            self._started["RAY_FAKE_CLUSTER"] = "1"
        second = {
            "RAY_enable_autoscaler_v2": "1",
            "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
            **dict.fromkeys(("RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING"), FAKE_HEAD_NODE_ID),
        }
        if version == 2:
            # The autoscaler must know which of its nodes is the head, which Ray's cluster launcher tells it.
            self._started |= second
        self._start("head", *head, "--num-cpus", str(cpus), within=within)

    def _start(self, name: str, *arguments: str, within: Sequence[str] = ()) -> int:
        before = set(raylets())
        log = (self._folder / f"{name}.log").open("w")
        command = (str(self._python), "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
        node = subprocess.Popen(
            [*within, *command, *arguments],
            env=self._started,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._nodes.append(node)
        text = self._folder / f"{name}.log"
        assert wait_until(lambda: "Ray runtime started" in text.read_text() or node.poll() is not None, seconds=60)
        assert node.poll() is None, text.read_text()
        (raylet,) = set(raylets()) - before
        return raylet

    def add_node(self, *, cpus: int, gpus: int = 0, host: str = "", within: Sequence[str] = ()) -> int:
        """Adds a node, on a machine of its own if one is given; the process id of its raylet."""
        own = ("--num-gpus", str(gpus), *(("--node-ip-address", host) if host else ()))
        name = f"node{len(self._nodes)}"
        return self._start(name, "--address", self.address, "--num-cpus", str(cpus), *own, within=within)

    @property
    def started(self) -> dict[str, str]:
        """The environment of a process that joins the cluster."""
        return {**self._started, "RAY_ADDRESS": self.address}

    def nodes(self) -> dict[str, int]:
        """The CPUs of each living node, by its id."""
        look = "import json, ray; ray.init(log_to_driver=False, logging_level=50); print(json.dumps(ray.nodes()))"
        nodes = json.loads(self._run("-c", look).splitlines()[-1])
        return {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]}

    def announce_loss(self, node: str, *, seconds: int) -> None:
        """Tells the cluster, as a cloud does, that a node will be taken away."""
        why = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--node-id", node)
        deadline = ("--deadline-remaining-seconds", str(seconds))
        self._run("-m", "ray.scripts.scripts", "drain-node", "--address", self.address, *why, *deadline)

    def _run(self, *arguments: str) -> str:
        command = [*self._within, str(self._python), *arguments]
        done = subprocess.run(command, env=self.started, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        own = {pid for node in self._nodes for pid in Job.below(node.pid)} if self._types else set()
        for node in reversed(self._nodes):
            if node.poll() is None:
                # It ends the processes of the node itself; if they got the signal, too, it would wait for them in vain.
                node.terminate()
        for node in self._nodes:
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
        # Nodes that an autoscaler has started would look for their head for a minute.
        for pid in own & processes().keys():
            os.kill(pid, signal.SIGKILL)


def autoscaled(types: Mapping[str, Mapping[str, Any]], address: str, version: int) -> dict[str, Any]:
    """The configuration of an autoscaler that starts nodes as processes of this machine.

    Args:
        types: of nodes, each with `resources` and `max_workers`.
        address: of the head.
        version: of the autoscaler.
    """
    nodes = {name: {"node_config": {}, "min_workers": 0, **content} for name, content in types.items()}
    lists = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands")
    starts = ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    return {
        "cluster_name": "machines",
        "max_workers": sum(content["max_workers"] for content in types.values()),
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 0.1,
        "provider": {
            # By its name in Ray, the provider would want a file that Ray's wheel does not have.
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
            "gcs_address": address,
            **({"launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID} if version == 2 else {}),
            **dict.fromkeys(("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check"), True),
        },
        "auth": {},
        "docker": {},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **nodes,
        },
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in (*lists, *starts)},
    }


@contextmanager
def small_disk(folder: Path, *, megabytes: int) -> Iterator[Path]:
    """A file system of its own in memory, of that size; needs the rights to mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def place(root: Path | str, name: str) -> Location:
    return locate(str(root)) / name


def now() -> float:
    return time.monotonic()
