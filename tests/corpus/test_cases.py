"""The drawn corpora of `../shared/cases`, with the truth of each: pixels, patients, splits and groups."""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts import list_corpus
from lungseg_ray.corpus.read import read_sample
from tests.helpers import ROOT

CASES = ROOT / "../shared/cases/trees.py"


@dataclass(frozen=True)
class Right:
    """What is right for a case.

    Attributes:
        images: The number of images with a mask.
        patients: The number of patients; by default each image is of another one.
        splits: The number of images in each split; by default the corpus prescribes none.
        groups: The columns that the images have.
        dice: The smallest Dice coefficient of a mask with the truth; masks that are interpolated are not exact.
        warning: A part of a warning; by default there is none.
    """

    images: int
    patients: int | None = None
    splits: tuple[int, int, int] | None = None
    groups: tuple[str, ...] = ()
    dice: float = 1.0
    warning: str = ""


TABLE = Right(9, 3, (3, 3, 3))
RIGHT = {
    "nih_names": Right(36, 12),
    "patient_column_PatientID": Right(9, 3),
    "patient_column_subject_id": Right(9, 3),
    "split_column_Split": TABLE,
    "sides_below_images": Right(15, splits=(5, 5, 5)),
    "index_misnamed": TABLE,
    "radiography": Right(16, groups=("folder",), dice=0.99, warning="COVID.metadata.xlsx is not used"),
    "quex": Right(36, splits=(12, 12, 12), groups=("folder",)),
    "split_folders": Right(18, splits=(6, 6, 6)),
    "folders_image_mask": Right(5),
    "folders_upper": Right(5),
    "wrapped": Right(5),
    "suffix_mask": Right(6),
    "prefix_mask": Right(6),
    "own_predictions": Right(6),
    "same_folder": Right(12, groups=("folder",)),
    "jpeg_masks": Right(6),
    "smooth_masks": Right(6, dice=0.99),
    "mask_65535": Right(6),
    "red_masks": Right(6),
    "two_colours": Right(6, dice=-1, warning='--corpus.mask_values \'{"#000000": 0, "#00ff00": 1, "#ff0000": 2}\''),
    "alpha_white": Right(6),
    "fixed_256": Right(6, dice=0.98),
    "inverted": Right(12, dice=-1, warning="12 masks mark (0, 1, 10, ...) most of their image and its whole border"),
    "siim_rle": Right(4, splits=(4, 0, 0), groups=("modality", "study_key")),
    "coco": Right(5),
    "labelme": Right(5),
    "nifti_masks": Right(4),
    "left_right_files": Right(6),
    "both_nlm_sets": Right(10, groups=("finding", "set")),
    "two_hospitals": Right(10, groups=("folder",)),
    "bmp": Right(5),
    "int32_tiff_masks": Right(6),
    "twelve_bits_silent": Right(6),
    "hidden_checkpoints": Right(5),
    "semicolons": TABLE,
    "columns_image_mask": TABLE,
    "backslashes": TABLE,
    "split_training": TABLE,
    "chexpert_folders": Right(16, 8),
    "dicom_in_manifest": Right(24, 6),
    "images_and_labels": Right(5),
    "nnunet": Right(5, splits=(5, 0, 0)),
    "capitals_differ": Right(6),
    "nested_flat": Right(6, 3),
    "dicom_flat": Right(6, 3, groups=("modality", "study_key")),
    "cvat": Right(5),
    "alpha_red": Right(6),
    "masks_in_a_cell": TABLE,
    "kaggle_twice": Right(11, groups=("age", "finding", "sex")),
    "jpeg_in_tiff": Right(6),
    "tabs": TABLE,
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    if not CASES.exists():
        pytest.skip(f"needs {CASES}")
    spec = importlib.util.spec_from_file_location("trees", CASES)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module)["DATA"] = tmp_path_factory.mktemp("cases")
    return module


def settings_of(command: str) -> CorpusSettings:
    words = shlex.split(command)
    found: dict[str, Any] = {}
    for option, text in pairwise(words):
        if option.startswith("--corpus."):
            found[option.removeprefix("--corpus.")] = json.loads(text) if text[0] in "[{" or text.isdigit() else text
    return CorpusSettings.model_validate(found)


def test_every_case_is_here(trees: ModuleType) -> None:
    assert trees.CASES.keys() == RIGHT.keys()


WITHOUT_TRUTH = {"index_misnamed", "dicom_in_manifest", "dicom_flat"}
"""The trees that do not come with the true masks of their images."""


@pytest.mark.parametrize("name", RIGHT)
def test_cases(name: str, trees: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNGSEG_SALT", "a salt of this test")
    build, command, _ = trees.CASES[name]
    tree, right = build(), RIGHT[name]
    found = list_corpus(settings_of(command.format(root=tree.root)))
    records = found.records
    assert len(records) == right.images
    assert len({record.patient_id for record in records}) == (right.patients or right.images)
    splits = Counter(record.split for record in records)
    assert tuple(splits[split] for split in ("train", "val", "test")) == (right.splits or (0, 0, 0))
    assert sorted({group for record in records for group in record.groups}) == sorted(right.groups)
    assert found.set_aside == []
    warnings = [*found.warnings, *found.glances]
    assert bool(warnings) == bool(right.warning)
    assert right.warning in "\n".join(warnings)
    if right.dice < 0:
        return
    compared = 0
    for record in records:
        sample = read_sample(record, found.corpus, longer_side=4096)
        truth = tree.truth.get(record.image_uri)
        if truth is None:
            continue
        compared += 1
        mask = sample.mask > 0
        both = int(mask.sum() + truth.sum())
        assert mask.shape == truth.shape
        assert (2 * np.logical_and(mask, truth).sum() / both if both else 1.0) >= right.dice
    assert compared == (0 if name in WITHOUT_TRUTH else len(records))
