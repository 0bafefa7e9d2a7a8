"""What a trained run leaves: its best model with a card, its curves, and its figures on the test side."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from lungseg_ray import predictor
from lungseg_ray.card import model_card
from lungseg_ray.config import Settings
from lungseg_ray.errors import JobFailedError
from lungseg_ray.evaluate import ShardImages, evaluate
from lungseg_ray.run import checkpoint
from lungseg_ray.run.curves import curves
from lungseg_ray.run.folder import BEST, EVALUATION, Run
from lungseg_ray.run.progress import Progress
from lungseg_ray.shards.format import ShardIndex
from lungseg_ray.storage import locate
from lungseg_ray.training.model import build_model

CURVES = "curves.png"


def leave_best(run: Run, settings: Settings, index: ShardIndex) -> None:
    """Writes the best model of a trained run, with its card, and the curves.

    Raises:
        JobFailedError: if it has not come to its end.
    """
    place, progress = run.best_checkpoint()
    if not progress.is_complete(epochs=settings.train.epochs, early_stop=settings.train.early_stop):
        raise JobFailedError(f"{run.place}: training ended before its last epoch. The same command goes on.")
    content = checkpoint.read_from(place)
    model = build_model(settings, weights="none")
    model.load_state_dict(content.average if content.average is not None else content.weights)
    corpus = index.corpus
    side = predictor.Sidecar(
        size=settings.feed.size,
        channels=corpus.channels,
        longer_side=index.longer_side,
        classes=corpus.classes,
        class_names=corpus.class_names,
        threshold=settings.evaluate.first_threshold,
        white=corpus.white,
    )
    run.tidy(keep=settings.checkpoint.keep)
    card = model_card(settings, index, _validation(progress), test=None)
    predictor.save(run.place / BEST, model, side, card)
    run.write_history(progress.history)
    (run.place / CURVES).write_bytes(curves(progress.history))


def measure(run: Run, settings: Settings, index: ShardIndex, console: Console) -> dict[str, Any]:
    """Measures the best model of a run on the test images. Needs a running Ray cluster.

    Returns:
        What the run's `summary.json` is to hold.
    """
    progress = run.progress()
    test = None
    if index.count("test"):
        console.print(f"Evaluating on {index.count('test')} test images", highlight=False)
        images = ShardImages.of(locate(settings.shards.root), index.of("test"))
        out = run.place / EVALUATION / "test"
        test = evaluate(predictor.Model((run,)), images, out, settings.evaluate, device=settings.train.device)
        card = model_card(settings, index, _validation(progress), test=test)
        (run.place / BEST / predictor.CARD).write_text(card)
    rows = progress.history
    seconds = sum(row["train_seconds"] for row in rows)
    return {
        "epochs": progress.epoch,
        "best_epoch": int(progress.best["epoch"]),
        "val": _validation(progress),
        "test": test,
        "images_per_second": sum(row["images_per_second"] * row["train_seconds"] for row in rows) / seconds,
        "data_wait_share": sum(row["data_wait_share"] * row["train_seconds"] for row in rows) / seconds,
        "checkpoint_wait_share": sum(row["checkpoint_wait"] for row in rows) / seconds,
        "skipped": progress.skipped,
    }


def _validation(progress: Progress) -> dict[str, float]:
    return {key: progress.best[f"val_{key}"] for key in ("loss", "iou", "dice")}
