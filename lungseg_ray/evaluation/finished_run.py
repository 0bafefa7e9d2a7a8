"""Measures the best model of a finished run on the test images."""

from __future__ import annotations

from rich.console import Console

from lungseg_ray.confidence.stored import write_confidence
from lungseg_ray.config import Settings
from lungseg_ray.evaluation.confidence import calibrate_confidence
from lungseg_ray.evaluation.evaluate import evaluate
from lungseg_ray.evaluation.images import ShardImages
from lungseg_ray.inference import predictor
from lungseg_ray.inference.card import model_card
from lungseg_ray.inference.export import validation_figures
from lungseg_ray.run.exported import CARD, read_sidecar
from lungseg_ray.run.folder import BEST, EVALUATION, Run
from lungseg_ray.run.summary import RunSummary
from lungseg_ray.shards.index import ShardIndex


def evaluate_test_split(run: Run, settings: Settings, index: ShardIndex, console: Console) -> RunSummary:
    """Measures the best model of a run on the test images. Needs a running Ray cluster.

    Args:
        run: The run.
        settings: Its settings.
        index: The index of its shards.
        console: The console that the user reads.

    Returns:
        The figures for the run's `summary.json`.

    Raises:
        UserError: If the run has no model, or if no test image can be used.
        OSError: If a file cannot be read or written.
    """
    progress = run.progress()
    test = None
    model = predictor.Model((run,))
    if settings.evaluate.confidence:
        training, validation = (ShardImages.of(settings.shards.root, index.of(split)) for split in ("train", "val"))
        device = settings.train.device
        if confidence := calibrate_confidence(model, training, validation, settings.evaluate, device=device):
            write_confidence(run, confidence)
    if index.count("test"):
        console.print(f"Evaluating on {index.count('test')} test images", highlight=False)
        images = ShardImages.of(settings.shards.root, index.of("test"))
        out = run.place / EVALUATION / "test"
        test = evaluate(model, images, out, settings.evaluate, device=settings.train.device)
        sidecar = read_sidecar(run.place / BEST)
        card = model_card(settings, index, sidecar, validation_figures(progress), test=test)
        (run.place / BEST / CARD).write_text(card)
    rows = progress.history
    seconds = sum(row["train_seconds"] for row in rows)
    return {
        "epochs": progress.epoch,
        "best_epoch": int(progress.best["epoch"]),
        "val": validation_figures(progress),
        "test": test,
        "images_per_second": sum(row["images_per_second"] * row["train_seconds"] for row in rows) / seconds,
        "data_wait_share": sum(row["data_wait_share"] * row["train_seconds"] for row in rows) / seconds,
        "checkpoint_wait_share": sum(row["checkpoint_wait"] for row in rows) / seconds,
        "skipped": progress.skipped,
    }
