"""Exports the best model of a trained run: a folder with weights, preprocessing and a model card."""

from __future__ import annotations

from lungseg_ray.config import Settings
from lungseg_ray.errors import JobFailedError
from lungseg_ray.inference import predictor
from lungseg_ray.inference.card import model_card
from lungseg_ray.run.curves import curves
from lungseg_ray.run.exported import CONFIDENCE, Sidecar, save_model
from lungseg_ray.run.folder import BEST, CURVES, Run
from lungseg_ray.run.progress import Progress
from lungseg_ray.run.summary import ValidationFigures
from lungseg_ray.shards.index import ShardIndex
from lungseg_ray.training.model import build_model


def export_best(run: Run, settings: Settings, index: ShardIndex) -> None:
    """Writes the best model of a trained run with its model card, and the curves.

    Args:
        run: The run.
        settings: Its settings.
        index: The index of its shards.

    Raises:
        JobFailedError: If training has not come to its end.
        UserError: If the best checkpoint cannot be used.
    """
    best, progress = run.read_best()
    if not progress.is_complete(epochs=settings.train.epochs, early_stop=settings.train.early_stop):
        raise JobFailedError(f"{run.place}: training ended before its last epoch. The same command resumes.")
    model = build_model(settings, pretrained=False)
    model.load_state_dict(best.average if best.average is not None else best.weights)
    corpus = index.corpus
    sidecar = Sidecar(
        size=settings.feed.size,
        fit=settings.feed.fit,
        normalise=settings.model.normalise,
        channels=corpus.channels,
        longer_side=index.longer_side,
        classes=corpus.classes,
        class_names=corpus.class_names,
        threshold=stored_threshold(settings, progress),
        white=corpus.white if isinstance(corpus.white, float | None) else list(corpus.white),
        mirrored=list(corpus.mirrored),
        flips=settings.model.flips,
        clean_up=settings.model.clean_up,
    )
    run.prune_checkpoints(progress, keep=settings.checkpoint.keep)
    card = model_card(settings, index, sidecar, validation_figures(progress), test=None)
    # What is known of an earlier model does not hold for this one.
    (run.place / BEST / CONFIDENCE).delete()
    save_model(run.place / BEST, model, sidecar, card)
    predictor.load_predictor.cache_clear()
    predictor.load_processing.cache_clear()
    run.write_history(progress.history)
    (run.place / CURVES).write_bytes(curves(progress.history))


def stored_threshold(settings: Settings, progress: Progress) -> float:
    """Returns the threshold that is stored with a newly trained model.

    Args:
        settings: The settings of the run.
        progress: Its progress.
    """
    if settings.evaluate.threshold is not None:
        return settings.evaluate.threshold
    if settings.model.threshold == "validation":
        return progress.best.get("val_threshold", 0.5)
    return settings.model.threshold


def validation_figures(progress: Progress) -> ValidationFigures:
    """Returns `loss`, `iou` and `dice` on the validation images after the best epoch."""
    best = progress.best
    return {"loss": best["val_loss"], "iou": best["val_iou"], "dice": best["val_dice"]}
