from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from lungseg_ray import storage
from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location, locate


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_locate_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert locate("runs/a").uri == f"{tmp_path}/runs/a"
    assert locate("runs/a/").uri == f"{tmp_path}/runs/a"
    assert locate("~/runs").uri == "/home/somebody/runs"
    assert locate("file:///data/x").uri == "/data/x"
    assert locate("/data/x").uri == "/data/x"
    assert all(locate(text).is_local for text in ("runs", "~", "file:///data"))


def test_locate_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    # Naming a place in a bucket asks the network for nothing.
    monkeypatch.setattr(storage, "_filesystem", None)
    place = locate("s3://bucket/runs/a.b/")
    assert (place.uri, place.path, place.is_local) == ("s3://bucket/runs/a.b", "bucket/runs/a.b", False)
    assert (place.name, place.stem, (place / "c").uri) == ("a.b", "a", "s3://bucket/runs/a.b/c")
    assert place._at("bucket/runs/a.b/d").uri == "s3://bucket/runs/a.b/d"


def test_locate_unknown_scheme() -> None:
    with pytest.raises(UserError, match=r"ftq://host/x: expected a path or one of s3://, gs://"):
        locate("ftq://host/x")


@pytest.mark.parametrize(
    ("path", "name", "stem"),
    [
        ("/a/b.tar.gz", "b.tar.gz", "b.tar"),
        ("/a/b", "b", "b"),
        ("/a/.hidden", ".hidden", ".hidden"),
        ("/a/b.", "b.", "b"),
    ],
)
def test_names(path: str, name: str, stem: str) -> None:
    assert (Location(path).name, Location(path).stem) == (name, stem)


def test_write_and_read(tmp_path: Path) -> None:
    place = locate(str(tmp_path)) / "new" / "folder" / "file.txt"
    assert not place.exists()
    with pytest.raises(FileNotFoundError):
        place.read_bytes()
    place.write_text("schön")
    assert place.read_bytes() == b"sch\xc3\xb6n"
    assert place.read_text() == "schön"
    assert (place.exists(), place.is_file(), place.is_dir(), place.info().size) == (True, True, False, 6)
    place.write_bytes(b"")
    assert place.read_bytes() == b""
    assert names(tmp_path / "new" / "folder") == ["file.txt"]


@pytest.mark.parametrize("before", [b"the old content", None])
def test_failed_write_leaves_the_old_content(
    before: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = locate(str(tmp_path)) / "file"
    if before is not None:
        place.write_bytes(before)

    def fail(_: int) -> None:
        part = [path for path in tmp_path.iterdir() if path.name.endswith(".part")]
        assert [path.read_bytes() for path in part] == [b"the new content"]
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        place.write_bytes(b"the new content")
    assert names(tmp_path) == ([] if before is None else ["file"])
    if before is not None:
        assert place.read_bytes() == before


def test_list(tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    for name in ("b.txt", "a.txt", "c/d.txt", "c/a.txt"):
        (root / name).write_text("x" * len(name))
    assert [(place.uri[len(root.uri) + 1 :], info.is_file) for place, info in root.list()] == [
        ("a.txt", True),
        ("b.txt", True),
        ("c", False),
    ]
    found = root.list(recursive=True)
    assert [place.uri[len(root.uri) + 1 :] for place, _ in found] == ["a.txt", "b.txt", "c", "c/a.txt", "c/d.txt"]
    assert [info.size for place, info in found if place.name == "d.txt"] == [7]
    assert (root / "nowhere").list() == []


def test_upload_and_download(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "a").write_bytes(b"1")
    (source / "deep" / "er" / "b").write_bytes(b"2")
    there = locate(str(tmp_path / "over" / "there"))
    there.upload(source)
    (tmp_path / "back").mkdir()
    there.download(tmp_path / "back")
    for folder in (Path(there.path), tmp_path / "back"):
        assert (folder / "a").read_bytes() == b"1"
        assert (folder / "deep" / "er" / "b").read_bytes() == b"2"


def test_make_dir_and_delete(tmp_path: Path) -> None:
    place = locate(str(tmp_path / "x" / "y"))
    place.make_dir()
    place.make_dir()
    assert place.is_dir()
    (place / "file").write_text("")
    (place / "file").delete()
    (place / "file").delete()
    assert place.list() == []
    locate(str(tmp_path / "x")).delete()
    assert names(tmp_path) == []


def test_pickle_holds_the_uri_alone(tmp_path: Path) -> None:
    place = locate(str(tmp_path / "secret"))
    place.write_text("content")
    data = pickle.dumps(place)
    copy = pickle.loads(data)
    assert copy == place
    assert vars(copy) == {"uri": str(tmp_path / "secret")}
    assert b"FileSystem" not in data
    assert copy.read_text() == "content"
