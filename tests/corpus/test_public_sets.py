"""Public sets that are read as pairs or as DICOM, with the names of files and columns as in docs/corpora.md."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts import Listing, list_corpus
from lungseg_ray.corpus.layouts.patients import name_patients
from lungseg_ray.corpus.read import read_sample
from lungseg_ray.corpus.record import Record
from tests.corpus.dicoms import dataset, encoded
from tests.corpus.kinds import png
from tests.corpus.trees import chest, fill, listing, run_lengths

Pixels = NDArray[np.uint8]


def write(root: Path, path: str, pixels: NDArray[Any]) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(
        png(pixels) if path.endswith(".png") else encoded(dataset(pixels, PatientID="", StudyInstanceUID=""))
    )


def masks_of(found: Listing) -> list[Pixels]:
    return [read_sample(record, found.corpus, longer_side=64).mask for record in found.records]


def halves(mask: Pixels) -> tuple[Pixels, Pixels, Pixels]:
    """The left lung, the right lung and no heart, as (H, W) of 0 and 255."""
    left, right = mask.copy(), mask.copy()
    left[:, :32], right[:, 32:] = 0, 0
    return left, right, mask * np.uint8(0)


def chexmask(root: Path, column: str, names: list[str]) -> Path:
    """A table with the lungs of `chest(0)`, `chest(1)`, ..."""
    rows = [(name, 0.9, *halves(chest(number, 64)[1])) for number, name in enumerate(names)]
    table = root / "chexmask" / "table.csv"
    table.parent.mkdir(parents=True)
    table.write_bytes(run_lengths(column, rows))
    return table


def assert_lungs(found: Listing, count: int) -> None:
    assert (len(found.records), found.set_aside) == (count, [])
    wanted = [(chest(number, 64)[1] > 0).astype(np.uint8).tobytes() for number in range(count)]
    assert sorted(mask.tobytes() for mask in masks_of(found)) == sorted(wanted)


def test_covid_19_radiography_database(tmp_path: Path) -> None:
    root = tmp_path / "COVID-19_Radiography_Dataset"
    for label in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"):
        for number in range(1, 4):
            image, mask = chest(number, 299)
            small = cv2.resize(mask, (256, 256), interpolation=cv2.INTER_NEAREST)
            write(root, f"{label}/images/{label}-{number}.png", image)
            write(root, f"{label}/masks/{label}-{number}.png", np.stack([small] * 3, axis=-1))
    found = listing(root)
    assert (len(found.records), found.set_aside) == (12, [])
    assert Counter(record.groups["folder"] for record in found.records)["Viral Pneumonia"] == 3
    assert any("256 x 256 px" in line and "corpus.mask_scale" in line for line in found.recognition)
    sample = read_sample(found.records[0], found.corpus, longer_side=299)
    wanted = chest(1, 299)[1] > 0
    assert 2 * (sample.mask & wanted).sum() / (sample.mask.sum() + wanted.sum()) > 0.98


def test_siim_acr(tmp_path: Path) -> None:
    rows = ["ImageId, EncodedPixels"]
    for number in range(4):
        image, mask = chest(number, 64)
        write(tmp_path, f"dicom-images-train/1.{number}/2.{number}/1.2.{number}.dcm", image)
        starts = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel() > 0, [0]]).astype(np.int8)))
        last, words = 0, []
        for start, end in zip(starts[::2], starts[1::2], strict=True):
            words += [str(start - last), str(end - start)]
            last = end
        rows.append(f"1.2.{number}, {'-1' if number == 3 else ' '.join(words)}")
    (tmp_path / "train-rle.csv").write_text("\n".join(rows) + "\n")
    found = listing(tmp_path, class_names=["pneumothorax"])
    assert (found.layout, len(found.records), found.set_aside) == ("dicom", 4, [])
    assert found.corpus.empty_masks == "keep"
    assert sorted(int(mask.sum()) for mask in masks_of(found)) == sorted(
        [0, *(int((chest(number, 64)[1] > 0).sum()) for number in range(3))]
    )


def test_chexpert(tmp_path: Path) -> None:
    paths = [f"train/patient{number // 2 + 1:05d}/study{number % 2 + 1}/view1_frontal" for number in range(4)]
    for number, path in enumerate(paths):
        write(tmp_path, f"CheXpert-v1.0-small/{path}.png", chest(number, 64)[0])
    fill(tmp_path, "CheXpert-v1.0-small/valid/patient64541/study1/view2_lateral.png")
    table = chexmask(tmp_path, "Path", [f"/{path}.jpg" for path in paths])
    found = list_corpus(CorpusSettings(root=[str(tmp_path / "CheXpert-v1.0-small"), str(table)]))
    assert_lungs(found, 4)
    assert Counter(record.patient_id for record in found.records) == {"patient00001": 2, "patient00002": 2}
    assert {record.split for record in found.records} == {"train"}


def test_mimic_cxr_jpg(tmp_path: Path) -> None:
    names = [f"0{number}aa804e-bde0afdd-112c0b34-7bc16630-4e384014" for number in range(6)]
    for number, name in enumerate(names):
        write(tmp_path, f"files/p10/p1000003{number // 2}/s5041426{number}/{name}.png", chest(number, 64)[0])
    table = chexmask(tmp_path, "dicom_id", names)
    found = list_corpus(CorpusSettings(root=[str(tmp_path / "files"), str(table)]))
    assert_lungs(found, 6)
    assert Counter(record.patient_id for record in found.records) == {f"p1000003{number}": 2 for number in range(3)}


def test_padchest(tmp_path: Path) -> None:
    names = [f"21684011136696401382954316651201333813574788{number}_02-094-10{number}.png" for number in range(4)]
    for number, name in enumerate(names):
        write(tmp_path, f"padchest/{number % 2}/{name}", chest(number, 64)[0].astype(np.uint16) * 257)
    rows = "".join(f"{number},{name},{number // 2}99\n" for number, name in enumerate(names))
    labels = tmp_path / "padchest" / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
    labels.write_text(f",ImageID,PatientID\n{rows}")
    found = list_corpus(CorpusSettings(root=[str(tmp_path / "padchest"), str(chexmask(tmp_path, "ImageID", names))]))
    assert_lungs(found, 4)
    assert Counter(record.patient_id for record in found.records) == {"099": 2, "199": 2}


def test_vindr_cxr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNGSEG_SALT", "a salt of sixteen or more")
    names = [f"{number:032x}" for number in range(4)]
    for number, name in enumerate(names):
        write(tmp_path, f"vindr/{'test' if number == 3 else 'train'}/{name}.dicom", chest(number, 64)[0])
    found = list_corpus(CorpusSettings(root=[str(tmp_path / "vindr"), str(chexmask(tmp_path, "image_id", names))]))
    assert found.layout == "dicom"
    assert_lungs(found, 4)
    assert Counter(record.split for record in found.records) == {"train": 3, "test": 1}
    assert found.unknown_patients == 4


@pytest.mark.parametrize("edition", ["Segmentation01", "segmentation02"])
def test_mini_jsrt(edition: str, tmp_path: Path) -> None:
    for number in range(4):
        image, mask = chest(number, 64)
        split = "test" if number == 3 else "train"
        if edition == "Segmentation01":
            write(tmp_path, f"{edition}/{split}/org/case{number}.png", image)
            write(tmp_path, f"{edition}/{split}/label/case{number}.png", mask)
            continue
        four = np.where(mask > 0, 255, 170).astype(np.uint8)
        four[40:44, 30:34], four[:4] = 85, 0
        folder = tmp_path / edition / "segmentation"
        (folder / f"org_{split}").mkdir(parents=True, exist_ok=True)
        (folder / f"org_{split}" / f"case{number:03d}.bmp").write_bytes(cv2.imencode(".bmp", image)[1].tobytes())
        write(folder, f"label_{split}/case{number:03d}_label.png", four)
    values = {} if edition == "Segmentation01" else {"0": 0, "170": 0, "85": 0, "255": 1}
    found = listing(tmp_path, mask_values=values)
    assert (len(found.records), found.set_aside) == (4, [])
    assert Counter(record.split for record in found.records) == {"train": 3, "test": 1}
    if not values:
        assert_lungs(found, 4)
        return
    for record, mask in zip(found.records, masks_of(found), strict=True):
        whole = chest(int(record.image_id[-1]), 64)[1] > 0
        whole[40:44, 30:34], whole[:4] = False, False
        assert np.array_equal(mask, whole)
    (question,) = listing(tmp_path).warnings
    assert "The masks have the values 0, 85, 170, 255" in question
    assert json.dumps({"0": 0}).strip("{}") in question


@pytest.mark.parametrize(
    ("paths", "patients"),
    [
        (["train/NORMAL/IM-0001-0001", "train/NORMAL/NORMAL2-IM-1427-0001"], ["im-0001", "normal2-im-1427"]),
        (["train/x/person1_virus_6", "test/x/person1_bacteria_1"], ["train/person1", "test/person1"]),
        (["images_001/images/00000001_000", "images_002/images/00000001_001"], ["00000001", "00000001"]),
    ],
)
def test_names_of_patients(paths: list[str], patients: list[str]) -> None:
    more = [path.replace("1", digit) for digit in "345" for path in paths]
    records = [Record(path, path, (), "") for path in [*paths, *more]]
    named, _ = name_patients(records, {record.image_id: f"{record.image_id}.png" for record in records}, "auto")
    assert [record.patient_id for record in named[: len(paths)]] == patients
