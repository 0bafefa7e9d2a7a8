"""The job that runs a sweep: shards, search, training and test of the finalists with other seeds, and the page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ray
import torch
from rich.console import Console

from lungseg_ray.cluster.capacity import Planned, plan_on_cluster
from lungseg_ray.cluster.places import check_shared
from lungseg_ray.cluster.planning import TrialsPlan, cores, plan_trials
from lungseg_ray.config import SweepJob
from lungseg_ray.errors import JobFailedError, UserError
from lungseg_ray.evaluation.finished_run import evaluate_test_split
from lungseg_ray.jobs.prologue import held, known_shards, usable_shards
from lungseg_ray.page.render import write_sweep_page
from lungseg_ray.run.folder import CONFIG as RUN_CONFIG
from lungseg_ray.run.progress import SCORES
from lungseg_ray.run.tracking import check_services, tracking
from lungseg_ray.shards.format import read_table
from lungseg_ray.shards.index import Shard, ShardIndex
from lungseg_ray.storage import Location, retry
from lungseg_ray.sweep.compare import summarise_sweep
from lungseg_ray.sweep.ledger import REPORT, Sweep
from lungseg_ray.sweep.search import Search
from lungseg_ray.sweep.summary import SweepSummary
from lungseg_ray.sweep.trial_runner import Stage, TrialRunner
from lungseg_ray.training.model import with_start
from lungseg_ray.training.precision import fastest_precision

SHARED_SHARE = 0.4
"""The share of the object store that shards may fill. With more data, each trial reads the shards by itself."""

_STAGES: tuple[Stage, ...] = (1, 2)


def main(job: SweepJob, console: Console) -> None:
    """Runs a sweep, or resumes it.

    Args:
        job: The settings of the sweep.
        console: The console that the user reads.

    Raises:
        UserError: As `tune`.
        JobFailedError: As `tune`.
        StoppedError: As `tune`.
    """
    tune(job, console)


def tune(job: SweepJob, console: Console) -> SweepSummary:
    """Runs a sweep to its end. An interrupted sweep is resumed, and a finished sweep is only reported.

    Args:
        job: The settings of the sweep.
        console: The console that the user reads.

    Returns:
        The result of the sweep, as `summarise_sweep` returns it.

    Raises:
        UserError: If nothing is searched, if the settings do not fit the sweep, the shards or the cluster, or for
            another error of the user.
        JobFailedError: If no trial gets a score, nothing makes progress, the storage fails for too long, or another
            driver has taken over.
        StoppedError: If SIGINT or SIGTERM stopped the job.
        OSError: If a file cannot be read or written.
    """
    sweep = Sweep(job.runs.root / job.runs.name)
    _check(job, sweep)
    check_services(job.track)
    if job.train.precision == "auto" and Sweep.is_one(sweep.place):
        job = _in_precision(job, sweep.started_with().settings.train.precision)
    job, index = known_shards(job, sweep.place, console)
    job, start = with_start(job, sweep.config)
    if sweep.can_resume(job, fingerprint=index.fingerprint if index else None) and _is_finished(job, sweep):
        console.print(f"The sweep {sweep.place} is finished; nothing to do.", highlight=False)
        found = sweep.summary()
        assert found is not None, "a finished sweep has a summary"
        page = sweep.place / REPORT
        _tell(job, found, page if page.exists() else write_sweep_page(sweep.place, shards=job.shards.root), console)
        return found
    with held(sweep.place, console, processes=_processes(job) - 1) as lease:
        planned = _planned(job)
        job, index = usable_shards(job, index, sweep.place, console)
        plan = planned.when_up()
        if planned.grows:
            # There may be machines now that were not there before.
            check_shared(sweep.place)
        if planned.grows and job.train.workers == 1:
            # Trials that wait for a machine make the autoscaler start it. Trials of several workers do not wait as a
            # whole, and could keep each other waiting for ever.
            if planned.types:
                plan = planned.plan
            elif job.sweep.concurrent:
                plan = replace(plan, concurrent=job.sweep.concurrent)
        if job.train.precision == "auto":
            # All trials use one precision. If each trial measured its own, they might choose different ones.
            probe = _probe.options(num_cpus=plan.cpus, num_gpus=plan.gpus or int(plan.training.device == "cuda"))
            job = _in_precision(job, ray.get(probe.remote(job, plan.training.device)))
        resuming = sweep.can_resume(job, fingerprint=index.fingerprint)
        sweep.config.write(job, fingerprint=index.fingerprint)
        console.print(
            f"{'Resuming' if resuming else 'Starting'} the sweep {sweep.place}: {plan.concurrent} trial(s) at a "
            f"time on {'GPUs' if plan.training.device == 'cuda' else 'CPUs'}",
            highlight=False,
        )
        if start and not resuming:
            console.print(start, highlight=False)
        sweep.reopen()
        shared = _share(job.shards.root, index, console)
        with tracking(job.track) as services:
            for stage in _STAGES:
                TrialRunner(
                    job,
                    sweep=sweep,
                    index=index,
                    shared=shared,
                    plan=plan,
                    lease=lease,
                    console=console,
                    stage=stage,
                    services=services,
                    # On a cluster that grows, trials that wait make it grow.
                    by_memory=not (job.sweep.concurrent or planned.types or job.train.workers > 1),
                ).run()
        _measure_finalists(job, sweep, index, console)
        lease.check()
        found = _conclude(job, sweep)
        page = write_sweep_page(sweep.place, shards=job.shards.root)
        _tell(job, found, page, console)
        return found


def _planned(job: SweepJob) -> Planned[TrialsPlan]:
    """Plans the trials of a sweep for what the cluster has or can have.

    Raises:
        UserError: If not a single trial fits.
    """
    return plan_on_cluster(
        lambda has: plan_trials(
            cpus=has.cpus,
            gpus=has.gpus,
            workers=job.train.workers,
            device=job.train.device,
            gpus_per_trial=job.sweep.gpus_per_trial,
            concurrent=job.sweep.concurrent,
            nodes=has.nodes,
        ),
        TrialsPlan.needs,
    )


def _check(job: SweepJob, sweep: Sweep) -> None:
    """Raises a `UserError` if nothing is searched, or if a run lies in the folder of the sweep."""
    if not job.sweep.space:
        raise UserError(
            "sweep.space: nothing is searched. Name settings and their values in a file, as configs/encoders.yaml "
            "does, and give it with --config."
        )
    if (sweep.place / RUN_CONFIG).exists():
        raise UserError(f"{sweep.place}: a run lies there; a sweep needs a folder of its own. Use another runs.name.")


def _tell(job: SweepJob, found: SweepSummary, page: Location, console: Console) -> None:
    winner, final = found["winner"], found["finalists"]
    label = winner["label"] if winner else "none"
    if final:
        spread = f" +- {final[0]['sd']:.4f} (sd)" if final[0]["sd"] is not None else ""
        of, seeds = SCORES[job.train.best_by], len(final[0]["seeds"])
        score = f"validation {of} {final[0]['mean']:.4f}{spread} over {seeds} seed(s)"
        console.print(f"Winner: {label}: {score}", highlight=False, markup=False)
        for row in final[1:]:
            behind = row["behind"]
            if behind and behind["n"]:
                interval = f" (95 % {behind['low']:.4f} to {behind['high']:.4f})" if behind["n"] > 1 else ""
                text = f"  ahead of {row['label']} by {behind['mean']:.4f}{interval}"
                if len(row["seeds"]) < seeds:
                    text += f", which came to its end with {len(row['seeds'])} seed(s) alone"
                console.print(text, highlight=False, markup=False)
    else:
        console.print(f"Winner: {label}, by one seed alone", highlight=False, markup=False)
    spent = found["spent"]
    share = spent["epochs_search"] / max(spent["epochs_full_search"], 1)
    console.print(
        f"The search took {spent['epochs_search']} epochs, {share:.0%} of the whole at full length; the finalists "
        f"{spent['epochs_finalists']}.\nReport: {page}",
        highlight=False,
        soft_wrap=True,
    )


def _is_finished(job: SweepJob, place: Sweep) -> bool:
    if not place.summary():
        return False
    minutes, spent = job.sweep.budget.minutes, place.seconds().get("stage 1", 0.0)
    over = bool(minutes) and spent >= 60 * minutes
    return not any(Search(job, place.trials(), stage).has_moves() for stage in _STAGES if stage == 2 or not over)


def _in_precision(job: SweepJob, precision: str) -> SweepJob:
    return job.model_copy(update={"train": job.train.model_copy(update={"precision": precision})})


@ray.remote
def _probe(job: SweepJob, device: str) -> str:
    return fastest_precision(job, torch.device(device))


def _processes(job: SweepJob) -> int:
    """Returns the number of logical CPUs for all trials of a local cluster; by default, each worker gets a core."""
    workers = job.train.workers
    together = job.sweep.concurrent or max(cores() // workers, 1)
    return together * (workers + 1 if workers > 1 else 1)


def _share(root: Location, index: ShardIndex, console: Console) -> dict[str, ray.ObjectRef]:
    """Reads the shards of training and validation into Ray's object store, once for all trials."""
    shards = [*index.of("train"), *index.of("val")]
    images = index.count("train") + index.count("val")
    most = images * index.longer_side**2 * (index.corpus.channels + 1)
    room = min(node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"])
    if most > SHARED_SHARE * room:
        console.print(
            f"The shards may fill {most / 1e9:.1f} GB of an object store of {room / 1e9:.1f} GB: each trial reads them "
            "by itself.",
            highlight=False,
        )
        return {}
    shared = {one.file: _read.remote(root, one) for one in shards}
    ray.wait(list(shared.values()), num_returns=len(shared), fetch_local=False)
    return shared


@ray.remote
def _read(root: Location, shard: Shard) -> Any:
    return retry(lambda: read_table(root, shard), seconds=60.0)


def _measure_finalists(job: SweepJob, place: Sweep, index: ShardIndex, console: Console) -> None:
    """Measures each finalist on the test split, as `train` does at its end. Nothing else in a sweep uses that split."""
    for trial in place.trials():
        run = place.run(trial)
        if trial.stage == 2 and trial.state == "done" and not run.summary():
            console.print(f"Finalist {trial.name}", highlight=False)
            run.write_summary(evaluate_test_split(run, job.trial(trial.params, seed=trial.seed), index, console))


def _conclude(job: SweepJob, place: Sweep) -> SweepSummary:
    found = summarise_sweep(job, place.trials(), place.seconds())
    if not found["winner"]:
        reasons = "\n  ".join(f"{trial.name}: {trial.reason}" for trial in place.trials()[:10])
        raise JobFailedError(f"{place.place}: no trial came to a score:\n  {reasons}")
    winner = job.trial(found["winner"]["params"])
    length = {"epochs": job.train.epochs, "early_stop": job.train.early_stop}
    place.write_summary(found, winner.model_copy(update={"train": winner.train.model_copy(update=length)}))
    return found
