from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from lungseg_ray.corpus.layouts import Listing
from lungseg_ray.corpus.layouts.dicom import find_path
from lungseg_ray.corpus.privacy import Salt
from lungseg_ray.errors import UserError
from lungseg_ray.storage import locate
from tests.corpus.dicoms import IDENTITY, chest, dataset, encoded, write_tree
from tests.corpus.kinds import MASK, png
from tests.corpus.trees import chest as drawn_chest
from tests.corpus.trees import listing, reasons

SALT = Salt("LUNGSEG_SALT", b"a salt of this test")
IMAGE = np.zeros((64, 64), np.uint8)


@pytest.fixture(autouse=True)
def salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNGSEG_SALT", "a salt of this test")


def written(found: Listing) -> str:
    """All of a listing that may be written: not the places of images and masks."""
    records = [*found.records, *found.unlabelled]
    shown = [{**asdict(one), "image_uri": "", "masks": (), "shown": one.shown} for one in records]
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
    assert record.patient_id in {SALT.key("patient", f"{IDENTITY['PatientID']}{number}") for number in range(4)}
    assert dict(record.groups) == {"sex": "F", "view": "PA", "modality": "DX", "study_key": record.groups["study_key"]}
    assert len({one.groups["study_key"] for one in found.records}) == 7


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
        find_path(locate(str(root)), first.records[0].image_id)


def test_a_key_leads_back_to_the_path(tmp_path: Path) -> None:
    root = write_tree(tmp_path, 2)
    (root / os.fsdecode(b"\xff.dcm")).write_bytes(b"")
    found = listing(root)
    for record in found.records:
        assert find_path(locate(str(root)), record.image_id) == record.image_uri
    misnamed = next(one for one in found.set_aside if one.reason == "bad_name")
    assert find_path(locate(str(root)), misnamed.image_id).endswith("\\xff.dcm")


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


def test_a_patient_without_an_id_is_known_by_the_study(tmp_path: Path) -> None:
    for number, study in enumerate(("1.2.3", "1.2.3", "1.2.4", None, None)):
        (tmp_path / f"{number}.dcm").write_bytes(chest(IMAGE, PatientID=None, StudyInstanceUID=study))
    found = listing(tmp_path).unlabelled
    assert len({record.patient_id for record in found}) == 4
    # Without either, each is one of its own.
    assert sum(record.patient_id == record.image_id for record in found) == 2


def test_who_issued_the_id_makes_no_other_patient(tmp_path: Path) -> None:
    # Not all files of a patient say it.
    for number, issuer in enumerate(("A", None)):
        (tmp_path / f"{number}.dcm").write_bytes(chest(IMAGE, IssuerOfPatientID=issuer))
    assert len({record.patient_id for record in listing(tmp_path).unlabelled}) == 1


def test_two_files_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for name in ("a.dcm", "images/a.ima", "b.dcm"):
        (tmp_path / name).write_bytes(chest(IMAGE))
    for name in ("a.png", "b.png", "b.tif"):
        (tmp_path / "masks" / name).write_bytes(png(MASK))
    found = listing(tmp_path, layout="dicom")
    assert not found.records
    assert not found.unlabelled
    assert list(reasons(found).values()) == ["ambiguous"] * 3


def test_an_archive_whose_files_have_no_suffix_is_recognised(tmp_path: Path) -> None:
    # Named by UIDs, below folders named by patients: no message may name these.
    (tmp_path / "DOE_JANE").mkdir()
    (tmp_path / "DOE_JANE/1.2.840.77").write_bytes(chest(IMAGE))
    (tmp_path / "DICOMDIR").write_bytes(chest(IMAGE))
    found = listing(tmp_path)
    assert (found.layout, found.because) == ("dicom", "found DICOM files without a suffix")
    assert (len(found.unlabelled), found.ignored) == (1, 1)


def test_a_link_in_a_circle(tmp_path: Path) -> None:
    root = write_tree(tmp_path, 2)
    (root / "DOE_JANE.dcm").symlink_to("DOE_JANE.dcm")
    found = listing(root)
    assert list(reasons(found).values()) == ["unreadable"] * 2
    assert "DOE" not in written(found)


def test_trouble_with_a_disk_tells_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(file: object) -> None:
        raise OSError(errno.EIO, "Input/output error", f"{tmp_path}/DOE_JANE.dcm")

    (tmp_path / "DOE_JANE.dcm").write_bytes(chest(IMAGE))
    monkeypatch.setattr("lungseg_ray.corpus.dicom.read_tags", broken)
    with pytest.raises(OSError, match=r"^\w{16}: .*cannot be read from where it lies \(Input/output error\)") as caught:
        listing(tmp_path)
    assert "DOE" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_tags_beyond_the_first_bytes(tmp_path: Path) -> None:
    # A private element of 1 MB stands before the patient.
    made = dataset(IMAGE)
    made.private_block(0x0009, "some maker", create=True).add_new(1, "OB", bytes(1 << 20))
    (tmp_path / "a.dcm").write_bytes(encoded(made))
    assert listing(tmp_path).unlabelled[0].patient_id == SALT.key("patient", IDENTITY["PatientID"])


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


class TestMasksAndTables:
    """DICOM images with masks of other formats, and tables beside them."""

    def fill(self, root: Path, *masks: str, count: int = 6) -> None:
        for number in range(count):
            image, mask = drawn_chest(number, 64)
            made = dataset(image, PatientID=f"P{number // 2}", StudyInstanceUID=f"1.2.{number}")
            (root / f"scan{number}.dcm").write_bytes(encoded(made))
            for place in masks:
                target = root / place.format(number)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(png(mask))

    def test_masks_beside_the_images(self, tmp_path: Path) -> None:
        self.fill(tmp_path, "scan{}_mask.png")
        found = listing(tmp_path)
        assert (found.layout, len(found.records), found.set_aside) == ("dicom", 6, [])

    def test_two_sides(self, tmp_path: Path) -> None:
        self.fill(tmp_path, "masks/left/scan{}.png", "masks/right/scan{}.png")
        assert {len(record.masks) for record in listing(tmp_path).records} == {2}
        found = listing(tmp_path, unite=False)
        assert found.corpus.class_names == ["left", "right"]

    def test_masks_of_another_organ_do_not_count(self, tmp_path: Path) -> None:
        self.fill(tmp_path, "masks/heart/scan{}.png", "masks/lung/scan{}.png")
        records = listing(tmp_path).records
        assert {source.uri.rpartition("/")[0].rpartition("/")[2] for one in records for source in one.masks} == {"lung"}

    def test_splits_and_patients_of_a_table(self, tmp_path: Path) -> None:
        self.fill(tmp_path, "masks/scan{}.png")
        rows = "".join(f"scan{n}.dcm,{'test' if n > 3 else 'train'},Nobody {n}\n" for n in range(6))
        (tmp_path / "table.csv").write_text(f"file,split,name\n{rows}")
        found = listing(tmp_path)
        assert Counter(record.split for record in found.records) == {"train": 4, "test": 2}
        # Tags say whose the images are, and nothing of a table but splits is kept, since it may name people.
        assert len({record.patient_id for record in found.records}) == 3
        assert "Nobody" not in repr(found)

    def test_settings_that_do_not_fit(self, tmp_path: Path) -> None:
        self.fill(tmp_path, "drawn/scan{}.png")
        with pytest.raises(UserError, match=r"corpus\.patients: .* is no column of a table here"):
            listing(tmp_path, patients="(scan.)")
        with pytest.raises(UserError, match=r"corpus\.images is not used by the layout dicom"):
            listing(tmp_path, images=["x"])
        assert len(listing(tmp_path, masks=["drawn"]).records) == 6
        assert len({record.patient_id for record in listing(tmp_path, masks=["drawn"], patients="none").records}) == 6

    def test_patients_of_dicom_images_in_pairs(self, tmp_path: Path) -> None:
        self.fill(tmp_path, "masks/scan{}.png")
        (tmp_path / "images").mkdir()
        for number in range(6):
            (tmp_path / f"scan{number}.dcm").rename(tmp_path / "images" / f"scan{number}.dcm")
        (tmp_path / "images" / "scan9.png").write_bytes(png(drawn_chest(9, 64)[0]))
        (tmp_path / "masks" / "scan9.png").write_bytes(png(drawn_chest(9, 64)[1]))
        found = listing(tmp_path, layout="pairs")
        assert len({record.patient_id for record in found.records}) == 4
        assert found.unknown_patients == 1
