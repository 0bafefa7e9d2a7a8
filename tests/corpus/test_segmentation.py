"""DICOM segmentations: by the images that they refer to, and by their names."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts import list_corpus
from lungseg_ray.corpus.read import read_sample
from lungseg_ray.corpus.segmentation import draw_segmentation, is_segmentation
from lungseg_ray.errors import BadFileError
from tests.corpus.dicoms import dataset, encoded, real
from tests.corpus.kinds import png
from tests.corpus.trees import chest

SIZE = 64
_NEEDED: dict[str, Any] = {
    "StudyTime": "",
    "AccessionNumber": "",
    "SeriesNumber": 1,
    "InstanceNumber": 1,
    "PatientBirthDate": "",
}


@pytest.fixture(autouse=True)
def _salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNGSEG_SALT", "a salt of sixteen or more")


def xray(index: int) -> tuple[Dataset, NDArray[np.uint8], NDArray[np.uint8]]:
    """A radiograph, and its right and left lung."""
    image, mask = chest(index, SIZE)
    right, left = mask.astype(bool), mask.astype(bool)
    right[:, SIZE // 2 :], left[:, : SIZE // 2] = False, False
    uids: dict[str, Any] = {
        name: f"1.2.3.{number}.{index}" for number, name in enumerate(("StudyInstanceUID", "SeriesInstanceUID"))
    }
    made = dataset(image, SOPInstanceUID=f"1.2.3.9.{index}", PatientID=f"P{index}", **uids, **_NEEDED)
    return made, right.astype(np.uint8), left.astype(np.uint8)


def segmentation(images: Sequence[Dataset], masks: Sequence[NDArray[Any]], *names: str, kind: str = "BINARY") -> bytes:
    """A file with a segment for each name, in masks of (H, W, segments)."""
    segments = [
        SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Lung,
            algorithm_type="MANUAL",
        )
        for number, name in enumerate(names, start=1)
    ]
    made = Segmentation(
        source_images=list(images),
        pixel_array=np.stack(masks),
        segmentation_type=kind,
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=2,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
    )
    file = io.BytesIO()
    made.save_as(file)
    return file.getvalue()


def joined(one: bytes, other: bytes) -> bytes:
    """A file with the frames of two that have the same segments."""
    made, more = (pydicom.dcmread(io.BytesIO(data)) for data in (one, other))
    made.NumberOfFrames += more.NumberOfFrames
    made.PerFrameFunctionalGroupsSequence += more.PerFrameFunctionalGroupsSequence
    made.ReferencedSeriesSequence[0].ReferencedInstanceSequence += more.ReferencedSeriesSequence[
        0
    ].ReferencedInstanceSequence
    made.PixelData += more.PixelData
    return encoded(made)


class TestDraw:
    def test_two_structures(self) -> None:
        image, right, left = xray(1)
        data = segmentation([image], [np.stack([right, left], -1)], "Right Lung", "Left Lung")
        assert is_segmentation(data)
        assert np.array_equal(draw_segmentation(data, {"Right Lung": 1, "Left Lung": 2}.__getitem__), right + 2 * left)

    def test_a_structure_that_does_not_count(self) -> None:
        image, right, left = xray(1)
        data = segmentation([image], [np.stack([right, left], -1)], "Lung", "Heart")
        assert np.array_equal(draw_segmentation(data, {"Lung": 1, "Heart": 0}.__getitem__), right)

    def test_probabilities(self) -> None:
        image, right, _ = xray(1)
        data = segmentation([image], [(right * 0.6)[..., None]], "Lung", kind="FRACTIONAL")
        assert np.array_equal(draw_segmentation(data, lambda _: 1), right)
        assert not draw_segmentation(data, lambda _: 1, threshold=0.7).any()

    def test_of_several_images(self) -> None:
        (one, first, _), (other, _, second) = xray(0), xray(1)
        other.StudyInstanceUID, other.SeriesInstanceUID = one.StudyInstanceUID, one.SeriesInstanceUID
        data = joined(
            segmentation([one], [first[..., None]], "Lung"), segmentation([other], [second[..., None]], "Lung")
        )
        for image, mask in ((one, first), (other, second)):
            drawn = draw_segmentation(data, lambda _: 1, instance=str(image.SOPInstanceUID))
            assert np.array_equal(drawn, mask)
        with pytest.raises(BadFileError, match="expected a segmentation of one image, found one of 2"):
            draw_segmentation(data, lambda _: 1)

    def test_of_another_image(self) -> None:
        image, right, _ = xray(1)
        data = segmentation([image], [right[..., None]], "Lung")
        with pytest.raises(BadFileError) as caught:
            draw_segmentation(data, lambda _: 1, instance="1.2.3.9.77")
        assert caught.value.reason == "unreadable"

    def test_frames_that_refer_to_nothing(self) -> None:
        image, right, _ = xray(1)
        made = highdicom.seg.segread(io.BytesIO(segmentation([image], [right[..., None]], "Lung")))
        for frame in made.PerFrameFunctionalGroupsSequence:
            del frame.DerivationImageSequence
        file = io.BytesIO()
        made.save_as(file)
        with pytest.raises(BadFileError, match="expected frames that say which image they mark"):
            draw_segmentation(file.getvalue(), lambda _: 1)

    def test_a_radiograph_with_a_spacing(self) -> None:
        """A segmentation of it has a spacing, and no thickness of slices."""
        image, right, _ = xray(1)
        image.PixelSpacing = [0.2, 0.2]
        data = segmentation([image], [right[..., None]], "Lung")
        assert np.array_equal(draw_segmentation(data, lambda _: 1), right)

    def test_other_files_are_none(self) -> None:
        assert not is_segmentation(encoded(xray(1)[0]))
        assert not is_segmentation(png(xray(1)[1]))
        # A segmentation of a volume, as it comes with pydicom, has no image of ours.
        assert is_segmentation(real("liver_1frame.dcm").read_bytes())


class TestCorpus:
    def test_by_reference(self, tmp_path: Path) -> None:
        """Files of an archive, with names that say nothing: an image is found by the UID to which its masks refer."""
        for index in range(4):
            image, right, left = xray(index)
            (tmp_path / f"study{index}").mkdir()
            (tmp_path / f"study{index}" / "1").write_bytes(encoded(image))
            data = segmentation([image], [np.stack([right, left], -1)], "Right Lung", "Left Lung")
            (tmp_path / f"study{index}" / f"{7 * index}").write_bytes(data)
        found = list_corpus(CorpusSettings(root=str(tmp_path)))
        assert (found.layout, len(found.records), found.unlabelled, found.set_aside) == ("dicom", 4, [], [])
        assert "annotations: 4 DICOM segmentations: Right Lung (4), Left Lung (4)" in found.recognition
        assert len({record.patient_id for record in found.records}) == 4
        masks = [read_sample(record, found.corpus, longer_side=SIZE).mask for record in found.records]
        wanted = [xray(index)[1] | xray(index)[2] for index in range(4)]
        assert sorted(mask.tobytes() for mask in masks) == sorted(mask.tobytes() for mask in wanted)
        apart = list_corpus(CorpusSettings(root=str(tmp_path), unite=False))
        assert apart.corpus.class_names == ["Left Lung", "Right Lung"]
        sample = read_sample(apart.records[0], apart.corpus, longer_side=SIZE)
        assert {*np.unique(sample.mask)} == {0, 1, 2}

    def test_two_of_one_structure(self, tmp_path: Path) -> None:
        image, right, left = xray(0)
        (tmp_path / "a.dcm").write_bytes(encoded(image))
        (tmp_path / "b.dcm").write_bytes(segmentation([image], [right[..., None]], "Lung"))
        (tmp_path / "c.dcm").write_bytes(segmentation([image], [left[..., None]], "Lung"))
        found = list_corpus(CorpusSettings(root=str(tmp_path)))
        assert [(one.reason, found.records) for one in found.set_aside] == [("ambiguous", [])]

    def test_by_name(self, tmp_path: Path) -> None:
        """Beside images of another format, whose names are those of the masks."""
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir()
        for index in range(3):
            image, right, left = xray(index)
            (tmp_path / "images" / f"{index}.png").write_bytes(png(image.pixel_array))
            data = segmentation([image], [np.stack([right, left], -1)], "Right Lung", "Left Lung")
            (tmp_path / "masks" / f"{index}.dcm").write_bytes(data)
        found = list_corpus(CorpusSettings(root=str(tmp_path)))
        assert (found.layout, len(found.records), found.set_aside) == ("pairs", 3, [])
        sample = read_sample(found.records[2], found.corpus, longer_side=SIZE)
        assert np.array_equal(sample.mask, xray(2)[1] | xray(2)[2])
