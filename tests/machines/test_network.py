"""Training over machines that share nothing but a bucket, when one of them cannot be reached, or only slowly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lungseg_ray.run.folder import Run
from lungseg_ray.storage import locate
from tests.faults.small import Cluster, assert_whole, reached, shard_job, train_job
from tests.machines.network import INTERFACE, SWITCH, SWITCH_HOST, Machine, Network, can_be_made
from tests.processes import ray_processes, wait_until
from tests.storage.object_store import ObjectStore

BUCKET = "s3://lungs/machines"
ORDINARY = (0.0, 0.0)

pytestmark = pytest.mark.skipif(not can_be_made(), reason="network namespaces need the rights of root")


@contextmanager
def three_machines(
    folder: Path, monkeypatch: pytest.MonkeyPatch, slow: tuple[float, float] = ORDINARY
) -> Iterator[tuple[Cluster, list[Machine]]]:
    """A head without CPUs and two nodes with two CPUs each, the second of them behind a wire of its own kind."""
    before = ray_processes()
    with Network([ORDINARY, ORDINARY, slow]) as network, ObjectStore(folder / "store", host=SWITCH_HOST) as store:
        store.create_bucket("lungs")
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        head, *others = network.machines
        environment = {**store.environment, "GLOO_SOCKET_IFNAME": INTERFACE}
        with Cluster(folder, cpus=0, environment=environment, host=head.host, within=head.within) as cluster:
            for machine in others:
                cluster.add_node(cpus=2, host=machine.host, within=machine.within)
            yield cluster, network.machines
        assert wait_until(lambda: ray_processes() <= before, seconds=150), "Ray was left behind"
    assert not Path(f"/sys/class/net/{SWITCH}").exists()


def options(cluster: Cluster, head: Machine) -> dict[str, object]:
    return {"environment": cluster.environment, "within": head.within}


def has_workers(machine: Machine) -> bool:
    return any(command.startswith("ray::RayTrainWorker") for command in machine.processes().values())


def make_shards(cluster: Cluster, head: Machine) -> None:
    with shard_job(f"{BUCKET}/shards", **options(cluster, head)) as job:
        assert job.wait() == 0, job.output


@pytest.mark.parametrize("role", ["workers", "data"])
def test_a_machine_is_cut_off_and_comes_back(role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with three_machines(tmp_path, monkeypatch) as (cluster, (head, *others)):
        make_shards(cluster, head)
        run = locate(BUCKET) / "run"
        more = ("--train.min_workers", "1", "--train.device", "cpu")
        with train_job(BUCKET, "run", f"{BUCKET}/shards", *more, epochs=12, **options(cluster, head)) as job:  # type: ignore[arg-type]
            reached(run, 15, job)
            # Ray places both workers on one machine, so that the data tasks are on the other.
            lost = next(one for one in others if has_workers(one) == (role == "workers"))
            lost.cut()
            since = time.monotonic()
            # The machine that is left has CPUs for both workers, which then prepare their own images. What was prepared
            # before is enough for some epochs.
            again = r"^Training from" if role == "workers" else r"^epoch "
            went_on = job.saw(again, seconds=300, times=2 if role == "workers" else 12) - since
            lost.mend()
            assert job.wait(seconds=400) == 0, job.output
            what = "training began again" if role == "workers" else "training had ended"
            print(f"cut off the machine of the {role}: {what} after {went_on:.0f} s")
        assert_whole(run, epochs=12)
        kinds = [event["event"] for event in Run(run).events.read()]
        assert ("workers_lost" in kinds) == (role == "workers")
        assert kinds[-1] == "finished"


def test_a_slow_wire_that_loses_packets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with three_machines(tmp_path, monkeypatch, (0.2, 0.01)) as (cluster, (head, _, _)):
        make_shards(cluster, head)
        start = time.monotonic()
        more = ("--train.device", "cpu")
        with train_job(BUCKET, "run", f"{BUCKET}/shards", *more, epochs=2, **options(cluster, head)) as job:  # type: ignore[arg-type]
            assert job.wait(seconds=500) == 0, job.output
        print(f"200 ms and 1 % loss: {time.monotonic() - start:.0f} s")
        assert_whole(locate(BUCKET) / "run", epochs=2)
        assert Run(locate(BUCKET) / "run").summary() is not None
