"""Places in a bucket, against a real server and one that fails on purpose."""

from __future__ import annotations

import os
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lungseg_ray.storage import Location, StorageError, locate, retry
from lungseg_ray.storage.s3 import s3_client
from tests.helpers import ROOT
from tests.storage.object_store import KEY, SECRET, FaultyProxy, Mode, ObjectStore

BUCKET = "places"
SECONDS = 30.0
"""Whatever is wrong is told within this time."""


@pytest.fixture(scope="module")
def bucket(object_store: ObjectStore) -> str:
    object_store.create_bucket(BUCKET)
    return BUCKET


@pytest.fixture(autouse=True)
def environment(object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    # Its credentials are those it was made with.
    s3_client.cache_clear()


@pytest.fixture
def proxy(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with FaultyProxy(object_store) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def folder() -> Location:
    return locate(f"s3://{BUCKET}/{uuid.uuid4().hex}")


def uses(place: Location) -> dict[str, Callable[[], object]]:
    return {
        "read": (place / "file").read_bytes,
        "write": lambda: (place / "file").write_bytes(b"x"),
        "list": place.list,
        "exists": (place / "file").exists,
        "create": lambda: (place / "file").create(b"x"),
        "make_dir": place.make_dir,
        "delete": (place / "file").delete,
        "download": lambda: place.download(Path("nowhere")),
    }


def complaint(work: Callable[[], object]) -> str:
    """What the error says, once it has proved to be one sentence without a secret that came in time."""
    start = time.monotonic()
    with pytest.raises(StorageError) as caught:
        work()
    assert time.monotonic() - start < SECONDS
    text = str(caught.value)
    assert text.startswith(f"s3://{BUCKET}/") or text.startswith("s3://missing/")
    assert text.endswith(".")
    assert "\n" not in text
    assert not any(secret in text for secret in (SECRET, os.environ["AWS_SECRET_ACCESS_KEY"]))
    return text


def test_write_and_read(folder: Location) -> None:
    place = folder / "deep" / "schön und gut.txt"
    assert not place.exists()
    with pytest.raises(FileNotFoundError):
        place.read_bytes()
    place.write_text("schön")
    assert place.read_bytes() == b"sch\xc3\xb6n"
    assert (place.exists(), place.is_file(), place.is_dir(), place.info().size) == (True, True, False, 6)
    place.write_bytes(b"")
    assert (place.read_bytes(), place.info().size) == (b"", 0)
    # More than one part of an upload.
    big = bytes(range(256)) * (100 << 10)
    place.write_bytes(big)
    assert place.read_bytes() == big


def test_folders_without_markers(object_store: ObjectStore, folder: Location) -> None:
    """Prefixes that no one has made a folder of."""
    client, prefix = object_store.client(), folder.path.split("/", 1)[1]
    for name in ("b.txt", "a.txt", "c/d.txt", "c/e/f.txt", "cc.txt"):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=b"x" * len(name))
    assert folder.is_dir()
    assert (folder / "c").is_dir()
    assert not (folder / "c" / "d").exists()
    assert [(place.name, info.is_file) for place, info in folder.list()] == [
        ("a.txt", True),
        ("b.txt", True),
        ("c", False),
        ("cc.txt", True),
    ]
    found = folder.list(recursive=True)
    assert [place.uri[len(folder.uri) + 1 :] for place, info in found if info.is_file] == [
        "a.txt",
        "b.txt",
        "c/d.txt",
        "c/e/f.txt",
        "cc.txt",
    ]
    assert (folder / "nowhere").list() == []
    (folder / "c").delete()
    (folder / "c").delete()
    (folder / "b.txt").delete()
    (folder / "b.txt").delete()
    assert not (folder / "c").exists()
    assert [place.name for place, _ in folder.list(recursive=True)] == ["a.txt", "cc.txt"]
    folder.delete()
    assert not folder.exists()
    assert "Contents" not in client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/")


def test_folders_with_markers(object_store: ObjectStore, folder: Location) -> None:
    """Prefixes that other programs have made folders of."""
    client, prefix = object_store.client(), folder.path.split("/", 1)[1]
    for name in ("a/", "a/b/", "a/b/c.txt"):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=b"")
    assert (folder / "a" / "b").is_dir()
    assert [place.name for place, _ in (folder / "a").list(recursive=True)] == ["b", "c.txt"]
    (folder / "a").delete()
    assert not (folder / "a").exists()
    assert folder.list() == []


def test_make_dir_needs_no_rights_above(proxy: FaultyProxy, folder: Location) -> None:
    folder.make_dir()
    assert not [request for request in proxy.seen if not request.startswith(("HEAD", "GET"))]


def test_upload_and_download(proxy: FaultyProxy, folder: Location, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    names = [f"{number:02d}.bin" for number in range(20)] + ["deep/er/b", "checksums", "index", "empty"]
    for name in names:
        (source / name).write_bytes(name.encode() * 1000 if name != "empty" else b"")
    # Several parts, so that it takes longer than those that are to follow.
    (source / "00.bin").write_bytes(bytes(24 << 20))
    folder.upload(source, last=["checksums", "index"])
    written = [request.split("?")[0] for request in proxy.seen if request.startswith(("PUT", "POST"))]
    assert [request.rsplit("/", 1)[1] for request in written[-2:]] == ["checksums", "index"]
    assert {request.split(f"{folder.name}/")[1] for request in written} == set(names)
    (tmp_path / "back").mkdir()
    folder.download(tmp_path / "back")
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()


def test_download_of_nothing(folder: Location, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        folder.download(tmp_path)


def test_create(folder: Location) -> None:
    place = folder / "lease"
    assert place.create(b"first")
    assert not place.create(b"second")
    assert place.read_bytes() == b"first"
    place.delete()
    assert place.create(b"third")
    assert place.read_bytes() == b"third"


def test_create_raced_by_threads(folder: Location) -> None:
    with ThreadPoolExecutor(8) as pool:
        for turn in range(3):
            barrier = threading.Barrier(8)

            def run(number: int, turn: int = turn, barrier: threading.Barrier = barrier) -> bool:
                barrier.wait()
                return (folder / f"lease-{turn}").create(str(number).encode())

            won = list(pool.map(run, range(8)))
            assert sum(won) == 1
            assert (folder / f"lease-{turn}").read_text() == str(won.index(True))


RACER = """
import sys, time
from lungseg_ray.storage import locate
me, folder = sys.argv[1], locate(sys.argv[2])
folder.exists()
(folder / f"ready-{me}").create(b"")
while not (folder / "go").exists():
    pass
print(*(int((folder / f"lease-{turn}").create(me.encode())) for turn in range(20)))
"""


def test_create_raced_by_processes(folder: Location) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(number), str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for number in range(4)
    ]
    try:
        while len(folder.list()) < 4:
            assert all(racer.poll() is None for racer in racers)
            time.sleep(0.05)
        (folder / "go").write_bytes(b"")
        won = [[int(word) for word in racer.communicate(timeout=60)[0].split()] for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    for turn, one in enumerate(zip(*won, strict=True)):
        assert sum(one) == 1
        assert (folder / f"lease-{turn}").read_text() == str(one.index(1))


def test_honours_create(proxy: FaultyProxy, folder: Location) -> None:
    assert folder.supports_exclusive_create()
    count = len(proxy.seen)
    assert (folder / "other").supports_exclusive_create()
    assert len(proxy.seen) == count
    assert folder.list() == []


@pytest.mark.parametrize("use", uses(Location("s3://missing/x")))
def test_missing_bucket(use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = complaint(uses(Location("s3://missing/x"))[use])
    assert f"there is no bucket 'missing' at {os.environ['AWS_ENDPOINT_URL']}; create it" in text
    assert "AWS_ENDPOINT_URL" in text


@pytest.mark.parametrize("use", ["read", "write", "list", "exists", "create"])
@pytest.mark.parametrize(
    ("variable", "value", "found"),
    [
        ("AWS_ACCESS_KEY_ID", "nobody", "does not know the access key; check AWS_ACCESS_KEY_ID"),
        ("AWS_SECRET_ACCESS_KEY", "mistyped-secret", "signature does not match .* check AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_wrong_credentials(
    variable: str, value: str, found: str, use: str, folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    text = complaint(uses(folder)[use])
    assert re.search(found, text), text


@pytest.fixture(scope="module")
def blackhole() -> Iterator[str]:
    """The address of a port that takes no further connection and refuses none, like one behind a firewall."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        address = server.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        yield f"http://127.0.0.1:{address[1]}"
        for one in waiting:
            one.close()


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://store.invalid:8333", "blackhole"])
def test_no_route(endpoint: str, blackhole: str, folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = blackhole if endpoint == "blackhole" else endpoint
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    works = [uses(folder)[use] for use in ("read", "write", "list", "create")]
    with ThreadPoolExecutor(len(works)) as pool:
        for text in pool.map(complaint, works):
            assert f"nothing answers at {endpoint}; check AWS_ENDPOINT_URL" in text


def test_store_that_never_answers(proxy: FaultyProxy, folder: Location) -> None:
    proxy.mode = "silent"
    works = [uses(folder)[use] for use in ("read", "list", "create")]
    with ThreadPoolExecutor(len(works)) as pool:
        for text in pool.map(complaint, works):
            assert f"nothing answers at {proxy.url}" in text


@pytest.mark.parametrize(
    ("mode", "found"), [("busy", "is busy or out of order; try again later."), ("denied", "access denied by")]
)
def test_store_that_fails(mode: Mode, found: str, proxy: FaultyProxy, folder: Location) -> None:
    proxy.mode = mode
    for use in ("read", "write", "list", "exists", "create"):
        assert found in complaint(uses(folder)[use])
    assert proxy.faults >= 5
    proxy.mode = "pass"
    assert not folder.exists()


@pytest.mark.parametrize("mode", ["busy", "denied"])
def test_patiently(mode: Mode, proxy: FaultyProxy, folder: Location) -> None:
    proxy.mode = mode
    notes: list[str] = []
    timer = threading.Timer(2.0, setattr, (proxy, "mode", "pass"))
    timer.start()
    retry(lambda: (folder / "file").write_text("there"), seconds=60, note=notes.append)
    timer.join()
    assert (folder / "file").read_text() == "there"
    assert proxy.faults >= 2
    assert len(notes) == 2
    assert notes[0].startswith(f"{folder}/file: ")
    assert notes[0].endswith(". Trying again for up to 60 s.")
    assert notes[1].startswith("The storage answers again after ")


def test_lost_answer_of_create(proxy: FaultyProxy, folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try writes and its answer is lost; the second finds a file, which is its own."""
    assert not folder.exists()
    proxy.lose_answers = 1
    assert (folder / "lease").create(b"mine")
    assert [request.split()[0] for request in proxy.seen].count("PUT") == 2


def test_pickled_filesystem_holds_no_secret(folder: Location) -> None:
    folder.exists()
    data = pickle.dumps(folder.filesystem)
    assert SECRET.encode() not in data
    assert KEY.encode() not in data
