"""Real faults: every process here is a real one, and dies or is stopped as it would in the wild.

`make faults` runs them, and prints the table of `docs/reliability.md` with this machine's figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.faults.small import shard_job
from tests.processes import ray_processes, wait_until
from tests.storage.object_store import ObjectStore

Row = tuple[str, str, str, str]
ROWS = pytest.StashKey[list[Row]]()
LOST = "the steps since the last checkpoint"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/faults/" in item.nodeid:
            item.add_marker(pytest.mark.faults)
            item.add_marker(pytest.mark.own_cluster)
            item.add_marker(pytest.mark.timeout(600))


class Record:
    """Takes down what a fault did."""

    def __init__(self, rows: list[Row], name: str) -> None:
        self._rows = rows
        self._name = name

    def __call__(self, fault: str, *, lost: str, seconds: float | None) -> None:
        """Adds a row to the table.

        Args:
            fault: what was done.
            lost: what was lost by it.
            seconds: until training resumed; None if it does not resume by itself.
        """
        self._rows.append((fault, lost, "-" if seconds is None else f"{seconds:.0f} s", self._name))


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    rows = request.config.stash.setdefault(ROWS, [])
    return Record(rows, f"{request.node.path.name}::{request.node.originalname}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("faults")
        terminalreporter.write_line("| fault | lost | resumed after | test |\n|---|---|---|---|")
        for fault, lost, seconds, name in rows:
            terminalreporter.write_line(f"| {fault} | {lost} | {seconds} | `{name}` |")


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No test starts while a process of Ray's lives that an earlier one has left."""
    ray.shutdown()
    before = ray_processes()
    yield
    assert wait_until(lambda: ray_processes() <= before, seconds=150), "Ray was left behind"


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 60 small phantoms: 50 for training, 8 for validation, 2 for the test."""
    root = tmp_path_factory.mktemp("faults") / "shards"
    with shard_job(str(root)) as job:
        assert job.wait() == 0, job.output
    return root


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A real S3 server with the bucket `lungs`."""
    with ObjectStore(tmp_path_factory.mktemp("store")) as server:
        server.create_bucket("lungs")
        yield server
