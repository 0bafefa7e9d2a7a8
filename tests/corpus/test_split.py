from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from lungseg_ray.config import SplitSettings
from lungseg_ray.corpus.record import MaskSource, Record, Split
from lungseg_ray.corpus.split import assign_splits
from lungseg_ray.errors import UserError


def record(image: str, patient: str, split: Split | None = None) -> Record:
    return Record(image, f"/{image}.png", (MaskSource(f"/{image}.png"),), patient, split)


def splits(records: list[Record], **settings: float) -> dict[str, str | None]:
    return {item.image_id: item.split for item in assign_splits(records, SplitSettings.model_validate(settings))}


def test_known_hashes() -> None:
    # The first four of a hash's hexadecimal digits, of 0x10000, tell the split unless they stand right at a bound.
    numbers = {name: int(hashlib.sha256(f"0:{name}".encode()).hexdigest()[:4], 16) / 0x10000 for name in "abcdefgh"}
    expected = {name: "test" if n < 0.25 else "val" if n < 0.5 else "train" for name, n in numbers.items()}
    assert set(expected.values()) == {"test", "val", "train"}
    assert splits([record(name, name) for name in "abcdefgh"], test=0.25, val=0.25) == expected


def test_shares_and_disjoint_patients() -> None:
    records = [record(f"i{n}", f"p{n // 2}") for n in range(4000)]
    assigned = assign_splits(records, SplitSettings(val=0.2, test=0.1))
    assert [item.image_id for item in assigned] == [item.image_id for item in records]
    assert all(first.split == second.split for first, second in zip(assigned[::2], assigned[1::2], strict=True))
    shares = {split: count / 4000 for split, count in Counter(item.split for item in assigned).items()}
    assert shares == pytest.approx({"train": 0.7, "val": 0.2, "test": 0.1}, abs=0.03)


def test_other_patients_and_their_order_make_no_difference() -> None:
    many = [record(f"p{n}", f"p{n}") for n in range(300)]
    few = many[::-1][:100]
    all_splits = splits(many)
    assert splits(few) == {item.image_id: all_splits[item.image_id] for item in few}


def test_another_seed_is_another_deal() -> None:
    records = [record(f"p{n}", f"p{n}") for n in range(100)]
    assert splits(records, seed=0) != splits(records, seed=1)


def test_the_corpus_decides_first() -> None:
    records = [record("a1", "a", "test"), record("a2", "a"), record("b", "b", "val"), record("c", "c", "train")]
    assert splits(records) == {"a1": "test", "a2": "test", "b": "val", "c": "train"}


def test_a_prescribed_split_may_lack_a_side() -> None:
    assert splits([record("a", "a", "train"), record("b", "b", "val")]) == {"a": "train", "b": "val"}


def test_what_training_needs_is_taken_from_train() -> None:
    given = [record(f"t{n}", f"t{n}", "train") for n in range(40)]
    # Without val, some patients of train validate; those of test stay what they are.
    both = splits([*given, *(record(f"x{n}", f"x{n}", "test") for n in range(5))], val=0.2, test=0.5)
    assert {split for name, split in both.items() if name.startswith("x")} == {"test"}
    assert {split for name, split in both.items() if name.startswith("t")} == {"train", "val"}
    # A folder "train" alone says nothing of the others.
    assert set(splits(given, val=0.2, test=0.2).values()) == {"train", "val", "test"}


def test_patients_on_two_sides_are_named() -> None:
    torn = [record(f"{split}{n}", f"p{n}", split) for n in range(7) for split in ("train", "val")]
    with pytest.raises(UserError, match=r"7 patient.*p0: train, val; p1: .*p4: train, val\)"):
        splits(torn)


@pytest.mark.parametrize("seed", range(20))
def test_three_patients_fill_three_sides(seed: int) -> None:
    assigned = splits([record(name, name) for name in "abc"], val=0.01, test=0.01, seed=seed)
    assert sorted(str(split) for split in assigned.values()) == ["test", "train", "val"]
    assert assigned == splits([record(name, name) for name in "cab"], val=0.01, test=0.01, seed=seed)


def test_nearest_patient_moves() -> None:
    # With a share of almost nothing for the test, the patient with the lowest number moves there.
    names = [f"p{n}" for n in range(10)]
    lowest = min(names, key=lambda name: hashlib.sha256(f"0:{name}".encode()).hexdigest())
    assigned = splits([record(name, name) for name in names], val=0, test=1e-9)
    assert [name for name, split in assigned.items() if split == "test"] == [lowest]
    assert "val" not in assigned.values()


def test_training_is_never_empty() -> None:
    assert "train" in splits([record(name, name) for name in "abc"], val=0.5, test=0.499999).values()


def test_too_few_patients() -> None:
    with pytest.raises(UserError, match=r"found 2, .* set --corpus\.split\.test 0, since training needs validation\."):
        splits([record("a", "a"), record("b", "b")])
    with pytest.raises(UserError, match=r"found 1, .*: add images\."):
        splits([record("a", "a")])
    assert set(splits([record("a", "a"), record("b", "b")], test=0).values()) == {"train", "val"}


def test_share_of_zero_gets_nobody() -> None:
    assigned = splits([record(f"p{n}", f"p{n}") for n in range(50)], val=0.2, test=0)
    assert set(assigned.values()) == {"train", "val"}
