from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lungseg_ray.errors import UserError
from lungseg_ray.numerics.optim import build_optimizer
from lungseg_ray.run import checkpoint
from lungseg_ray.run.checkpoint import Checkpoint, DamagedCheckpointError
from lungseg_ray.run.progress import Progress, steps_to_keep
from lungseg_ray.storage import Location, locate
from tests.helpers import find_damage


def history(*losses: float) -> list[dict[str, float]]:
    return [{"epoch": epoch, "step": 2 * epoch, "val_loss": loss} for epoch, loss in enumerate(losses, start=1)]


def model_and_optimizer(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(
        model, lr=0.1, encoder_lr=0.1, weight_decay=0.01, encoder_weight_decay=0.01, lookahead_k=2
    )
    return model, optimizer


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        model(images).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def content(model: nn.Module, optimizer: torch.optim.Optimizer, *, average: bool = True) -> Checkpoint:
    doubled = {key: value * 2 for key, value in model.state_dict().items()}
    return Checkpoint(
        weights=model.state_dict(),
        average=doubled if average else None,
        training={"optimizer": optimizer.state_dict(), "scaler": {}, "average_updates": 3},
        progress=Progress(epoch=2, step=4, precision="fp32", history=history(0.5, 0.1 + 0.2)),
    )


@pytest.fixture
def written(tmp_path: Path) -> Location:
    """A checkpoint after an uneven number of steps for Lookahead's k = 2."""
    model, optimizer = model_and_optimizer(0)
    take_steps(model, optimizer, range(3))
    folder = tmp_path / "run" / checkpoint.folder_name(4)
    folder.mkdir(parents=True)
    checkpoint.write_folder(folder, checkpoint.copy_to_cpu(content(model, optimizer)))
    return locate(str(folder))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def test_round_trip_with_lookahead(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer(0)
    take_steps(model, optimizer, range(3))
    made = content(model, optimizer)
    checkpoint.write_folder(tmp_path, checkpoint.copy_to_cpu(made))
    read = checkpoint.read_checkpoint(locate(str(tmp_path)))
    assert read.progress == made.progress
    assert read.average is not None
    assert same(read.weights, made.weights)
    assert same(read.average, made.average)
    assert same(read.training, made.training)

    # Going on from the file is going on from memory: Lookahead pulls at step 4, RAdam has its moments.
    other, state = model_and_optimizer(1)
    other.load_state_dict(read.weights)
    state.load_state_dict(read.training["optimizer"])
    take_steps(other, state, range(3, 8))
    take_steps(model, optimizer, range(3, 8))
    assert same(dict(other.state_dict()), dict(model.state_dict()))


def test_without_average(tmp_path: Path) -> None:
    checkpoint.write_folder(tmp_path, checkpoint.copy_to_cpu(content(*model_and_optimizer(0), average=False)))
    assert not (tmp_path / checkpoint.AVERAGE).exists()
    assert checkpoint.read_checkpoint(locate(str(tmp_path))).average is None
    assert find_damage(locate(str(tmp_path))) is None


def test_read_checkpoint(written: Location) -> None:
    assert checkpoint.read_checkpoint(written).progress.step == 4


def test_nothing_is_executed(written: Location) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, ("raise SystemExit('executed')",)

    torch.save({"optimizer": Trap()}, Path(written.path) / checkpoint.TRAINING)
    data = (written / checkpoint.TRAINING).read_bytes()
    sums = json.loads((written / checkpoint.CHECKSUMS).read_text())
    sums[checkpoint.TRAINING] = hashlib.sha256(data).hexdigest()
    (written / checkpoint.CHECKSUMS).write_text(json.dumps(sums))
    # Its checksum is right, and still it does not load: it is damaged, and passed over as damaged ones are.
    with pytest.raises(DamagedCheckpointError, match=r"training\.pt: cannot be loaded \(UnpicklingError\)"):
        checkpoint.read_checkpoint(written)


def test_progress_is_read_without_the_weights(written: Location) -> None:
    (written / checkpoint.WEIGHTS).write_bytes(b"cut")
    assert checkpoint.read_progress(written).step == 4
    (written / checkpoint.WEIGHTS).delete()
    with pytest.raises(DamagedCheckpointError, match=r"is not complete \(weights\.safetensors is missing\)"):
        checkpoint.read_progress(written)


def test_names_sort_as_steps_do() -> None:
    assert checkpoint.folder_name(30) == "checkpoint_000000030"
    steps = [2, 10, 100, 9, 123456789]
    assert sorted(map(checkpoint.folder_name, steps)) == [checkpoint.folder_name(step) for step in sorted(steps)]


FILES = (
    checkpoint.WEIGHTS,
    checkpoint.AVERAGE,
    checkpoint.TRAINING,
    checkpoint.PROGRESS,
    checkpoint.CHECKSUMS,
)


class TestDamage:
    def test_none(self, written: Location) -> None:
        assert {path.name for path in Path(written.path).iterdir()} == set(FILES)
        assert find_damage(written) is None

    @pytest.mark.parametrize("file", FILES)
    @pytest.mark.parametrize("kept", [0, 1, 0.5, -1])
    def test_cut_short(self, file: str, kept: float, written: Location) -> None:
        path = Path(written.path) / file
        data = path.read_bytes()
        path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
        reason = find_damage(written)
        assert reason is not None
        assert file in reason

    @pytest.mark.parametrize("file", FILES[:-1])
    @pytest.mark.parametrize("at", [0, 0.3, 0.9])
    def test_one_byte_changed(self, file: str, at: float, written: Location) -> None:
        path = Path(written.path) / file
        data = bytearray(path.read_bytes())
        data[int(at * len(data))] ^= 1
        path.write_bytes(data)
        assert find_damage(written) == f"{written / file}: its checksum is another than when it was written"

    @pytest.mark.parametrize("file", FILES)
    def test_file_gone(self, file: str, written: Location) -> None:
        (Path(written.path) / file).unlink()
        assert find_damage(written) == f"{written}: is not complete ({file} is missing)"

    @pytest.mark.parametrize("data", [b"", b"no json", b'{"a": ', b"\xff\xfe"])
    def test_checksums_unreadable(self, data: bytes, written: Location) -> None:
        (written / checkpoint.CHECKSUMS).write_bytes(data)
        assert find_damage(written) == f"{written / checkpoint.CHECKSUMS}: cannot be read"

    def test_another_checksum(self, written: Location) -> None:
        place = written / checkpoint.CHECKSUMS
        sums = json.loads(place.read_text())
        first = sums[checkpoint.WEIGHTS]
        place.write_text(json.dumps({**sums, checkpoint.WEIGHTS: ("1" if first[0] == "0" else "0") + first[1:]}))
        assert checkpoint.WEIGHTS in str(find_damage(written))

    def test_directory_gone(self, written: Location) -> None:
        written.delete()
        assert find_damage(written) == f"{written}: is not complete (checksums.json is missing)"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def newest(run: Location, *, any_finished: bool = True) -> tuple[Location | None, list[str]]:
    found = checkpoint.find_newest(run, any_finished=any_finished, read=checkpoint.read_checkpoint)
    assert (found.place is None) == (found.content is None)
    return found.place, found.passed_over


class TestNewest:
    @pytest.fixture
    def run(self, written: Location) -> Path:
        """A run with checkpoints after 4, 10 and 100 steps, and things that are none."""
        run = Path(written.path).parent
        for step in (10, 100):
            shutil.copytree(written.path, run / checkpoint.folder_name(step))
        (run / "checkpoint_tmp").mkdir()
        (run / "best").mkdir()
        (run / "config.yaml").write_text("")
        return run

    def test_listed(self, run: Path) -> None:
        found = checkpoint.list_checkpoints(locate(str(run)))
        assert [place.name for place in found] == [checkpoint.folder_name(step) for step in (100, 10, 4)]

    def test_the_newest(self, run: Path) -> None:
        place, wrong = newest(locate(str(run)))
        assert place is not None
        assert (place.name, wrong) == (checkpoint.folder_name(100), [])

    def test_damaged_ones_are_passed_over(self, run: Path) -> None:
        (run / checkpoint.folder_name(100) / checkpoint.CHECKSUMS).unlink()
        (run / checkpoint.folder_name(10) / checkpoint.WEIGHTS).write_bytes(b"cut")
        before = tree(run)
        place, wrong = newest(locate(str(run)))
        assert place is not None
        assert place.name == checkpoint.folder_name(4)
        assert [checkpoint.folder_name(100) in wrong[0], checkpoint.folder_name(10) in wrong[1]] == [True, True]
        assert len(wrong) == 2
        assert tree(run) == before

    def test_all_damaged(self, run: Path) -> None:
        for step in (4, 10, 100):
            (run / checkpoint.folder_name(step) / checkpoint.PROGRESS).write_text("{}")
        before = tree(run)
        with pytest.raises(UserError, match="none of its 3 checkpoints can be used") as error:
            newest(locate(str(run)))
        assert all(f"{checkpoint.folder_name(step)}/progress.json" in str(error.value) for step in (4, 10, 100))
        assert "Nothing was changed" in str(error.value)
        assert tree(run) == before

    def test_none(self, tmp_path: Path) -> None:
        assert newest(locate(str(tmp_path / "nowhere")), any_finished=False) == (None, [])

    def test_a_part_of_the_first_checkpoint_is_no_loss(self, run: Path) -> None:
        for step in (10, 100):
            shutil.rmtree(run / checkpoint.folder_name(step))
        first = run / checkpoint.folder_name(4)
        (first / checkpoint.CHECKSUMS).unlink()
        place, wrong = newest(locate(str(run)), any_finished=False)
        assert place is None
        assert len(wrong) == 1
        assert str(first) in wrong[0]


class TestKept:
    def test_best_and_latest_two(self) -> None:
        # Epochs end after steps 2, 4, 6, 8; the two best are the third and the first.
        rows = history(0.4, 0.5, 0.3, 0.6)
        assert steps_to_keep(rows, [2, 4, 6, 8], best=2) == {2, 6, 8}
        assert steps_to_keep(rows, [2, 6, 8, 9, 10], best=2) == {2, 6, 9, 10}
        assert steps_to_keep(rows, [6, 8, 9, 10], best=1) == {6, 9, 10}
        assert steps_to_keep([], [1], best=1) == {1}

    def test_epochs_are_ranked_by_a_score_where_there_is_one(self) -> None:
        """With `train.best_by`, the epoch of the lowest loss need not be the best."""
        scores = {1: 0.2, 2: 0.7, 3: 0.5}
        rows = [{"epoch": n, "step": 2 * n, "val_loss": 1.0 / n, "score": score} for n, score in scores.items()]
        progress = Progress(3, 6, "fp32", rows)
        assert progress.best["epoch"] == 2
        assert steps_to_keep(rows, [2, 4, 6], best=1) == {4, 6}
        assert not progress.stops_early(2)
        assert progress.stops_early(1)


def test_a_snapshot_stays_when_training_goes_on() -> None:
    model, optimizer = model_and_optimizer(0)
    take_steps(model, optimizer, range(3))
    made = checkpoint.copy_to_cpu(content(model, optimizer))
    before = {key: value.clone() for key, value in made.weights.items()}
    moments = made.training["optimizer"]["state"][0]["exp_avg"].clone()
    take_steps(model, optimizer, range(3, 6))
    assert same(made.weights, before)
    assert torch.equal(made.training["optimizer"]["state"][0]["exp_avg"], moments)
    assert not torch.equal(model.state_dict()["0.weight"], before["0.weight"])


class TestProgress:
    def test_best_is_the_last_of_equal_ones(self) -> None:
        progress = Progress(epoch=4, step=8, precision="fp32", history=history(0.5, 0.3, 0.3, 0.4))
        assert progress.best["epoch"] == 3

    @pytest.mark.parametrize(
        ("losses", "patience", "stops"),
        [
            ((0.5, 0.3, 0.4), 1, True),
            ((0.5, 0.3, 0.4), 2, False),
            ((0.5, 0.3, 0.3, 0.3), 2, True),
            ((0.5, 0.4, 0.3), 1, False),
            ((0.5, 0.6, 0.7, 0.8), 0, False),
            ((), 3, False),
        ],
    )
    def test_stops_early(self, losses: tuple[float, ...], patience: int, stops: bool) -> None:
        progress = Progress(epoch=len(losses), step=0, precision="fp32", history=history(*losses))
        assert progress.stops_early(patience) is stops
