from __future__ import annotations

from typing import Any

import pytest
import yaml

from lungseg_ray.config import (
    CorpusSettings,
    Mark,
    Settings,
    SweepJob,
    differences,
    dump,
    explicitly_set,
    load_settings,
    marked,
    merge,
    non_default,
    select,
)


def test_dump_and_load_round_trip(config: Any) -> None:
    settings = load_settings(
        Settings,
        [
            *("--corpus.classes", "3", "--corpus.class_names", "left,right"),
            *("--corpus.mask_values", "0=0,7=2,9=ignore", "--corpus.about", "Röntgen: 'all'"),
            *("--optim.lr", "1e-5", "--train.channels_last", "false"),
            *("--evaluate.subgroups", "sex", "--evaluate.subgroups", "finding"),
        ],
    )
    assert settings.corpus.mask_values == {0: 0, 7: 2, 9: "ignore"}
    assert settings.evaluate.subgroups == ["sex", "finding"]
    assert load_settings(Settings, config(dump(settings))) == settings
    assert load_settings(Settings, config(dump(Settings()))) == Settings()
    assert set(yaml.safe_load(dump(settings))) == set(Settings.model_fields)


def test_differences() -> None:
    old = {"train": {"seed": 0, "epochs": 3}, "optim": {"lr": 0.1}, "gone": 1}
    new = {"train": {"seed": 1, "epochs": 3}, "optim": {"lr": 0.1, "k": 5}, "corpus": {"a": 1}}
    assert list(differences(old, new)) == [
        "train.seed: 0 -> 1",
        "optim.k: None -> 5",
        "gone: 1 -> None",
        "corpus: None -> {'a': 1}",
    ]
    assert not list(differences(old, old))
    assert list(differences(old, new, ignore={"optim", "train.seed"})) == [
        "gone: 1 -> None",
        "corpus: None -> {'a': 1}",
    ]


def test_what_differs_from_the_defaults() -> None:
    corpus = CorpusSettings.model_validate({"classes": 3, "class_names": ["a", "b"], "split": {"seed": 5}})
    assert non_default(corpus) == {"classes": 3, "class_names": ["a", "b"], "split": {"seed": 5}}
    assert non_default(CorpusSettings()) == {}
    assert non_default(
        load_settings(Settings, ["--corpus.classes", "1", "--corpus.mask_values", "0=0,9=1"]).corpus
    ) == {"mask_values": {0: 0, 9: 1}}


def test_what_was_set_is_known_as_set_although_it_is_the_default(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert explicitly_set(load_settings(Settings, []).corpus) == {}
    monkeypatch.setenv("LUNGSEG_CORPUS__CLASSES", "1")
    file = config("corpus:\n  split:\n    seed: 0\n")
    corpus = load_settings(Settings, [*file, "--corpus.channels", "1"]).corpus
    assert explicitly_set(corpus) == {"channels": 1, "classes": 1, "split": {"seed": 0}}


def test_marks_hold_for_all_that_lies_below_a_section() -> None:
    may_change = set(marked(SweepJob, Mark.MAY_CHANGE))
    assert {"corpus.channels", "corpus.split.seed", "runs.name", "train.workers", "sweep.budget.minutes"} <= may_change
    assert not may_change & {"train.seed", "train.epochs", "model.encoder", "sweep.space", "sweep.budget.gflops"}
    assert set(marked(Settings, Mark.DESCRIPTION)) == {"corpus.about", "corpus.licence"}
    assert "shards.root" not in set(marked(Settings, Mark.IN_SHARDS))
    assert "optim.lr" not in set(marked(Settings, Mark.NOT_SEARCHED))


def test_select() -> None:
    tree = {"a": {"b": {"c": 1}, "d": 2}, "e": 3, "f": {}}
    assert select(tree, {"a.b", "f"}) == {"a": {"b": {"c": 1}}, "f": {}}
    assert select(tree, {"x"}) == {}


def test_merge_replaces_leaves() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "d": 5}) == {"a": {"b": 1, "c": 4}, "d": 5}
