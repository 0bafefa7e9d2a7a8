"""The job that trains a model: it builds missing shards, trains, exports the best model, and evaluates it."""

from __future__ import annotations

import time
from itertools import pairwise
from statistics import fmean

from rich.console import Console
from yaml import YAMLError

from lungseg_ray.cluster.places import check_shared
from lungseg_ray.config import Settings, TrainJob, merge, validated
from lungseg_ray.config.yaml_file import parse_yaml
from lungseg_ray.errors import UserError
from lungseg_ray.feed.stream import Source
from lungseg_ray.jobs.cli import STARTED
from lungseg_ray.jobs.display import TrainingDisplay
from lungseg_ray.jobs.prologue import held, known_shards, planned_workers, usable_shards
from lungseg_ray.run.folder import BEST, CURVES, EVALUATION, SHEET, Run
from lungseg_ray.run.summary import RunSummary, Seconds, describe_detection
from lungseg_ray.run.tracking import Tracking, check_services, tracked
from lungseg_ray.shards.index import ShardIndex
from lungseg_ray.sweep.ledger import WINNER, Sweep
from lungseg_ray.training.events import EpochDone, Event
from lungseg_ray.training.model import check_model, model_cost, with_start
from lungseg_ray.workers.fit import fit


def main(job: TrainJob, console: Console) -> None:
    """Trains a model, or resumes its training.

    Args:
        job: The settings of the job.
        console: The console that the user reads.

    Raises:
        UserError: As `winner_of` and `train`.
        JobFailedError: As `train`.
        StoppedError: As `train`.
    """
    train(winner_of(job), console, started=STARTED)


def train(settings: Settings, console: Console, *, started: float) -> RunSummary:
    """Runs a training job to its end. An interrupted run is resumed, and a finished run is only reported.

    Shards that do not exist are built first.

    Args:
        settings: The settings of the run.
        console: The console that the user reads.
        started: The time at which the command started, seconds since 1970.

    Returns:
        The content of `summary.json`.

    Raises:
        UserError: If the settings do not fit the run, the shards or the cluster, or for another error of the user.
        JobFailedError: If training fails, as `fit` does, or if another driver has taken over.
        StoppedError: If SIGINT or SIGTERM stopped the job.
        OSError: If a file cannot be read or written.
    """
    times = [started, time.time()]
    run = Run(settings.runs.root / settings.runs.name)
    settings, index = known_shards(settings, run.place, console)
    settings, start = with_start(settings, run.config)
    check_model(settings)
    check_services(settings.track)
    run.can_resume(settings, fingerprint=index.fingerprint if index else None)
    if finished := _finished(run, settings):
        early = finished["epochs"] < settings.train.epochs
        why = f", by early stopping after {finished['epochs']} epochs (train.early_stop)" if early else ""
        console.print(f"The run {run.place} is finished{why}; nothing to do.", highlight=False)
        _tell(run, finished, console)
        return finished
    with held(run.place, console, processes=settings.train.workers) as lease:
        times.append(time.time())
        # Another driver may have held the run until now, and finished it.
        if finished := _finished(run, settings):
            _tell(run, finished, console)
            return finished
        planned = planned_workers(settings)
        settings, index = usable_shards(settings, index, run.place, console)
        source = _begin(run, settings, index, start, console)
        times.append(time.time())
        display = TrainingDisplay(console, run.place, settings.train.epochs, quiet=settings.train.quiet)
        with tracked(run.place, settings) as services:

            def watch(event: Event) -> None:
                display(event)
                if isinstance(event, EpochDone):
                    services.epoch(run.place, event.row)

            if not run.is_trained(settings):
                plan = planned.when_up()
                if planned.grows:
                    # There may be machines now that were not there before.
                    check_shared(run.place)
                with display:
                    fit(settings, run=run, source=source, plan=plan, watch=watch, lease=lease)
            summary = _measured(run, settings, index, console)
            summary["seconds"] = _seconds(times, display)
            if display.started:
                # The backward pass takes twice the operations of the forward pass.
                sizes = settings.size_of_epochs or [settings.feed.size]
                area = fmean(size**2 for size in sizes) / settings.feed.size**2
                needed = 3e9 * model_cost(settings).gflops * area * summary["images_per_second"]
                summary["matrix_rate_share"] = needed / (display.started.workers * display.started.matrix_rate)
            lease.check()
            run.write_summary(summary)
            run.events.append("finished", f"Finished after {summary['epochs']} epochs.")
            _track(run, summary, services)
            _tell(run, summary, console)
        return summary


def _begin(run: Run, settings: Settings, index: ShardIndex, start: str, console: Console) -> Source:
    """Writes down that a run starts or is resumed, says so, and returns its data.

    Args:
        run: The folder of the run.
        settings: The settings of the run.
        index: The index of its shards.
        start: What to say about the model that it starts from; empty if it starts from none.
        console: The console that the user reads.

    Raises:
        UserError: If the run was started with other settings or shards, or cannot be trained on these shards.
    """
    resuming = run.can_resume(settings, fingerprint=index.fingerprint)
    source = Source.of(settings, index)
    if resuming:
        _extend(run, settings, index, console)
    else:
        run.start(settings, fingerprint=index.fingerprint)
    console.print(f"{'Resuming' if resuming else 'Starting'} the run {run.place}", highlight=False)
    if start and not resuming:
        run.events.append("started_from", start)
        console.print(start, highlight=False)
    return source


def _measured(run: Run, settings: Settings, index: ShardIndex, console: Console) -> RunSummary:
    """Exports the best model of a run that is trained, and measures it on the test images."""
    # Their imports take a second, which would come before the first step.
    from lungseg_ray.evaluation.finished_run import evaluate_test_split
    from lungseg_ray.inference.export import export_best

    export_best(run, settings, index)
    return evaluate_test_split(run, settings, index, console)


def _seconds(times: list[float], display: TrainingDisplay) -> Seconds:
    """Returns how long the command has taken until now.

    Args:
        times: When the command started, when it had its imports, Ray, and the shards; seconds since 1970.
        display: The display, which has seen the workers.
    """
    start = {}
    if display.started and display.first_step:
        times = [*times, display.started.began, display.started.time, display.first_step]
        names = ("imports", "ray", "shards", "workers", "model", "first_step")
        start = {name: round(end - begin, 1) for name, (begin, end) in zip(names, pairwise(times), strict=True)}
    return {
        "to_first_step": round(display.first_step - times[0], 1) if display.first_step else None,
        "start": start,
        "total": round(time.time() - times[0], 1),
    }


def _extend(run: Run, settings: Settings, index: ShardIndex, console: Console) -> None:
    """Makes a run longer, if more epochs are asked for than it was started with, and says so."""
    epochs = run.started_with().settings.train.epochs
    if settings.train.epochs <= epochs:
        return
    run.extend(settings, fingerprint=index.fingerprint)
    text = f"Training for {settings.train.epochs} epochs in place of {epochs}."
    if settings.optim.schedule in ("one_cycle", "cosine"):
        text += f" The learning rate follows the schedule of {settings.train.epochs} epochs from here on."
    if settings.feed.sizes or settings.corpora:
        text += " So do feed.sizes and the times of corpora."
    run.events.append("extended", text)
    console.print(text, highlight=False)


def _finished(run: Run, settings: Settings) -> RunSummary | None:
    """Returns the figures of a run that is finished; None while there are epochs to train."""
    finished = run.summary()
    if finished and (finished["epochs"] >= settings.train.epochs or run.is_trained(settings)):
        return finished
    return None


def _track(run: Run, summary: RunSummary, services: Tracking) -> None:
    """Hands the result of a run to the services that show runs."""
    best = {f"best/{key}": float(summary["val"][key]) for key in ("iou", "dice")}
    test = summary["test"]
    means = {f"test/{key}": test[key]["mean"] for key in ("iou", "dice", "hd95", "assd")} if test else {}
    pictures = [run.place / CURVES, *([run.place / EVALUATION / "test" / SHEET] if test else [])]
    services.result(run.place, {**best, **means}, pictures, run.place / BEST)


def _tell(run: Run, summary: RunSummary, console: Console) -> None:
    val, test = summary["val"], summary["test"]
    best = f"Best epoch {summary['best_epoch']} of {summary['epochs']}"
    lines = [f"{best}: validation IoU {val['iou']:.4f}, Dice {val['dice']:.4f}"]
    if test:
        lines.append(
            f"Test, {test['n']} images: IoU {test['iou']['mean']:.4f}, Dice {test['dice']['mean']:.4f} "
            f"(95 % {test['dice']['low']:.4f} to {test['dice']['high']:.4f}), HD95 {test['hd95']['mean']:.1f} px"
        )
        lines += describe_detection(test)
        lines.append(f"Pictures: {run.place / CURVES}\n          {run.place / EVALUATION / 'test' / SHEET}")
    share = summary.get("matrix_rate_share")
    lines += _planned_and_taken(run, summary)
    speed = f"Speed:    {summary['images_per_second']:.1f} images/s in training"
    lines.append(speed + (f", {share:.0%} of what matrix products on the device would allow" if share else ""))
    lines.append(f"Model:    {run.place / BEST}")
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _planned_and_taken(run: Run, summary: RunSummary) -> list[str]:
    """Returns a sentence on what the run was planned to take and took; none if it was not planned."""
    planned = run.started_with().settings.planned
    used = [row["memory_gib"] for row in run.read_history() if "memory_gib" in row]
    if not (planned.minutes and planned.gib and used and "seconds" in summary):
        return []
    return [
        f"Planned:  {planned.minutes:.1f} minutes and {planned.gib:.1f} GiB for each worker; it took "
        f"{summary['seconds']['total'] / 60:.1f} minutes and {max(used):.1f} GiB"
    ]


def winner_of(job: TrainJob) -> Settings:
    """Returns the settings of a training job.

    If the job names a sweep, the settings of its winner replace the defaults, and the run is placed beside the sweep.
    What the user sets takes precedence over both.

    Args:
        job: The settings of the job.

    Raises:
        UserError: If there is no such sweep, or if it is not finished.
    """
    given = job.model_dump(exclude={"from_sweep"}, exclude_unset=True)
    if job.from_sweep is None:
        return Settings.model_validate(given)
    sweep = Sweep(job.from_sweep)
    sweep.started_with()
    try:
        tree = parse_yaml((sweep.place / WINNER).read_text())
    except FileNotFoundError:
        raise UserError(f"{sweep.place}: the sweep has no winner yet; run jobs/tune.py until it is finished.") from None
    except (YAMLError, ValueError) as error:
        raise UserError(f"{sweep.place / WINNER}: cannot be read: {error}. Run jobs/tune.py again.") from None
    if not isinstance(tree, dict):
        raise UserError(f"{sweep.place / WINNER}: expected settings, found others. Run jobs/tune.py again.")
    beside = {"runs": {"root": sweep.place.uri.rsplit("/", 1)[0], "name": f"{sweep.place.name}-winner"}}
    return validated(Settings, merge(merge(tree, beside), given))
