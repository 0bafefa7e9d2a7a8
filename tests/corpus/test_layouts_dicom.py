from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from lungseg_ray.corpus.layouts import Listing
from lungseg_ray.corpus.layouts.dicom import find
from lungseg_ray.corpus.privacy import Salt
from lungseg_ray.errors import UserError
from tests.corpus.dicoms import IDENTITY, chest, write_tree
from tests.corpus.kinds import MASK, png
from tests.corpus.trees import listing, reasons

SALT = Salt("LUNGSEG_SALT", b"a salt of this test")
IMAGE = np.zeros((64, 64), np.uint8)


@pytest.fixture(autouse=True)
def salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNGSEG_SALT", "a salt of this test")


def written(found: Listing) -> str:
    """All of a listing that may be written: not the places of images and masks."""
    records = [*found.records, *found.unlabelled]
    shown = [{**asdict(one), "image_uri": "", "mask_uris": (), "shown": one.shown} for one in records]
    return str([*shown, *(asdict(one) for one in found.set_aside), found.because])


def test_patients_come_from_the_tags(tmp_path: Path) -> None:
    # Two images to a patient; one image has no mask, and one file is no DICOM.
    found = listing(write_tree(tmp_path, 8))
    assert found.layout == "dicom"
    assert found.because == "found files named .dcm or .dicom or .ima"
    assert len(found.records) == 7
    assert len(found.unlabelled) == 1
    assert len({record.patient_id for record in [*found.records, *found.unlabelled]}) == 4
    assert set(reasons(found).values()) == {"unreadable"}
    record = found.records[0]
    assert record.patient_id in {SALT.key("patient", f"\0{IDENTITY['PatientID']}{number}") for number in range(4)}
    assert dict(record.groups) == {"sex": "F", "view": "PA", "modality": "DX", "study": record.groups["study"]}
    assert len({one.groups["study"] for one in found.records}) == 7


def test_no_identity_is_in_what_may_be_written(tmp_path: Path) -> None:
    text = written(listing(write_tree(tmp_path, 8)))
    assert not [value for value in IDENTITY.values() if value in text or value.split("^")[0] in text]
    assert str(tmp_path) not in text


def test_another_salt_makes_other_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path, 4)
    first = listing(root)
    monkeypatch.setenv("LUNGSEG_SALT", "another salt, as long as the first")
    second = listing(root)
    assert {one.patient_id for one in first.records}.isdisjoint(one.patient_id for one in second.records)
    with pytest.raises(UserError, match="no file has the key"):
        find(str(root), first.records[0].image_id)


def test_a_key_leads_back_to_the_path(tmp_path: Path) -> None:
    root = write_tree(tmp_path, 2)
    (root / os.fsdecode(b"\xff.dcm")).write_bytes(b"")
    found = listing(root)
    for record in found.records:
        assert find(str(root), record.image_id) == record.image_uri
    misnamed = next(one for one in found.set_aside if one.reason == "bad_name")
    assert find(str(root), misnamed.image_id).endswith("\\xff.dcm")


def test_names_without_a_suffix_and_uids(tmp_path: Path) -> None:
    # The dots of a UID begin no suffix; a file that does not claim to be DICOM, and is none, is another file.
    (tmp_path / "masks").mkdir()
    (tmp_path / "IM0001").write_bytes(chest(IMAGE))
    (tmp_path / "README").write_text("about")
    (tmp_path / "1.2.840.1.dcm").write_bytes(chest(IMAGE))
    for name in ("IM0001", "1.2.840.1"):
        (tmp_path / f"masks/{name}.png").write_bytes(png(MASK))
    found = listing(tmp_path)
    assert len(found.records) == 2
    assert found.ignored == 1
    assert not found.set_aside


def test_a_patient_without_an_id_is_one_of_its_own(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.dcm").write_bytes(chest(IMAGE, PatientID=None if number else ""))
    found = listing(tmp_path)
    assert [record.patient_id for record in found.unlabelled] == [record.image_id for record in found.unlabelled]


def test_the_same_id_at_two_hospitals(tmp_path: Path) -> None:
    for issuer in ("A", "B"):
        (tmp_path / f"{issuer}.dcm").write_bytes(chest(IMAGE, IssuerOfPatientID=issuer))
    assert len({record.patient_id for record in listing(tmp_path).unlabelled}) == 2


def test_a_mask_without_its_image(tmp_path: Path) -> None:
    root = write_tree(tmp_path, 2)
    (root / "masks/lonely.png").write_bytes(png(MASK))
    assert sorted(reasons(listing(root)).values()) == ["no_image", "unreadable"]


def test_a_pipe(tmp_path: Path) -> None:
    root = write_tree(tmp_path, 2)
    os.mkfifo(root / "pipe.dcm")
    assert list(reasons(listing(root)).values()) == ["unreadable"] * 2


def test_no_dicom_at_all(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("about")
    with pytest.raises(UserError, match="found no DICOM file"):
        listing(tmp_path, layout="dicom")
