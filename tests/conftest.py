"""What all tests share: small corpora on a disk, and one Ray cluster for those that need it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest

from lungseg_ray.corpus.phantom import draw
from tests.storage.object_store import object_store as object_store

STAND_IN = "stand_in"
"""A resource of the shared cluster, of which it has one."""


def write_pairs(root: Path, count: int, *, size: int = 64, seed: int = 0) -> Path:
    """Phantoms as a corpus of the layout `pairs`: PNG files, two images to a patient, a column `finding`."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    lines = ["stem,patient,finding"]
    for number in range(count):
        image, mask = draw(number, seed=seed, size=size)
        cv2.imwrite(str(root / "images" / f"x{number:03d}.png"), image)
        cv2.imwrite(str(root / "masks" / f"x{number:03d}.png"), mask * 255)
        lines.append(f"x{number:03d},p{number // 2},{'odd' if number % 4 > 1 else 'even'}")
    (root / "index.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray cluster with three logical CPUs, and a resource in place of a GPU, for all tests that need one."""
    from lungseg_ray.cluster import session

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_OVERRIDE_RESOURCES", json.dumps({STAND_IN: 1}))
        with session.cluster(processes=2):
            yield


def pytest_configure(config: pytest.Config) -> None:
    """Lets PyTorch compute in one thread, and the processes of tests be interrupted."""
    import torch

    # Small networks gain nothing by more threads, and those wait for other processes.
    torch.set_num_threads(1)
    # A shell's background and nohup ignore these signals, and so would the processes that tests send them to.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """Puts handlers back after each test: a command that ends ignores signals, and so would what is started later."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests without Ray first, then those on the shared cluster, then those that start one of their own."""
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    if item.get_closest_marker("own_cluster"):
        return 2
    return int(item.get_closest_marker("cluster") is not None)
