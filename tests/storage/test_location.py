from __future__ import annotations

import errno
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyarrow.fs import FileInfo, FileSelector, FileType

from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location, StorageError, locate, location, translate_errors
from tests.corpus.trees import nobody, open_folder


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
    monkeypatch.setattr(location, "_filesystem", None)
    place = locate("s3://bucket/runs/a.b/")
    assert (place.uri, place.path, place.is_local) == ("s3://bucket/runs/a.b", "bucket/runs/a.b", False)
    assert (place.name, place.stem, (place / "c").uri) == ("a.b", "a", "s3://bucket/runs/a.b/c")
    assert place._at("bucket/runs/a.b/d").uri == "s3://bucket/runs/a.b/d"


@pytest.mark.parametrize("text", ["ftq://host/x", "gs://bucket/x", "az://container/x", "abfs://container/x"])
def test_locate_unknown_scheme(text: str) -> None:
    scheme = text.partition(":")[0]
    with pytest.raises(UserError, match=rf"{text}: expected a path or s3://BUCKET/PREFIX, found {scheme}://\. Other"):
        locate(text)


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


def below(root: Location, **options: bool) -> dict[str, FileInfo]:
    return {place.uri[len(root.uri) + 1 :]: info for place, info in root.list(**options)}


def test_list_says_what_pyarrow_says(tmp_path: Path) -> None:
    root = locate(str(tmp_path))
    for name in ("a-b", "a/b", "a/b.c", "a b/c", "z/y/x/w"):
        (root / f"{name}.txt").write_text(name)
    (tmp_path / "empty").mkdir()
    for recursive in (False, True):
        expected = sorted(
            root.filesystem.get_file_info(FileSelector(root.path, recursive=recursive)), key=lambda info: info.path
        )
        found = root.list(recursive=recursive)
        assert [place.uri for place, _ in found] == [info.path for info in expected]
        assert [(info.type, info.size, info.mtime_ns) for _, info in found] == [
            (info.type, info.size, info.mtime_ns) for info in expected
        ]


def test_list_follows_links_in_no_circle(tmp_path: Path) -> None:
    for name in ("a/f", "b/g"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("12345")
    (tmp_path / "a/up").symlink_to("..")
    (tmp_path / "a/here").symlink_to(".")
    (tmp_path / "a/to_b").symlink_to("../b")
    (tmp_path / "b/to_a").symlink_to(tmp_path / "a")
    (tmp_path / "b/h").symlink_to("g")
    found = below(locate(str(tmp_path)), recursive=True)
    assert [name for name in found if name.startswith("a")] == [
        "a",
        "a/f",
        "a/here",
        "a/to_b",
        "a/to_b/g",
        "a/to_b/h",
        "a/to_b/to_a",
        "a/up",
    ]
    assert [name for name in found if name.startswith("b/to_a")] == [
        "b/to_a",
        "b/to_a/f",
        "b/to_a/here",
        "b/to_a/to_b",
        "b/to_a/up",
    ]
    # Those, and b itself with g and h.
    assert len(found) == 8 + 5 + 3
    assert [found[name].size for name in ("b/h", "b/to_a/f")] == [5, 5]
    assert found["a/up"].type == FileType.Directory


def test_list_folders_that_link_to_one_another(tmp_path: Path) -> None:
    # Of 12, there would be 12! paths.
    for one in range(12):
        (tmp_path / str(one)).mkdir()
        for other in range(12):
            (tmp_path / str(one) / f"to{other}").symlink_to(tmp_path / str(other))
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        locate(str(tmp_path)).list(recursive=True)


def test_list_links_to_nothing_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    found = below(locate(str(tmp_path)), recursive=True)
    assert {name: (info.type, info.size) for name, info in found.items()} == {
        "gone": (FileType.File, 0),
        "pipe": (FileType.Unknown, 0),
        "self": (FileType.File, 0),
    }


def test_list_names_that_are_not_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"d\xff")
    folder.mkdir()
    (folder / os.fsdecode(b"\xe4.png")).write_text("content")
    (first, _), (second, info) = locate(str(tmp_path)).list(recursive=True)
    assert (first.name, second.name) == ("d\udcff", "\udce4.png")
    assert second.read_text() == "content"
    assert info.path == f"{tmp_path}/d\\xff/\\xe4.png"


def test_list_closed_folders() -> None:
    with open_folder() as root:
        (root / "unnamed").mkdir(0)
        (root / "unentered").mkdir()
        (root / "unentered/file").write_text("123")
        (root / "unentered").chmod(0o744)
        with nobody():
            with pytest.raises(PermissionError) as caught:
                locate(str(root)).list(recursive=True)
            assert caught.value.filename == f"{root}/unnamed"
            assert list(below(locate(str(root)))) == ["unentered", "unnamed"]
            (_, info) = locate(f"{root}/unentered").list(recursive=True)[0]
            # It may be named and not looked at.
            assert (info.type, info.size) == (FileType.File, 0)


def test_list_while_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    scan = os.scandir

    class Late:
        """By the time that a folder has been read, a file of it is gone."""

        def __init__(self, path: str) -> None:
            self.entries = scan(path)

        def __enter__(self) -> list[os.DirEntry[str]]:
            with self.entries as found:
                entries = list(found)
            (tmp_path / "a").unlink(missing_ok=True)
            return entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Late)
    assert list(below(locate(str(tmp_path)), recursive=True)) == ["b", "c", "c/d"]


def test_list_deep(tmp_path: Path) -> None:
    (tmp_path / "/".join("d" * 400)).mkdir(parents=True)
    assert len(locate(str(tmp_path)).list(recursive=True)) == 400
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        locate(str(tmp_path / "file")).list()


def test_write_csv(tmp_path: Path) -> None:
    place = locate(str(tmp_path / "table.csv"))
    rows = [{"number": 0, "image_id": "a", "dice": 0.5}, {"image_id": "b,c", "dice": 1.0, "sex": "F"}]
    place.write_csv(rows, ["image_id", "dice", "sex"])
    assert place.read_text().splitlines() == ["image_id,dice,sex", "a,0.5,", '"b,c",1.0,F']


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
    assert b"FileSystem" not in data
    assert copy.read_text() == "content"


@pytest.mark.parametrize("text", ["s3://", "s3:///x", "s3://bucket//x", "s3://bucket/a//b"])
def test_locate_nothing_between_slashes(text: str) -> None:
    with pytest.raises(UserError, match=r"expected .*://BUCKET/PREFIX"):
        locate(text)


def test_create(tmp_path: Path) -> None:
    place = locate(str(tmp_path)) / "new" / "lease"
    assert place.supports_exclusive_create()
    assert place.create(b"first")
    assert not place.create(b"second")
    assert place.read_bytes() == b"first"
    assert names(tmp_path / "new") == ["lease"]
    place.delete()
    assert place.create(b"third")
    assert place.read_bytes() == b"third"


def test_create_where_links_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    test_create(tmp_path)


def test_create_whose_answer_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS may make a link, lose the answer, try again and find a file."""
    link = os.link

    def twice(*names: Path) -> None:
        link(*names)
        link(*names)

    monkeypatch.setattr(os, "link", twice)
    assert (locate(str(tmp_path)) / "lease").create(b"mine")


def test_create_raced(tmp_path: Path) -> None:
    for turn in range(20):
        place = locate(str(tmp_path)) / f"lease-{turn}"
        barrier = threading.Barrier(8)

        def run(number: int, place: Location = place, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return place.create(str(number).encode())

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(run, range(8)))
        assert sum(won) == 1
        assert place.read_text() == str(won.index(True))
    assert len(names(tmp_path)) == 20


def test_upload_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    for name in ("a", "b", "deep/c", "d", "e"):
        (source / name).write_text(name)
    written: list[str] = []
    write = Location.write_bytes

    def slow(place: Location, data: bytes) -> None:
        if place.name in ("b", "e"):
            time.sleep(0.05)
        write(place, data)
        written.append(place.name)

    monkeypatch.setattr(Location, "write_bytes", slow)
    there = locate(str(tmp_path / "there"))
    there.upload(source, last=["e", "a"])
    # 5 files: b, c and d in any order, then those that were named.
    assert sorted(written[:3]) == ["b", "c", "d"]
    assert written[3:] == ["e", "a"]
    assert {place.name: place.read_text() for place, info in there.list(recursive=True) if info.is_file} == {
        "a": "a",
        "b": "b",
        "c": "deep/c",
        "d": "d",
        "e": "e",
    }


def test_upload_that_fails_writes_nothing_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "b", "checksums"):
        (source / name).write_text(name)
    write = Location.write_bytes

    def full(place: Location, data: bytes) -> None:
        if place.name == "b":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(place, data)

    monkeypatch.setattr(Location, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        locate(str(tmp_path / "there")).upload(source, last=["checksums"])
    assert caught.value.errno == errno.ENOSPC
    assert "checksums" not in names(tmp_path / "there")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "When initiating multiple part upload for key 'x' in bucket 'b': AWS Error NO_SUCH_BUCKET during "
            "CreateMultipartUpload operation: The specified bucket does not exist",
            "there is no bucket 'bucket' at https://store:9000; create it, or check its name and AWS_ENDPOINT_URL.",
        ),
        (
            "AWS Error UNKNOWN (HTTP status 301) during HeadBucket operation: No message",
            "the bucket 'bucket' is not in the region that was asked; check AWS_REGION and AWS_ENDPOINT_URL.",
        ),
        (
            "When reading 'access_denied/no_such_bucket': AWS Error SLOW_DOWN during GetObject operation: Please "
            "reduce your request rate.",
            "https://store:9000 is busy or out of order; try again later.",
        ),
        (
            "AWS Error UNKNOWN during GetObject operation: the key the-key with the secret\nthe-secret is odd.",
            "https://store:9000 answered: OSError: AWS Error UNKNOWN during GetObject operation: the key "
            "$AWS_ACCESS_KEY_ID with the secret $AWS_SECRET_ACCESS_KEY is odd.",
        ),
    ],
)
def test_sentence(text: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://store:9000")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    with pytest.raises(StorageError) as caught, translate_errors(Location("s3://bucket/a")):
        raise OSError(text)
    assert str(caught.value) == f"s3://bucket/a: {sentence}"
    # As it comes from another process.
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_explained_leaves_errors_of_a_disk(tmp_path: Path) -> None:
    for error in (FileNotFoundError, IsADirectoryError, PermissionError(errno.EACCES, "denied"), ValueError):
        with pytest.raises((OSError, ValueError)) as caught, translate_errors(locate(str(tmp_path))):
            raise error
        assert type(caught.value) is (error if isinstance(error, type) else type(error))
        assert not isinstance(caught.value, StorageError)


@pytest.mark.parametrize("use", ["exists", "list", "read_bytes", "delete", "make_dir", "supports_exclusive_create"])
@pytest.mark.parametrize(
    "endpoint",
    ["127.0.0.1:8333", "store", "ftp://store", "http://", "http://store:port", "http://me:the-password@store"],
)
def test_endpoint_that_is_none(endpoint: str, use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    with pytest.raises(UserError, match=r"AWS_ENDPOINT_URL: expected http://HOST:PORT or https://HOST") as caught:
        getattr(Location("s3://bucket/a"), use)()
    assert "password" not in str(caught.value)
