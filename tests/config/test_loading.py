from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from lungseg_ray.config import EvaluateJob, PredictJob, Settings, ShardJob, SweepJob, TrainJob, load_settings
from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location, locate
from tests.helpers import ROOT


def leaves(tree: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    for name, info in tree.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            # Relative places become absolute where they are read.
            default = locate(info.default).uri if f"{prefix}{name}" in ("shards.root", "runs.root") else info.default
            yield f"{prefix}{info.alias or name}", info.description or "", default


def test_order_of_sources(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(Settings, []) == Settings()
    file = config("optim:\n  patience: 1\n  factor: 0.5\n  warmup: 0.75\n")
    assert load_settings(Settings, file).optim.patience == 1
    monkeypatch.setenv("LUNGSEG_OPTIM__PATIENCE", "2")
    monkeypatch.setenv("LUNGSEG_OPTIM__FACTOR", "0.125")
    assert load_settings(Settings, file).optim.patience == 2
    found = load_settings(Settings, [*file, "--optim.patience", "3"])
    # One leaf of each source; the neighbours keep what the next source below says of them.
    assert (found.optim.patience, found.optim.factor, found.optim.warmup) == (3, 0.125, 0.75)
    assert found.optim.lr == Settings().optim.lr
    assert load_settings(Settings, ["--optim.patience=4", *file]).optim.patience == 4


def test_split_seed_two_levels_down(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = config("corpus:\n  split:\n    val: 0.25\n    seed: 1\n")
    monkeypatch.setenv("LUNGSEG_CORPUS__SPLIT__SEED", "2")
    split = load_settings(Settings, [*file, "--corpus.split.test", "0.05"]).corpus.split
    assert (split.val, split.test, split.seed) == (0.25, 0.05, 2)


@pytest.mark.parametrize(
    ("arguments", "file", "environment", "message"),
    [
        (["--train.epoch", "3"], "", {}, r"--train\.epoch: there is no such setting\. Did you mean train\.epochs\?"),
        (["--optim.lrr=3"], "", {}, r"--optim\.lrr: there is no such setting\. Did you mean optim\.lr\?"),
        ([], "train:\n  epoch: 3\n", {}, r"train\.epoch: there is no such setting\. Did you mean train\.epochs\?"),
        ([], "elephant:\n  epochs: 3\n", {}, r"elephant: there is no such setting\. --help lists all settings\."),
        ([], "", {"LUNGSEG_TRAIN__EPOCH": "3"}, r"train\.epoch: there is no such setting\. Did you mean train\.epochs"),
        (["--zzzzzzzz", "3"], "", {}, r"--zzzzzzzz: there is no such setting\. --help lists all settings\."),
    ],
)
def test_unknown_key(
    arguments: list[str],
    file: str,
    environment: dict[str, str],
    message: str,
    config: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match=message):
        load_settings(Settings, [*config(file), *arguments])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.epochs", "0"),
        ("train.epochs", "three"),
        ("optim.lr", "-1"),
        ("optim.lr", "nan"),
        ("optim.factor", "1.5"),
        ("feed.size", "100"),
        ("corpus.channels", "2"),
        ("corpus.layout", "folder"),
        ("train.device", "gpu"),
        ("runs.name", "a/b"),
        ("train.channels_last", "perhaps"),
        ("shards.longer_side", "16"),
    ],
)
def test_value_error_names_key_and_value(key: str, value: str, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    section, leaf = key.split(".")
    for way in ("command line", "file", "environment"):
        arguments = [f"--{key}", value] if way == "command line" else []
        if way == "file":
            arguments = config(yaml.safe_dump({section: {leaf: value}}))
        if way == "environment":
            monkeypatch.setenv(f"LUNGSEG_{section}__{leaf}".upper(), value)
        with pytest.raises(UserError) as error:
            load_settings(Settings, arguments)
        assert str(error.value).startswith(f"{key}: "), way
        assert value in str(error.value), way


def test_several_errors_are_named_at_once() -> None:
    with pytest.raises(UserError) as error:
        load_settings(Settings, ["--train.epochs", "0", "--optim.lr", "0"])
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["optim.lr", "train.epochs"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "expected sections such as 'train:', found list"),
        ("a: [\n", "is no YAML file of settings"),
        ("train: 4\n", "train: .*found 4"),
    ],
)
def test_file_of_another_form(text: str, message: str, config: Any) -> None:
    with pytest.raises(UserError, match=message):
        load_settings(Settings, config(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train:\n  epochs: 100\nfeed:\n  size: 64\ntrain:\n  workers: 1\n",
            "train is given twice, in line 1 and in line 5",
        ),
        ("train:\n  epochs: 100\n  epochs: 10\n", "epochs is given twice, in line 2 and in line 3"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in itertools.pairwise("abcdefghij")),
            "expected at most 100000 values, found more",
        ),
        ("a: &a\n  b: *a\n", "expected at most 100000 values"),
        ("[" * 5000, "expected plain values in sections"),
        ("train: {epochs: 5, epochs: 50}", "epochs is given twice"),
        ("corpus: {mask_values: {1: 1, 1: 2}}", "1 is given twice"),
        ("train: {epochs: !!bool x}", "expected plain values"),
        ("train: {epochs: !!int ''}", "expected plain values"),
        ("train: {epochs: !!timestamp x}", "expected plain values"),
        ("? [a, b]\n: c\n", "found unhashable key"),
    ],
)
def test_file_that_says_something_twice_or_too_much(text: str, message: str, config: Any) -> None:
    with pytest.raises(UserError, match=message):
        load_settings(Settings, config(text))


def test_two_files(config: Any) -> None:
    (option, path) = config("train:\n  epochs: 3\n")
    with pytest.raises(UserError, match="--config is given 2 times"):
        load_settings(Settings, [option, path, f"{option}={path}"])


def test_missing_file_and_empty_file(config: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--config /nowhere/x\.yaml: cannot be read \(No such file"):
        load_settings(Settings, ["--config", "/nowhere/x.yaml"])
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(Settings, ["--config", str(tmp_path)])
    assert load_settings(Settings, config("")) == Settings()


def test_missing_argument_of_a_job() -> None:
    with pytest.raises(UserError, match="--run is needed: Folder or s3:// prefix of a run") as error:
        load_settings(PredictJob, [])
    assert len(str(error.value).splitlines()) == 3
    assert load_settings(EvaluateJob, ["--run", "x"]).corpus is None


def test_names_of_options_may_have_dashes() -> None:
    settings = load_settings(
        Settings, ["--train.min-workers", "1", "--model.encoder=timm-resnest14d", "--runs.name", "a-b"]
    )
    assert (settings.train.min_workers, settings.model.encoder, settings.runs.name) == (1, "timm-resnest14d", "a-b")


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_configs_of_the_repository(file: Path) -> None:
    first, command, job, *rest = shlex.split(file.read_text().splitlines()[0], comments=False)
    assert (first, command) == ("#", "python")
    assert job.startswith("jobs/")
    assert (ROOT / job).is_file()
    assert (ROOT / rest[rest.index("--config") + 1]).samefile(file)
    tree = SweepJob if job == "jobs/tune.py" else TrainJob
    assert load_settings(tree, ["--config", str(file)])


def test_help_lists_every_leaf(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit) as stop:
        load_settings(Settings, ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out.split("options:", 1)[1]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    found = list(leaves(Settings))
    assert len(found) > 50
    for key, description, default in found:
        assert description, key
        entry = " ".join(text.split(f"--{key} ", 1)[1].split(" --", 1)[0].split())
        assert " ".join(description.split()) in entry, key
        assert f"(default: {default})" in entry, key
        assert any(line.startswith(f"--{key} ") for line in lines), key


def test_a_section_of_the_environment_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNGSEG_TRIAN__EPOCHS", "3")
    with pytest.raises(UserError, match=r"LUNGSEG_TRIAN__EPOCHS: there is no .* mean train\.epochs"):
        load_settings(Settings, [])


def test_the_file_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("train:\n  epochs: 7\n")
    monkeypatch.setenv("LUNGSEG_CONFIG", str(tmp_path / "run.yaml"))
    assert load_settings(Settings, []).train.epochs == 7


def test_a_file_cannot_name_another(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("config: other.yaml\n")
    with pytest.raises(UserError, match="cannot name another"):
        load_settings(Settings, ["--config", str(tmp_path / "run.yaml")])


def test_places_are_absolute_wherever_a_worker_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoder.pth").write_bytes(b"")
    found = load_settings(
        Settings, ["--corpus.root", "a", "--runs.root", "s3://bucket/b", "--model.weights", "encoder.pth"]
    )
    assert found.corpus.root == Location(f"{tmp_path}/a")
    assert (found.runs.root, found.model.weights) == (Location("s3://bucket/b"), f"{tmp_path}/encoder.pth")


def test_one_value_where_several_may_be_given() -> None:
    found = load_settings(Settings, ["--corpus.mirror", "none", "--corpus.white", "4095"]).corpus
    assert (found.mirror, found.white) == ("none", 4095.0)
    found = load_settings(Settings, ["--corpus.white", "4095", "--corpus.white", "65535"]).corpus
    assert found.white == [4095.0, 65535.0]


def test_paths_with_commas(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Location("/data/a, b"), Location("/data/[c]")
    assert load_settings(Settings, ["--corpus.root", one.uri]).corpus.root == one
    assert load_settings(Settings, [f"--corpus.root={one}"]).corpus.root == one
    assert load_settings(Settings, ["--corpus.root", one.uri, "--corpus.root", other.uri]).corpus.root == (one, other)
    assert load_settings(Settings, config("corpus:\n  root: ['/data/a, b', '/data/[c]']\n")).corpus.root == (one, other)
    monkeypatch.setenv("LUNGSEG_CORPUS__ROOT", one.uri)
    assert load_settings(Settings, []).corpus.root == one


def test_the_file_of_defaults() -> None:
    assert load_settings(Settings, ["--config", str(ROOT / "configs/local.yaml")]) == Settings()


@pytest.mark.parametrize("arguments", [["--corpus.root"], ["--corpus.root", ""], ["--corpus.root="]])
def test_a_root_without_a_value(arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r"--corpus.root: expected a folder.*found nothing"):
        load_settings(ShardJob, arguments)


def test_a_root_that_is_an_option() -> None:
    with pytest.raises(UserError, match="found the option --dry_run"):
        load_settings(ShardJob, ["--corpus.root", "--dry-run"])


def test_roots_as_a_list() -> None:
    job = load_settings(ShardJob, ["--corpus.root", '["/tmp/a, b", "/tmp/c"]'])
    assert str(job.corpus.root) == "/tmp/a, b and /tmp/c"


def test_a_map_replaces_that_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("corpus:\n  mask_values: {0: 0, 127: ignore, 255: 1}\n  channels: 3\n")
    job = load_settings(ShardJob, ["--config", str(file), "--corpus.mask_values", '{"#000000": 0, "#ff0000": 1}'])
    assert job.corpus.mask_values == {"#000000": 0, "#ff0000": 1}
    assert job.corpus.channels == 3
    assert load_settings(ShardJob, ["--config", str(file)]).corpus.mask_values == {0: 0, 127: "ignore", 255: 1}
