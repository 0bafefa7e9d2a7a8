from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lungseg_ray.config import CheckpointSettings, Settings
from lungseg_ray.errors import JobFailedError
from lungseg_ray.feed.batch import Batch
from lungseg_ray.numerics.metrics import ValidationSums
from lungseg_ray.run import checkpoint
from lungseg_ray.run.progress import Progress
from lungseg_ray.storage import locate
from lungseg_ray.training.events import EpochDone, Event, Note, Started, StepDone, Stopped
from lungseg_ray.training.learner import Learner, Step
from lungseg_ray.training.loop import TrainingDivergedError, train_loop
from lungseg_ray.training.model import build_model
from lungseg_ray.training.runtime import Request
from tests.helpers import make_settings

STEPS = 2
TIMES = ("images_per_second", "data_wait_share", "checkpoint_wait", "train_seconds", "seconds", "memory_gib")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_batch(step: int, count: int = 4) -> Batch:
    """Noise (4, 1, 32, 32) with a bright box for a mask (4, 32, 32); follows from the step."""
    generator = torch.Generator().manual_seed(step)
    masks = torch.zeros(count, 32, 32, dtype=torch.uint8)
    for number in range(count):
        top, left = (int(at) for at in torch.randint(0, 16, (2,), generator=generator))
        masks[number, top : top + 14, left : left + 14] = 1
    noise = torch.randint(0, 128, (count, 1, 32, 32), generator=generator, dtype=torch.uint8)
    images = (noise + 120 * masks[:, None]).contiguous(memory_format=torch.channels_last)
    return Batch(step=step, images=images, masks=masks, image_ids=[f"x{step}-{number}" for number in range(count)])


class Stream:
    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.closed = False

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        self.closed = True


class Memory:
    """A runtime of one worker, whose checkpoints lie in a folder.

    Args:
        folder: of the checkpoints.
        stop_after: the step after whose checkpoint the process dies.
        requests: what is asked after so many steps of this process.
    """

    rank = 0
    world_size = 1
    device = torch.device("cpu")

    def __init__(
        self, folder: Path, *, stop_after: int | None = None, requests: Mapping[int, Request] | None = None
    ) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self.streams: list[Stream] = []
        self.seen: list[int] = []
        self.done: list[str] = []
        self.flushed = 0
        self._stop_after = stop_after
        self._requests = requests or {}

    def train(self, *, step: int, epochs: int) -> Stream:
        self.streams.append(Stream(self._batches(step, epochs)))
        return self.streams[-1]

    def _batches(self, step: int, epochs: int) -> Iterator[Batch]:
        for at in range(step, epochs * STEPS):
            self.seen.append(at)
            yield make_batch(at)

    def validation(self) -> Iterator[Batch]:
        yield from (make_batch(1000), make_batch(1001, count=1))

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        list(tensors)

    def restore(self) -> checkpoint.Checkpoint | None:
        found = sorted(self.folder.glob("checkpoint_*"))
        return checkpoint.read_checkpoint(locate(str(found[-1]))) if found else None

    def save(self, content: checkpoint.Checkpoint, *, skip_if_busy: bool) -> None:
        folder = self.folder / checkpoint.folder_name(content.progress.step)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_folder(folder, checkpoint.copy_to_cpu(content))
        if content.progress.step == self._stop_after:
            raise KeyboardInterrupt

    def all_gather(self, names: list[str]) -> list[str]:
        return names

    def checkpoint_wait_seconds(self) -> float:
        return 0.0

    def flush(self) -> None:
        self.flushed += 1

    def wishes(self) -> list[float]:
        return [self._requests.get(len(self.seen), Request.CONTINUE)]

    def agree(self, sums: Sequence[float]) -> Request:
        return Request(int(sums[0]))

    def report_activity(self, activity: str) -> None:
        self.done.append(activity)

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def newest(self) -> checkpoint.Checkpoint:
        found = self.restore()
        assert found is not None
        return found


def run(settings: Settings, folder: Path) -> tuple[Memory, Progress]:
    runtime = Memory(folder)
    return runtime, train_loop(settings, steps_per_epoch=STEPS, runtime=runtime)


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in history]


def learner(settings: Settings, **changes: Any) -> Learner:
    given: dict[str, Any] = {"device": torch.device("cpu"), "precision": "fp32", "total_steps": 8, **changes}
    return Learner(settings, **given)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize(
    ("optim", "train"),
    [
        # A cut after 4 of 8 steps stands between two pulls of k = 3.
        ({"schedule": "plateau", "patience": 0, "factor": 0.25, "lr": 0.05, "lookahead_k": 3}, {}),
        ({"schedule": "one_cycle", "warmup": 0.75, "lookahead_k": 3}, {"average": 0.9}),
        ({"schedule": "cosine", "clip": 0.1, "name": "adamw"}, {"average": 0.5, "accumulate": 2}),
        ({"schedule": "constant", "lookahead_k": 2}, {"channels_last": False}),
    ],
    ids=["plateau", "one_cycle", "cosine", "constant"],
)
def test_going_on_is_as_never_having_stopped(
    optim: dict[str, Any], train: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(optim=optim, train=train)
    if settings.optim.schedule == "plateau":
        result = ValidationSums.result
        monkeypatch.setattr(ValidationSums, "result", lambda self: {**result(self), "loss": 0.5})
    through, whole = run(settings, tmp_path / "through")
    cut = Memory(tmp_path / "cut", stop_after=2 * STEPS)
    with pytest.raises(KeyboardInterrupt):
        train_loop(settings, steps_per_epoch=STEPS, runtime=cut)
    assert cut.streams[0].closed
    again, rest = run(settings, tmp_path / "cut")

    assert [event.epoch for event in again.events if isinstance(event, Started)] == [2]
    assert [event.row["epoch"] for event in again.events if isinstance(event, EpochDone)] == [3, 4]
    assert (rest.epoch, rest.step, whole.epoch, whole.step) == (4, 8, 4, 8)
    assert without_times(rest.history) == without_times(whole.history)
    one, other = through.newest(), again.newest()
    assert_equal(one.weights, other.weights)
    assert (one.average is None) == (not settings.train.average)
    if one.average is not None and other.average is not None:
        assert_equal(one.average, other.average)
        assert any(not torch.equal(one.average[key], one.weights[key]) for key in one.weights)
    assert one.training["schedule"] == other.training["schedule"]
    rates = [row["lr"] for row in whole.history]
    assert (len(set(rates)) > 1) == (settings.optim.schedule != "constant")
    if settings.optim.schedule == "plateau":
        # No epoch is better than the first: from the second on, each multiplies the rate by 0.25.
        assert rates == pytest.approx([0.05, 0.05, 0.0125, 0.003125])


def test_a_finished_run_stays(tmp_path: Path) -> None:
    settings = make_settings(train={"epochs": 1})
    first, whole = run(settings, tmp_path)
    before = first.newest()
    again, same = run(settings, tmp_path)
    assert same.history == whole.history
    assert [type(event) for event in again.events] == [Started]
    assert_equal(again.newest().weights, before.weights)
    assert again.streams[0].closed


def test_history_and_events(tmp_path: Path) -> None:
    runtime, progress = run(make_settings(train={"epochs": 2}), tmp_path)
    assert [(row["epoch"], row["step"]) for row in progress.history] == [(1, 2), (2, 4)]
    for row in progress.history:
        assert row["loss"] == pytest.approx(row["loss_dice"] + 0.8 * row["loss_bce"], rel=1e-6)
        assert row["val_loss"] == pytest.approx(row["val_loss_dice"] + 0.8 * row["val_loss_bce"], rel=1e-6)
        assert row["val_n"] == 5
        assert 0 <= row["val_iou"] <= row["val_dice"] <= 1
        assert 0 <= row["data_wait_share"] <= 1
    steps = [
        (event.epoch, event.step_in_epoch, event.steps_per_epoch)
        for event in runtime.events
        if isinstance(event, StepDone)
    ]
    assert steps == [(1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 2)]
    start = runtime.events[0]
    parameters = sum(parameter.numel() for parameter in build_model(make_settings()).parameters())
    assert isinstance(start, Started)
    assert start.parameters == parameters
    assert (start.precision, start.device, start.workers) == ("fp32", "cpu", 1)


class TestBestBy:
    """Epochs are ranked by the figure that the user names."""

    @pytest.mark.parametrize("by", ["iou", "dice", "dice_positives"])
    def test_the_score_is_that_figure(self, by: str, tmp_path: Path) -> None:
        _, progress = run(make_settings(train={"epochs": 3, "best_by": by}), tmp_path)
        assert [row["score"] for row in progress.history] == [row[f"val_{by}"] for row in progress.history]
        assert progress.best["score"] == max(row["score"] for row in progress.history)

    def test_images_without_the_structure_do_not_count(self, tmp_path: Path) -> None:
        class Negatives(Memory):
            def validation(self) -> Iterator[Batch]:
                yield from super().validation()
                empty = make_batch(1002)
                yield replace(empty, masks=torch.zeros_like(empty.masks))

        _, alone = run(make_settings(train={"epochs": 1}), tmp_path / "alone")
        settings = make_settings(train={"epochs": 1, "best_by": "dice_positives"})
        progress = train_loop(settings, steps_per_epoch=STEPS, runtime=Negatives(tmp_path / "with"))
        assert progress.history[0]["val_n"] == 9
        assert progress.history[0]["score"] == pytest.approx(alone.history[0]["val_dice"], rel=1e-9)

    def test_no_image_has_the_structure(self, tmp_path: Path) -> None:
        class Empty(Memory):
            def validation(self) -> Iterator[Batch]:
                batch = make_batch(1000)
                yield replace(batch, masks=torch.zeros_like(batch.masks))

        settings = make_settings(train={"epochs": 1, "best_by": "dice_positives"})
        with pytest.raises(JobFailedError, match="no image of the validation split has the structure"):
            train_loop(settings, steps_per_epoch=STEPS, runtime=Empty(tmp_path))


class TestBetweenSteps:
    """Runs of 2 epochs of 5 steps, cut at any step."""

    @pytest.fixture(autouse=True, scope="class")
    def _longer(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tests.training.test_loop.STEPS", 5)
            yield

    @pytest.fixture(scope="class")
    def through(self, tmp_path_factory: pytest.TempPathFactory) -> Memory:
        """A run that nothing cuts."""
        return run(self.settings(0), tmp_path_factory.mktemp("through"))[0]

    @pytest.fixture(scope="class")
    def through_on_a_gpu(self, tmp_path_factory: pytest.TempPathFactory) -> Memory:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Learner, "late", 1)
            return run(self.settings(0), tmp_path_factory.mktemp("through"))[0]

    SETTINGS = make_settings(
        optim={"schedule": "one_cycle", "warmup": 0.4, "lookahead_k": 3}, train={"epochs": 2, "average": 0.9}
    )

    def settings(self, every: int) -> Settings:
        return self.SETTINGS.model_copy(update={"checkpoint": CheckpointSettings(every_steps=every)})

    def assert_same_end(self, one: Memory, other: Memory) -> None:
        first, second = one.newest(), other.newest()
        assert without_times(first.progress.history) == without_times(second.progress.history)
        assert_equal(first.weights, second.weights)
        assert first.average is not None
        assert second.average is not None
        assert_equal(first.average, second.average)

    @pytest.mark.parametrize("every", [2, 3, 5])
    def test_where_checkpoints_are_made(self, every: int, tmp_path: Path) -> None:
        runtime, _ = run(self.settings(every), tmp_path)
        assert {int(path.name[-9:]) for path in tmp_path.iterdir()} == {5, 10, *range(every, 11, every)}
        assert runtime.flushed == 1

    @pytest.mark.parametrize("cut", [1, 4, 7])
    def test_a_process_that_dies_at_a_step(self, cut: int, through: Memory, tmp_path: Path) -> None:
        dying = Memory(tmp_path / "cut", stop_after=cut)
        with pytest.raises(KeyboardInterrupt):
            train_loop(self.settings(1), steps_per_epoch=STEPS, runtime=dying)
        again, _ = run(self.settings(1), tmp_path / "cut")
        assert dying.seen + again.seen == list(range(10))
        self.assert_same_end(through, again)

    @pytest.mark.parametrize("after", [1, 5, 8])
    def test_a_request_to_stop(self, after: int, through: Memory, tmp_path: Path) -> None:
        first = Memory(tmp_path / "cut", requests={after: Request.STOP})
        progress = train_loop(self.settings(0), steps_per_epoch=STEPS, runtime=first)
        # After the last step of an epoch, the epoch's own checkpoint is the one.
        assert (progress.step, first.flushed) == (after, 1)
        assert first.events[-1] == Stopped(step=after, epoch=after // 5)
        assert first.streams[0].closed
        again, _ = run(self.settings(0), tmp_path / "cut")
        assert first.seen + again.seen == list(range(10))
        self.assert_same_end(through, again)

    @pytest.mark.parametrize("after", [1, 4, 5, 8])
    def test_a_gpu_stops_a_step_later(
        self, after: int, through_on_a_gpu: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Learner, "late", 1)
        first = Memory(tmp_path / "cut", requests=dict.fromkeys(range(after, 11), Request.STOP))
        progress = train_loop(self.settings(0), steps_per_epoch=STEPS, runtime=first)
        # At the end of an epoch, it waits for all steps.
        assert progress.step == (after if after == 5 else after + 1)
        again, _ = run(self.settings(0), tmp_path / "cut")
        assert first.seen + again.seen == list(range(10))
        self.assert_same_end(through_on_a_gpu, again)

    def test_a_request_to_save_goes_on(self, tmp_path: Path) -> None:
        runtime = Memory(tmp_path, requests={3: Request.SAVE})
        progress = train_loop(self.settings(0), steps_per_epoch=STEPS, runtime=runtime)
        assert progress.epoch == 2
        assert {int(path.name[-9:]) for path in tmp_path.iterdir()} == {3, 5, 10}
        assert [event.text for event in runtime.events if isinstance(event, Note)] == [
            "A node is about to be taken away: saving the checkpoint of step 3."
        ]

    def test_a_request_to_save_at_the_end_of_an_epoch(self, tmp_path: Path) -> None:
        """It is asked after the last step and after the validation, which `Memory` answers alike."""
        runtime = Memory(tmp_path, requests={5: Request.SAVE})
        train_loop(self.settings(0), steps_per_epoch=STEPS, runtime=runtime)
        assert {int(path.name[-9:]) for path in tmp_path.iterdir()} == {5, 10}
        assert [(event.text.partition(": ")[2], event.step) for event in runtime.events if isinstance(event, Note)] == [
            ("saving the checkpoint of epoch 1, after its validation.", 5),
            ("saving the checkpoint of epoch 1.", 5),
        ]

    def test_what_it_is_doing_is_said(self, tmp_path: Path) -> None:
        runtime, _ = run(self.settings(0), tmp_path)
        assert "the images of step 7, 2 of 5 in epoch 2" in runtime.done
        assert "validation batch 2 after epoch 1" in runtime.done


class TestDiverged:
    def test_a_step_that_cannot_be_made_changes_nothing(self) -> None:
        one = learner(make_settings(train={"max_skipped": 1}))
        with torch.no_grad():
            one.model.get_parameter("segmentation_head.0.weight").fill_(float("nan"))
        before = weights(one.model)
        result = one.step(make_batch(17)).result()
        assert (result.not_finite, result.own_loss_is_finite) == ("loss is nan", False)
        assert result.batch.image_ids == ["x17-0", "x17-1", "x17-2", "x17-3"]
        for name, value in one.model.state_dict().items():
            assert torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0)), name
        assert all(parameter.grad is None for parameter in one.model.parameters())

    def test_a_gradient_that_is_not_finite(self) -> None:
        one = learner(make_settings())
        one.model.get_parameter("segmentation_head.0.weight").register_hook(lambda grad: grad * float("inf"))
        result = one.step(make_batch(0)).result()
        assert result.not_finite in ("norm of the gradient is inf", "norm of the gradient is nan")
        assert result.own_loss_is_finite

    def test_ends_the_loop_and_closes_the_stream(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        forward = Learner.forward

        def infinite(self: Learner, model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(one * float("inf") for one in forward(self, model, images))

        monkeypatch.setattr(Learner, "forward", infinite)
        runtime = Memory(tmp_path)
        with pytest.raises(TrainingDivergedError, match=r"at step 1\. Images: x0-0, x0-1.* 0 allowed .* Lower"):
            train_loop(make_settings(), steps_per_epoch=STEPS, runtime=runtime)
        assert runtime.streams[0].closed
        assert runtime.restore() is None

    def broken(self, steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
        """Makes the logits of some steps infinite."""
        step, forward = Learner.step, Learner.forward
        now: list[int] = []

        def broken_step(self: Learner, batch: Batch, wishes: Sequence[float] = ()) -> Step:
            now[:] = [batch.step]
            return step(self, batch, wishes)

        def broken_forward(self: Learner, model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            training = model.training and now and now[0] in steps
            return tuple(one * (float("inf") if training else 1.0) for one in forward(self, model, images))

        monkeypatch.setattr(Learner, "step", broken_step)
        monkeypatch.setattr(Learner, "forward", broken_forward)

    def test_a_bounded_number_is_left_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken({1, 4}, monkeypatch)
        runtime, progress = run(make_settings(train={"max_skipped": 2}), tmp_path)
        assert [row["skipped"] for row in progress.history] == [1, 0, 1, 0]
        assert progress.skipped == 2
        assert all(math.isfinite(row["loss"]) for row in progress.history)
        notes = [event.text for event in runtime.events if isinstance(event, Note)]
        assert "at step 2. Images: x1-0, x1-1, x1-2, x1-3. The step is left out, 1 of 2." in notes[0]
        assert len(notes) == 2

    def test_a_gpu_says_it_a_step_later(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken({1, 4}, monkeypatch)
        settings = make_settings(train={"max_skipped": 2})
        at_once, expected = run(settings, tmp_path / "cpu")
        monkeypatch.setattr(Learner, "late", 1)
        later, progress = run(settings, tmp_path / "gpu")
        assert without_times(progress.history) == without_times(expected.history)
        assert_equal(at_once.newest().weights, later.newest().weights)
        notes = [[event.text for event in runtime.events if isinstance(event, Note)] for runtime in (at_once, later)]
        assert notes[0] == notes[1]
        with pytest.raises(TrainingDivergedError, match=r"at step 2\..* 1 such step\(s\), 0 allowed"):
            run(make_settings(), tmp_path / "none")

    def test_one_more_than_that_ends_the_run_also_after_a_restart(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.broken({1, 4, 7}, monkeypatch)
        settings = make_settings(train={"max_skipped": 2})
        with pytest.raises(KeyboardInterrupt):
            train_loop(settings, steps_per_epoch=STEPS, runtime=Memory(tmp_path, stop_after=2 * STEPS))
        with pytest.raises(TrainingDivergedError, match=r"at step 8\..* 3 such step\(s\), 2 allowed"):
            run(settings, tmp_path)


def test_early_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.5, 0.4, 0.45, 0.41, 0.1, 0.1])
    result = ValidationSums.result
    monkeypatch.setattr(ValidationSums, "result", lambda self: {**result(self), "loss": next(losses)})
    settings = make_settings(train={"epochs": 6, "early_stop": 2})
    runtime, progress = run(settings, tmp_path)
    assert [row["val_loss"] for row in progress.history] == [0.5, 0.4, 0.45, 0.41]
    assert progress.best["epoch"] == 2
    assert runtime.streams[0].closed
    # The same again finds that it has stopped.
    again, same = run(settings, tmp_path)
    assert same.epoch == 4
    assert [type(event) for event in again.events] == [Started]


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_the_model_that_is_kept_is_the_one_validated(average: float, tmp_path: Path) -> None:
    settings = make_settings(train={"epochs": 1, "average": average})
    runtime, progress = run(settings, tmp_path)
    kept = runtime.newest()
    losses = []
    for state in (kept.weights, kept.average):
        if state is None:
            continue
        model = build_model(settings)
        model.load_state_dict(state)
        sums = ValidationSums(classes=1)
        with torch.inference_mode():
            for batch in runtime.validation():
                sums.update(model.eval()(batch.images.float() / 255), batch.masks)
        losses.append(sums.result()["loss"])
    assert losses[-1] == pytest.approx(progress.history[0]["val_loss"], rel=1e-5)
    assert len(losses) == (2 if average else 1)
    if average:
        assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_weights_are_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_settings(train={"epochs": 2})
    with pytest.raises(KeyboardInterrupt):
        train_loop(settings, steps_per_epoch=STEPS, runtime=Memory(tmp_path, stop_after=STEPS))
    model = settings.model.model_copy(update={"weights": "/gone/encoder.safetensors"})
    _, progress = run(settings.model_copy(update={"model": model}), tmp_path)
    assert progress.epoch == 2
