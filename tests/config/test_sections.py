from __future__ import annotations

import pytest

from lungseg_ray.config import CorpusSettings, Settings, load_settings
from lungseg_ray.errors import UserError


def test_batch_must_divide() -> None:
    parts = ["--train.workers", "2", "--train.accumulate", "3"]
    assert load_settings(Settings, [*parts, "--feed.batch", "12"]).feed.batch == 12
    with pytest.raises(UserError, match=r"feed\.batch must divide by train\.workers x train\.accumulate = 6, found 8"):
        load_settings(Settings, [*parts, "--feed.batch", "8"])


def test_split_must_leave_some_to_train() -> None:
    with pytest.raises(UserError, match=r"corpus\.split: val \+ test .* found 0\.5 \+ 0\.5"):
        load_settings(Settings, ["--corpus.split.val", "0.5", "--corpus.split.test", "0.5"])


def test_class_names_and_mask_values() -> None:
    with pytest.raises(UserError, match=r"class_names must name 2 label\(s\), found \['lung'\]"):
        load_settings(Settings, ["--corpus.classes", "3"])
    # classes = 2 is background and one structure, as classes = 1 is.
    assert load_settings(Settings, ["--corpus.classes", "2"]).corpus.labels == {0: 0, 1: 1}
    with pytest.raises(UserError, match=r"mask_values must map to labels 0 to 1 or 'ignore', found \{3: 2\}"):
        load_settings(Settings, ["--corpus.mask_values", "0=0,3=2"])
    with pytest.raises(UserError, match=r"found \{3: -1\}"):
        load_settings(Settings, ["--corpus.mask_values", "3=-1"])


def test_labels() -> None:
    assert CorpusSettings().labels == {0: 0, 1: 1, 255: 1}
    assert CorpusSettings(classes=3, class_names=["left", "right"]).labels == {0: 0, 1: 1, 2: 2}
    assert CorpusSettings(mask_values={5: 1, 6: "ignore"}).labels == {5: 1, 6: "ignore"}


def test_settings_stay_as_they_were_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().train.epochs = 3  # type: ignore[misc]


def test_the_batch_divides_among_any_number_of_elastic_workers() -> None:
    Settings.model_validate({"feed": {"batch": 12}, "train": {"workers": 4, "min_workers": 1}})
    with pytest.raises(
        ValueError, match=r"accumulate = 3, found 8; from train\.min_workers on, any number up to 4 must"
    ):
        Settings.model_validate({"feed": {"batch": 8}, "train": {"workers": 4, "min_workers": 2}})
    with pytest.raises(ValueError, match=r"train\.min_workers = 3 must not exceed train\.workers = 2"):
        Settings.model_validate({"train": {"workers": 2, "min_workers": 3}})


class TestNames:
    @pytest.mark.parametrize(
        ("option", "given", "found"),
        [
            ("--model.architecture", "unetplusplus", "UnetPlusPlus"),
            ("--feed.preset", "HEAVY", "heavy"),
            ("--model.encoder", "ResNet34", "resnet34"),
            ("--model.encoder", "Timm-RegNetY_002", "timm-regnety_002"),
            ("--model.encoder", "tu-regnety_002", "tu-regnety_002"),
        ],
    )
    def test_case_does_not_matter(self, option: str, given: str, found: str) -> None:
        section, name = option.removeprefix("--").split(".")
        assert getattr(getattr(load_settings(Settings, [option, given]), section), name) == found

    @pytest.mark.parametrize(
        ("option", "given", "message"),
        [
            (
                "--model.architecture",
                "Unett",
                r"model\.architecture: there is no .* 'Unett'\. Did you mean Unet\?",
            ),
            (
                "--feed.preset",
                "chests",
                r"feed\.preset: there is no .* 'chests'\. Did you mean chest\?",
            ),
            ("--model.encoder", "resnet33", r"model\.encoder: There is no encoder 'resnet33'\. Did you mean resnet"),
        ],
    )
    def test_unknown_ones_have_a_suggestion(self, option: str, given: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            load_settings(Settings, [option, given])


def test_corpora_that_are_mixed_in_one_after_the_other() -> None:
    first, then = {"root": "a", "share": 0.8, "until": 0.3}, {"root": "b", "share": 0.8, "first": 0.3}
    assert len(Settings.model_validate({"corpora": [first, then]}).corpora) == 2
    with pytest.raises(ValueError, match=r"shares up to 1 in sum at any time, found \[0.8, 0.8\]"):
        Settings.model_validate({"corpora": [first, {**then, "first": 0.2}]})
