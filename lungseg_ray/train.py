"""The main job: from settings to a finished run, by way of shards, training and evaluation."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

from lungseg_ray import checkpoint, lease, models, predictor, report, resources
from lungseg_ray.card import model_card
from lungseg_ray.config import Settings, chosen, differences, merge
from lungseg_ray.display import Display
from lungseg_ray.errors import JobFailedError, UserError
from lungseg_ray.evaluate import SHEET, ShardImages, evaluate
from lungseg_ray.feed import Source
from lungseg_ray.fit import fit
from lungseg_ray.loop import build_model
from lungseg_ray.run import BEST, EVALUATION, Run
from lungseg_ray.sharding import describe, shard
from lungseg_ray.shards import INDEX, ShardIndex, read_index
from lungseg_ray.storage import Location, locate

CURVES = "curves.png"
_WORDS = ("about", "licence")
"""Settings of the corpus that are for people; the shards do not depend on them."""


def train(settings: Settings, console: Console, *, started: float) -> dict[str, Any]:
    """Runs a training job to its end, or goes on with it, or finds that it is finished.

    Shards that are not there are made first. The same command goes on with a run that was cut.

    Args:
        settings: of the run.
        console: to tell the user on.
        started: when the command started, seconds since the epoch of the clock.

    Returns:
        The content of `summary.json`.

    Raises:
        UserError: for what a user can mend.
    """
    root = locate(settings.shards.root)
    run = Run(locate(settings.runs.root) / settings.runs.name)
    resources.check_lasting(run.place)
    index = _at_hand(root, settings)
    if index:
        settings = _as_made(settings, index)
    models.check(
        architecture=settings.model.architecture,
        encoder=settings.model.encoder,
        in_channels=settings.corpus.channels,
        classes=settings.corpus.classes,
        size=settings.feed.size,
    )
    run.check(settings, fingerprint=index.fingerprint if index else None)
    if finished := run.summary():
        console.print(f"The run {run.place} is finished; nothing to do.", highlight=False)
        _tell(run, finished, console)
        return finished
    with (
        lease.held(run.place, lambda text: console.print(text, highlight=False)) as hold,
        resources.cluster(processes=settings.train.workers),
    ):
        # Another driver may have had the run until now.
        going_on = run.check(settings, fingerprint=index.fingerprint if index else None)
        if finished := run.summary():
            _tell(run, finished, console)
            return finished
        cpus, gpus = resources.available()
        layout = resources.plan(
            cpus=cpus,
            gpus=gpus,
            workers=settings.train.workers,
            min_workers=settings.train.min_workers,
            device=settings.train.device,
            tasks=settings.feed.tasks,
        )
        resources.check_shared(run.place)
        if not index:
            console.print(f"No shards in {root} yet: making them from {settings.corpus.root}", highlight=False)
            outcome = shard(settings)
            console.print(describe(outcome), highlight=False)
            index = outcome.index
            run.check(settings, fingerprint=index.fingerprint)
        source = Source(
            root=root,
            index=index,
            preset=settings.feed.preset,
            size=settings.feed.size,
            batch=settings.feed.batch,
            window=settings.feed.window,
            seed=settings.train.seed,
        )
        if not going_on:
            run.start(settings, fingerprint=index.fingerprint)
        console.print(f"{'Going on with' if going_on else 'Starting'} the run {run.place}", highlight=False)
        display = Display(console, run.place, settings.train.epochs)
        if not run.is_trained(settings):
            with display:
                fit(settings, run=run, source=source, layout=layout, watch=display, lease=hold)
        summary = _finish(run, settings, index, console)
        summary["seconds"] = {
            "to_first_step": round(display.first_step - started, 1) if display.first_step else None,
            "total": round(time.time() - started, 1),
        }
        hold.check()
        run.write_summary(summary)
        _tell(run, summary, console)
        return summary


def _at_hand(root: Location, settings: Settings) -> ShardIndex | None:
    """The index of the shards that are there; None if they must be made.

    Raises:
        UserError: if they were made otherwise than the command asks for.
    """
    if not (root / INDEX).exists():
        return None
    index = read_index(root)
    made = {"corpus": index.corpus.model_dump(), "shards": {"longer_side": index.longer_side}}
    asked = {"corpus": chosen(settings.corpus), "shards": chosen(settings.shards)}
    asked["shards"] = {key: value for key, value in asked["shards"].items() if key == "longer_side"}
    for word in _WORDS:
        asked["corpus"].pop(word, None)
    other = list(differences(made, merge(made, asked)))
    if other:
        raise UserError(
            f"{root}: these shards were made otherwise than asked for:\n  " + "\n  ".join(other) + "\n"
            "Make others with jobs/shard.py and another --shards.root, or leave these settings out."
        )
    return index


def _as_made(settings: Settings, index: ShardIndex) -> Settings:
    """The settings with what the shards were made with; words for people are the command's, where it has some."""
    words = {word: value for word in _WORDS if (value := getattr(settings.corpus, word))}
    return settings.model_copy(
        update={
            "corpus": index.corpus.model_copy(update=words),
            "shards": settings.shards.model_copy(update={"longer_side": index.longer_side}),
        }
    )


def _finish(run: Run, settings: Settings, index: ShardIndex, console: Console) -> dict[str, Any]:
    """Writes the best model, measures it on the test images, and draws the curves."""
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
    )
    best = progress.best
    validation = {key: best[f"val_{key}"] for key in ("loss", "iou", "dice")}
    run.tidy(keep=settings.checkpoint.keep)
    predictor.save(run.place / BEST, model, side, model_card(settings, index, validation, test=None))
    run.write_history(progress.history)
    (run.place / CURVES).write_bytes(report.curves(progress.history))
    test = None
    if index.count("test"):
        console.print(f"Evaluating on {index.count('test')} test images", highlight=False)
        images = ShardImages.of(locate(settings.shards.root), index.of("test"))
        out = run.place / EVALUATION / "test"
        test = evaluate(run.place / BEST, images, out, settings.evaluate, device=settings.train.device)
        (run.place / BEST / predictor.CARD).write_text(model_card(settings, index, validation, test=test))
    seconds = sum(row["train_seconds"] for row in progress.history)
    return {
        "epochs": progress.epoch,
        "best_epoch": int(best["epoch"]),
        "val": validation,
        "test": test,
        "images_per_second": sum(row["images_per_second"] * row["train_seconds"] for row in progress.history) / seconds,
        "data_wait_share": sum(row["data_wait_share"] * row["train_seconds"] for row in progress.history) / seconds,
        "checkpoint_wait_share": sum(row["checkpoint_wait"] for row in progress.history) / seconds,
        "skipped": progress.skipped,
    }


def _tell(run: Run, summary: dict[str, Any], console: Console) -> None:
    val, test = summary["val"], summary["test"]
    best = f"Best epoch {summary['best_epoch']} of {summary['epochs']}"
    lines = [f"{best}: validation IoU {val['iou']:.4f}, Dice {val['dice']:.4f}"]
    if test:
        lines.append(
            f"Test, {test['n']} images: IoU {test['iou']['mean']:.4f}, Dice {test['dice']['mean']:.4f} "
            f"(95 % {test['dice']['low']:.4f} to {test['dice']['high']:.4f}), HD95 {test['hd95']['mean']:.1f} px"
        )
        lines.append(f"Pictures: {run.place / CURVES}\n          {run.place / EVALUATION / 'test' / SHEET}")
    lines.append(f"Model:    {run.place / BEST}")
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
