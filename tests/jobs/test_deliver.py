"""Masks in other forms: what goes out is read again, by this project and by others."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import cv2
import highdicom
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from lungseg_ray.config import CorpusSettings, DeliverJob
from lungseg_ray.corpus.annotations.write import polygons
from lungseg_ray.corpus.dicom_write import write_picture, write_segmentation
from lungseg_ray.corpus.layouts import list_corpus
from lungseg_ray.corpus.phantom import draw
from lungseg_ray.corpus.read import read_sample
from lungseg_ray.corpus.segmentation import draw_segmentation
from lungseg_ray.errors import UserError
from lungseg_ray.imaging import png_with_texts
from lungseg_ray.jobs.deliver import ANNOTATIONS, CLAIM, deliver
from lungseg_ray.jobs.predict import SOURCE
from tests.corpus.dicoms import IDENTITY, chest, encoded
from tests.jobs.predictions import write_prediction

SIZE = 120


def job(predicted: Path, form: str, **more: object) -> DeliverJob:
    given = {"predictions": str(predicted), "out": str(predicted.parent / form), "form": form}
    return DeliverJob.model_validate({**given, **more})


@pytest.fixture
def predicted(tmp_path: Path) -> Path:
    """Four PNG images, one of which has vanished, and what was predicted of them."""
    (tmp_path / "images").mkdir()
    masks = {}
    for number in range(4):
        image, mask = draw(number, seed=0, size=SIZE)
        name = f"{'abcd'[number]} <b>.png"
        if number != 3:
            cv2.imwrite(str(tmp_path / "images" / name), image)
        masks[name] = mask
    return write_prediction(tmp_path, masks)


@pytest.fixture
def radiographs(tmp_path: Path) -> tuple[Path, dict[str, NDArray[np.uint8]]]:
    """Two DICOM images of a study and a PNG image, and what was predicted of them."""
    masks = {}
    for number, name in enumerate(["one/IM1", "one/IM2.dcm", "other.png"]):
        image, mask = draw(number, seed=0, size=SIZE)
        place = tmp_path / "images" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("png"):
            cv2.imwrite(str(place), image)
        else:
            own: dict[str, Any] = {"PatientBirthDate": None} if number else {}
            place.write_bytes(chest(image, SOPInstanceUID=f"{IDENTITY['SOPInstanceUID']}.{number}", **own))
        masks[name] = mask
    return write_prediction(tmp_path, masks), masks


@pytest.mark.parametrize("form", ["labelme", "coco", "coco-rle", "masks"])
def test_wrong_masks_go_out_and_come_back_as_a_corpus(cluster: None, predicted: Path, form: str) -> None:
    verdicts = predicted.parent / "review.csv"
    verdicts.write_text('image,verdict\n"a <b>.png",wrong\n"b <b>.png",right\n"c <b>.png",wrong\n')
    given = job(predicted, form, verdicts=str(verdicts))
    assert deliver(given) == (2, [])

    corpus = CorpusSettings(root=given.out.uri)
    samples = [read_sample(record, corpus, longer_side=1024) for record in list_corpus(corpus).records]
    assert len(samples) == 2
    for sample, number in zip(samples, (0, 2), strict=True):
        image, mask = draw(number, seed=0, size=SIZE)
        assert (sample.image[:, :, 0] == image).all()
        both = (sample.mask == 1) & (mask == 1)
        exact = form in ("masks", "coco-rle")
        assert both.sum() / ((sample.mask == 1) | (mask == 1)).sum() > (0.999 if exact else 0.98)

    # Someone may have corrected what is there.
    with pytest.raises(UserError, match="written here before"):
        deliver(given)
    with pytest.raises(UserError, match="files in this folder already"):
        deliver(given.model_copy(update={"verdict": "right"}))
    # An interrupted one goes on, unless the verdicts have changed.
    claim = Path(given.out.path, CLAIM)
    claim.write_text(claim.read_text().replace("true", "false"))
    assert deliver(given) == (2, [])
    claim.write_text(claim.read_text().replace("true", "false"))
    verdicts.write_text('image,verdict\n"a <b>.png",wrong\n')
    with pytest.raises(UserError, match="files in this folder already"):
        deliver(given)


def test_what_has_vanished_is_left_out(cluster: None, predicted: Path) -> None:
    count, left_out = deliver(job(predicted, "measures"))
    assert count == 3
    assert [(one.image, one.reason) for one in left_out] == [
        ("d <b>.png", "unreadable: the file cannot be opened: there is no such file")
    ]
    with (predicted.parent / "measures/measures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["a <b>.png", "b <b>.png", "c <b>.png"]
    mask = draw(0, seed=0, size=SIZE)[1]
    assert rows[0]["lung_area_px"] == str(mask.sum())
    # The spacing of a PNG file is not known.
    assert rows[0]["lung_area_mm2"] == ""


def test_the_mask_of_another_image_is_left_out(cluster: None, predicted: Path) -> None:
    """An image was replaced by another of the same name and size; another one is as it was."""
    for name in ("a", "b"):
        data = (predicted.parent / "images" / f"{name} <b>.png").read_bytes()
        file = predicted / "masks" / f"{name} <b>.png.png"
        pixels = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        assert pixels is not None
        file.write_bytes(png_with_texts(pixels.astype(np.uint8), {SOURCE: hashlib.sha256(data).hexdigest()}))
    cv2.imwrite(str(predicted.parent / "images/a <b>.png"), draw(9, seed=1, size=SIZE)[0])
    count, left_out = deliver(job(predicted, "measures"))
    assert count == 2
    assert [one.reason for one in left_out if one.image == "a <b>.png"] == [
        "changed: the image is another one than when its mask was predicted; predict again"
    ]


def test_components_of_a_few_pixels_are_polygons() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[2, 3] = 1
    mask[10, 5:18] = 1
    mask[14:19, 20:28] = 1
    drawn = np.zeros_like(mask)
    for one in polygons(mask):
        # Pixels whose centres are in the polygon.
        for row, column in np.ndindex(*mask.shape):
            corners = np.array(one, np.float32)
            drawn[row, column] |= cv2.pointPolygonTest(corners, (column + 0.5, row + 0.5), False) >= 0
    assert np.array_equal(drawn, mask)


def test_names_of_classes_in_other_scripts() -> None:
    image, mask = draw(0, seed=0, size=SIZE)
    source = pydicom.dcmread(io.BytesIO(chest(image, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Zoë")))
    made = write_segmentation(encoded(source), mask, ["лёгкое"], model="a")
    assert highdicom.seg.segread(io.BytesIO(made)).get_segment_description(1).segment_label == "лёгкое"
    assert pydicom.dcmread(io.BytesIO(made)).PatientName == "Müller^Zoë"


def test_segmentations(cluster: None, radiographs: tuple[Path, dict[str, NDArray[np.uint8]]]) -> None:
    predicted, masks = radiographs
    given = job(predicted, "dicom-seg")
    count, left_out = deliver(given)
    assert count == 2
    assert [one.reason for one in left_out] == ["unsupported: expected a DICOM image, found another format"]
    seen = set()
    for name in ("one/IM1", "one/IM2.dcm"):
        data = (predicted.parent / "dicom-seg" / f"{name}.dcm").read_bytes()
        source = pydicom.dcmread(predicted.parent / "images" / name)
        # Read by highdicom, by pydicom, and by this project.
        segments = highdicom.seg.segread(io.BytesIO(data))
        assert segments.get_segment_description(1).segment_label == "lung"
        ((study, series, instance),) = segments.get_source_image_uids()
        assert (study, series, instance) == (
            source.StudyInstanceUID,
            source.SeriesInstanceUID,
            source.SOPInstanceUID,
        )
        plain = pydicom.dcmread(io.BytesIO(data))
        assert np.array_equal(plain.pixel_array, masks[name])
        assert (plain.PatientID, plain.PatientName) == (source.PatientID, source.PatientName)
        derived = plain.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
        assert derived.SourceImageSequence[0].SpatialLocationsPreserved == "YES"
        assert np.array_equal(draw_segmentation(data, lambda label: 1), masks[name])
        seen.add(plain.SeriesInstanceUID)
    # The segmentations of a study are one series.
    assert len(seen) == 1
    # What is written again is the same object, and another mask is another one.
    data, labels = (predicted.parent / "images/one/IM2.dcm").read_bytes(), masks["one/IM2.dcm"]
    uids = [
        pydicom.dcmread(io.BytesIO(write_segmentation(data, each, ["lung"], model="ab" * 32))).SOPInstanceUID
        for each in (labels, labels, 1 - labels)
    ]
    assert uids[0] == uids[1] == plain.SOPInstanceUID
    assert uids[2] != uids[0]


@pytest.mark.parametrize(
    "tags",
    [
        {"PatientSex": "Male"},
        {"PatientBirthDate": "1960"},
        {"StudyDate": "19600000"},
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
        {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Zoë"},
        {"SpecificCharacterSet": "ISO 2022 IR 100"},
        {"Modality": None},
        {"PatientName": None, "PatientID": None},
        {"FrameOfReferenceUID": "1.2.3", "ImagePositionPatient": [0, 0, 0]},
        {"PatientOrientation": ["FR", "L"]},
    ],
    ids=lambda tags: "-".join(tags),
)
def test_tags_as_hospitals_have_them(tags: dict[str, Any]) -> None:
    image, mask = draw(0, seed=0, size=SIZE)
    with pydicom.config.disable_value_validation():
        source = pydicom.dcmread(io.BytesIO(chest(image)))
        for name, value in tags.items():
            if value is None:
                source.pop(name)
            else:
                setattr(source, name, value)
        data = encoded(source)
    colours = np.repeat(image[:, :, None], 3, axis=2)
    for made in (write_segmentation(data, mask, ["lung"], model="a"), write_picture(data, colours, model="a")):
        found = pydicom.dcmread(io.BytesIO(made))
        for name in ("PatientName", "PatientID", "PatientSex", "PatientBirthDate", "StudyDate"):
            assert str(found.get(name) or "") == str(source.get(name) or "")


def test_pictures(cluster: None, radiographs: tuple[Path, dict[str, NDArray[np.uint8]]]) -> None:
    predicted, masks = radiographs
    assert deliver(job(predicted, "dicom-picture"))[0] == 2
    found = pydicom.dcmread(predicted.parent / "dicom-picture/one/IM1.dcm")
    image = draw(0, seed=0, size=SIZE)[0]
    shown = found.pixel_array
    assert shown.shape == (SIZE, SIZE, 3)
    outline = shown[:, :, 0].astype(int) - shown[:, :, 2] > 60
    edge = cv2.morphologyEx(masks["one/IM1"], cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    assert outline.any()
    assert (outline & edge).sum() > 0.95 * outline.sum()
    elsewhere = cv2.dilate(edge.astype(np.uint8), np.ones((5, 5), np.uint8)) == 0
    assert abs(shown[:, :, 1].astype(int) - image)[elsewhere].max() <= 1
    # The spacing at the detector is not that at the patient, and nobody knows whether there is text in the image.
    assert (found.Modality, list(found.ImagerPixelSpacing)) == ("OT", [0.2, 0.2])
    assert not {"PixelSpacing", "BurnedInAnnotation"} & {element.keyword for element in found}


def test_measures_of_a_radiograph_are_in_millimetres(
    cluster: None, radiographs: tuple[Path, dict[str, NDArray[np.uint8]]]
) -> None:
    predicted, masks = radiographs
    assert deliver(job(predicted, "measures")) == (3, [])
    with (predicted.parent / "measures/measures.csv").open() as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert float(rows["one/IM1"]["lung_area_mm2"]) == pytest.approx(masks["one/IM1"].sum() * 0.04)


def test_nobody_is_named_outside_of_the_objects(
    cluster: None,
    radiographs: tuple[Path, dict[str, NDArray[np.uint8]]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    predicted, _ = radiographs
    forms = ("dicom-seg", "dicom-picture", "coco", "coco-rle", "masks", "labelme", "measures")
    for form in forms:
        deliver(job(predicted, form))
    said = capfd.readouterr()
    texts = [said.out.encode(), said.err.encode()]
    written = [path for form in forms for path in (predicted.parent / form).rglob("*") if path.is_file()]
    texts += [path.read_bytes() for path in written if path.suffix != ".dcm"]
    assert len([path for path in written if path.suffix == ".json"]) > 5
    for value in (IDENTITY["PatientName"], IDENTITY["PatientID"], IDENTITY["AccessionNumber"]):
        assert not any(value.encode() in text for text in texts)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("image,verdict\n../x.png,wrong\n", "1 of 1 images are not among those"),
        ("image,verdict\na <b>.png,wrong\na <b>.png,right\n", "no mask was judged wrong"),
        (None, "there is no such file"),
        ("a,b\n1,2\n", "expected columns image and verdict"),
    ],
)
def test_verdicts_that_cannot_be_used(predicted: Path, content: str | None, said: str) -> None:
    verdicts = predicted.parent / "review.csv"
    if content is not None:
        verdicts.write_text(content)
    with pytest.raises(UserError, match=said):
        deliver(job(predicted, "labelme", verdicts=str(verdicts)))


def test_a_table_that_leads_out_of_the_folder(cluster: None, predicted: Path) -> None:
    table = (predicted / "predictions.csv").read_text()
    (predicted / "predictions.csv").write_text(table.splitlines()[0] + "\n../x.png,done,,0.3,0.9,0.8,1,0,\n")
    with pytest.raises(UserError, match=r"nothing can be written as masks:\n1 left out.*\n.*inside the folder"):
        deliver(job(predicted, "masks"))


def test_a_form_that_nothing_can_be_written_in_leaves_the_folder_free(cluster: None, predicted: Path) -> None:
    given = job(predicted, "dicom-seg", out=str(predicted.parent / "out of it"))
    with pytest.raises(UserError, match="nothing can be written as dicom-seg"):
        deliver(given)
    other = job(predicted, "coco", out=str(predicted.parent / "out of it"))
    assert deliver(other)[0] == 3
    assert Path(other.out.path, ANNOTATIONS).exists()


def test_names_that_are_not_printable(cluster: None, tmp_path: Path) -> None:
    """Such as those of screenshots of macOS, with a narrow space before PM."""
    name, (image, mask) = "at 1.00.00\u202fPM.png", draw(0, seed=0, size=SIZE)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / name), image)
    predicted = write_prediction(tmp_path, {name: mask})
    table = predicted / "predictions.csv"
    table.write_text(table.read_text().replace("\u202f", "\\u202f"))
    assert deliver(job(predicted, "masks")) == (1, [])


def test_a_verdict_without_verdicts(predicted: Path) -> None:
    with pytest.raises(ValueError, match="--verdict needs --verdicts FILE"):
        job(predicted, "masks", verdict="right")


def test_coco_is_one_document(cluster: None, predicted: Path) -> None:
    deliver(job(predicted, "coco-rle"))
    content = json.loads((predicted.parent / "coco-rle/annotations.json").read_text())
    assert [one["id"] for one in content["images"]] == [1, 2, 3]
    assert [one["id"] for one in content["annotations"]] == [1, 2, 3]
    assert content["categories"] == [{"id": 1, "name": "lung"}]
