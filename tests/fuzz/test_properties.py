from __future__ import annotations

import io
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import seeds
from tests.fuzz.mutate import mutate, with_checksums
from tests.fuzz.targets import TARGETS

QUICK = settings(
    max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
FILES = seeds.images()
COLUMNS = st.sampled_from(["image_uri", "mask_uri", "stem", "patient_id", "split", "width", "sex", ""])
VALUES = st.one_of(
    st.sampled_from(["", "a", "a.png", "../a", "s3://a/b.png", "file:///a", "train", "Validation", "x\0y", "a\nb"]),
    st.text(max_size=20),
    st.integers(),
    st.floats(),
    st.dates(),
    st.lists(st.text(max_size=4), max_size=2),
    st.none(),
)


def starts() -> st.SearchStrategy[bytes]:
    """Arbitrary bytes behind what a kind of file begins with."""
    begins = st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"MM\0*", bytes(128) + b"DICM"]
    )
    return st.builds(bytes.__add__, begins, st.binary(max_size=300))


def damaged() -> st.SearchStrategy[bytes]:
    """Real files with a little damage."""
    return st.builds(
        lambda name, seed: mutate(FILES[name], Random(seed)),
        st.sampled_from(sorted(FILES)),
        st.integers(0, 2**32),
    )


def spliced() -> st.SearchStrategy[bytes]:
    """The start of one real file and the end of another."""
    one = st.sampled_from(sorted(FILES)).map(FILES.__getitem__)
    return st.builds(lambda a, b, at: a[: at % len(a)] + b[at % len(b) :], one, one, st.integers(0, 2**16))


@st.composite
def csv(draw: st.DrawFn) -> bytes:
    """Text that is nearly CSV, in an encoding that is nearly always UTF-8."""
    columns = draw(st.lists(COLUMNS, min_size=1, max_size=5))
    rows = draw(st.lists(st.lists(VALUES.map(str), max_size=6), max_size=5))
    quote = draw(st.sampled_from(["", '"']))
    lines = [",".join(f"{quote}{value}{quote}" for value in row) for row in [columns, *rows]]
    return "\n".join(lines).encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16"])), "replace")


@st.composite
def parquet(draw: st.DrawFn) -> bytes:
    """Columns of any one type each."""
    count = draw(st.integers(0, 4))
    names = draw(st.lists(COLUMNS, min_size=1, max_size=5))
    columns = []
    for _ in names:
        values = draw(st.lists(VALUES, min_size=count, max_size=count))
        try:
            columns.append(pa.array(values))
        except (pa.ArrowException, OverflowError, UnicodeError):
            columns.append(pa.array([str(value).encode("utf-8", "replace") for value in values]))
    file = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, names), file)
    return file.getvalue()


@pytest.mark.parametrize("name", ["image", "mask", "tags"])
class TestDecoders:
    """The targets themselves say what must hold."""

    @QUICK
    @given(data=starts() | damaged() | spliced())
    def test_any_bytes(self, name: str, data: bytes) -> None:
        TARGETS[name].run(data)

    def test_every_seed(self, name: str) -> None:
        for data in TARGETS[name].seeds().values():
            TARGETS[name].run(data)


class TestTables:
    """As above."""

    @pytest.mark.parametrize("name", ["manifest-csv", "index-csv"])
    @QUICK
    @given(data=csv() | st.binary(max_size=100))
    def test_csv(self, name: str, data: bytes) -> None:
        TARGETS[name].run(data)

    @QUICK
    @given(data=parquet() | st.binary(max_size=100).map(lambda body: b"PAR1" + body + b"PAR1"))
    def test_parquet(self, data: bytes) -> None:
        TARGETS["manifest-parquet"].run(data)


@QUICK
@given(seed=st.integers(0, 2**32))
def test_what_is_mutated_follows_from_the_seed_and_has_a_bound(seed: int) -> None:
    data = FILES["png-grey"]
    assert mutate(data, Random(seed)) == mutate(data, Random(seed))
    assert len(mutate(data, Random(seed), most=100)) <= 100


def test_checksums_that_fit_again() -> None:
    for name, data in FILES.items():
        if name.startswith("png"):
            assert with_checksums(data) == data
    # A bit of the first chunk's checksum, which ends at 8 + 4 + 4 + 13 + 4 bytes
    wrong = bytearray(FILES["png-grey"])
    wrong[32] ^= 1
    assert with_checksums(bytes(wrong)) == FILES["png-grey"]
