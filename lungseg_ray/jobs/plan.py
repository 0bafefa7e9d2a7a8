"""The job that chooses the settings of a run by the time and the memory that there are, before the run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import ray
import torch
import yaml
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError
from rich.console import Console
from rich.table import Table

from lungseg_ray.cluster.planning import TrainingPlan, cores
from lungseg_ray.cluster.session import cluster
from lungseg_ray.config import PlanJob, Settings, merge, validated
from lungseg_ray.errors import UserError
from lungseg_ray.evaluation.confidence import passes_to_calibrate
from lungseg_ray.feed.stream import Source
from lungseg_ray.jobs.cli import STARTED
from lungseg_ray.jobs.console import print_table
from lungseg_ray.jobs.prologue import planned_workers
from lungseg_ray.names import WITH_DECODER_CHANNELS
from lungseg_ray.run.folder import Run
from lungseg_ray.shards.index import ShardIndex, read_index
from lungseg_ray.shards.reuse import with_shard_settings
from lungseg_ray.text import counted, duration
from lungseg_ray.training.model import check_model, model_cost, with_start
from lungseg_ray.training.step_cost import StepCost, measure_step
from lungseg_ray.workers.worker import CACHED_VALIDATION_BYTES

Tree = dict[str, Any]


@dataclass(frozen=True)
class Rung:
    """Settings among which the plan chooses, the lighter before the heavier.

    Attributes:
        settings: The settings.
        least_images: The training images, over all epochs, from which on it is better than the lighter ones.
    """

    settings: Tree
    least_images: int


def _rung(architecture: str, encoder: str, channels: list[int] | None, size: int, least_images: int) -> Rung:
    model = {"architecture": architecture, "encoder": encoder, "decoder_channels": channels}
    return Rung({"model": model, "feed": {"size": size}}, least_images)


LIGHT = [128, 64, 32, 16, 16]
LADDER = (
    _rung("Unet", "timm-regnety_002", LIGHT, 128, 0),
    _rung("Unet", "timm-regnety_004", LIGHT, 192, 6_000),
    _rung("Unet", "timm-regnety_004", LIGHT, 256, 10_000),
    _rung("UnetPlusPlus", "timm-regnety_004", None, 256, 30_000),
    _rung("UnetPlusPlus", "timm-resnest200e", None, 512, 300_000),
)
RECIPE: Tree = {
    "feed": {"preset": "chest_robust"},
    "model": {"normalise": True},
    "optim": {"name": "radam", "schedule": "one_cycle", "lookahead_k": 0, "warmup": 0.25, "clip": 1.0},
    "train": {"average": 0.99},
}
"""What all rungs have in common."""

MOST_EPOCHS = 400
"""More epochs than these are not planned, whatever the time."""
CONTENDED = 0.9
"""On CPUs, training reaches this share of the speed in a process alone, since the processes of Ray use the cores."""
PAUSE_SECONDS, FINISH_SECONDS = 0.4, 4.0
"""Between two epochs, and from the last epoch to the evaluation, which writes the model."""
MEASURE_SECONDS, SHIFT_SECONDS, COPIES = 0.15, 0.03, 31
"""To compare one mask in full, and one changed copy of an image; and the copies of each image."""
FILL = 0.85
"""The largest share of a memory that a plan fills."""
CPU_PRICE, GPU_PRICE = 0.048, 1.006
"""USD per hour on demand in us-east-1, from AWS's list: a CPU of an m6i, and a g5.xlarge with its A10G."""


@dataclass(frozen=True)
class RunCost:
    """What a run would cost.

    Attributes:
        epochs: The epochs that fit.
        images: The training images that they show the network.
        seconds: The whole command, by part.
        memory: The memory of a worker, bytes.
        storage: The checkpoints and the model, bytes.
    """

    epochs: int
    images: int
    seconds: dict[str, float]
    memory: int
    storage: int

    @property
    def minutes(self) -> float:
        """The whole command, minutes."""
        return sum(self.seconds.values()) / 60


def main(job: PlanJob, console: Console) -> None:
    """Measures what training costs with several settings, chooses among them, and writes a configuration file.

    Args:
        job: The settings of the job; what the user sets there is not chosen otherwise.
        console: The console that the user reads.

    Raises:
        UserError: If there are no shards, if no choice fits the time and the memory, or if the cluster has no room.
        OSError: If a file cannot be read or written.
    """
    asked = job.model_dump(mode="json", exclude_unset=True, exclude={"minutes", "gib", "out"})
    index = read_index(job.shards.root)
    with cluster(processes=job.train.workers):
        began = time.time() - STARTED
        plan = planned_workers(job).when_up()
        with console.status("Measuring what training costs"):
            tried = _tried(job, asked, index, plan, began)
    limit = job.gib * 2**30 or min(one.cost.available for one in tried) * FILL
    chosen = choose([(one.rung, one.estimate) for one in tried], job.minutes, limit)
    print_table(console, *_tables(tried, chosen))
    best = tried[chosen]
    found = best.estimate
    planned = {"minutes": round(found.minutes, 1), "gib": round(found.memory / 2**30, 2)}
    tree = merge(best.tree, {"train": {"epochs": found.epochs}, "planned": planned})
    lines = _reasons(best, index, plan)
    job.out.write_text("".join(f"# {line}\n" for line in lines) + yaml.safe_dump(tree, sort_keys=False))
    console.print("\n".join(lines), highlight=False)
    console.print(f"Plan: {job.out}", highlight=False)
    console.print(f"Train it: python jobs/train.py --config {job.out} --runs.name NAME", highlight=False)


@dataclass(frozen=True)
class Tried:
    """A rung that was measured.

    Attributes:
        rung: The rung.
        tree: Its settings with those that the user sets, as they are written.
        settings: All settings of such a run.
        cost: What was measured.
        estimate: What the run would cost.
    """

    rung: Rung
    tree: Tree
    settings: Settings
    cost: RungCost
    estimate: RunCost

    @property
    def name(self) -> str:
        """The network and the size, for the user."""
        model, feed = self.settings.model, self.settings.feed
        light = " with a light decoder" if model.decoder_channels else ""
        return f"{model.architecture}{light}, {model.encoder}, {feed.size} px"


def _tried(job: PlanJob, asked: Tree, index: ShardIndex, plan: TrainingPlan, began: float) -> list[Tried]:
    """Measures the rungs from the lightest on, until the next one would see too few images or need too much memory.

    Raises:
        UserError: If not even the lightest can be trained.
    """
    found: list[Tried] = []
    for rung in _rungs(asked):
        tree = merge(merge(RECIPE, rung.settings), asked)
        settings = with_shard_settings(validated(Settings, tree), index)
        settings, _ = with_start(settings, Run(job.runs.root / job.runs.name).config)
        check_model(settings)
        gflops = model_cost(settings).gflops
        if found:
            before = found[-1]
            images = before.estimate.images * model_cost(before.settings).gflops / gflops
            if images < rung.least_images / 2:
                break
        try:
            cost = _measured(settings, index, plan)
        except (MemoryError, torch.OutOfMemoryError, OutOfMemoryError, WorkerCrashedError) as error:
            if not found:
                raise UserError(f"The lightest network needs more memory than there is ({error}).") from None
            break
        epochs = job.train.epochs if "epochs" in asked.get("train", {}) else None
        limit = job.minutes * 60
        costs = estimate(settings, index, plan, cost, began, limit, epochs=epochs)
        found.append(Tried(rung, tree, settings, cost, costs))
    return found


@dataclass(frozen=True)
class RungCost:
    """What was measured for one rung.

    Attributes:
        step: The cost of a step.
        prepare_seconds: CPU seconds to read and augment an image.
        started: Seconds until the process that measured was ready.
        available: The memory of a worker's device, bytes: of a CPU's machine divided by the workers, or of a GPU.
    """

    step: StepCost
    prepare_seconds: float
    started: float
    available: int


def _rungs(asked: Tree) -> list[Rung]:
    """Returns the rungs that differ in what the user does not set, without channels where the decoder has none."""
    found: dict[str, Rung] = {}
    for rung in LADDER:
        model, feed = dict(rung.settings["model"]), rung.settings["feed"]
        if asked.get("model", {}).get("from"):
            # Network and size are those of the model that training starts from.
            model, feed = {}, {}
        elif merge(model, asked.get("model", {}))["architecture"] not in WITH_DECODER_CHANNELS:
            del model["decoder_channels"]
        tree = {"model": model, "feed": feed}
        found.setdefault(repr(merge(tree, asked)), Rung(tree, rung.least_images))
    return list(found.values())


def _measured(settings: Settings, index: ShardIndex, plan: TrainingPlan) -> RungCost:
    """Measures a rung in a process of its own on a node of the cluster."""
    options: dict[str, Any] = {"num_gpus": 1} if plan.device == "cuda" else {"num_cpus": 1}
    # A process for each call, since a process that uses memory again never needs less than before.
    task = ray.remote(max_calls=1, max_retries=0, **options)(_measure)
    try:
        found: RungCost = ray.get(task.remote(settings, index, plan, time.time()))
    except RayTaskError as error:
        raise error.cause from None
    return found


def _measure(settings: Settings, index: ShardIndex, plan: TrainingPlan, asked: float) -> RungCost:
    started = time.time() - asked
    threads = settings.train.threads or max(cores() // settings.train.workers, 1)
    device = torch.device(plan.device)
    step = measure_step(settings, device=device, threads=threads)
    source = replace(Source.of(settings, index), sizes=(), size=max([settings.feed.size, *settings.feed.sizes]))
    count = min(index.count("train"), 16)
    rows = source.plan("train", [source.rows("train", 0, np.arange(count))])
    rows.prepare(0)
    start = time.process_time()
    rows.prepare(0)
    prepare = (time.process_time() - start) / count
    if device.type == "cuda":
        available = torch.cuda.get_device_properties(device).total_memory
    else:
        here = ray.get_runtime_context().get_node_id()
        node = next(one for one in ray.nodes() if one["NodeID"] == here)
        available = int(node["Resources"]["memory"]) // settings.train.workers
    return RungCost(step, prepare, started, available)


def estimate(
    settings: Settings,
    index: ShardIndex,
    plan: TrainingPlan,
    cost: RungCost,
    began: float,
    limit: float,
    *,
    epochs: int | None = None,
) -> RunCost:
    """Computes how many epochs fit into a time, and what the run costs.

    Args:
        settings: The settings of the run.
        index: The index of its shards.
        plan: The workers and CPUs that it gets.
        cost: What was measured.
        began: The seconds that a command takes until Ray is up.
        limit: The time of the whole command, seconds.
        epochs: The epochs that are asked for; None for as many as fit.
    """
    step, workers = cost.step, plan.workers
    if plan.device == "cuda":
        tasks = max(plan.data_tasks * workers, 1)
        image = max(1 / (step.images_per_s * workers), cost.prepare_seconds / tasks)
    else:
        # The cores compute, and prepare the images.
        image = 1 / (step.images_per_s * workers * CONTENDED) + cost.prepare_seconds / max(plan.data_cpus + workers, 1)
    # It was measured with the largest size.
    largest = max([settings.feed.size, *settings.feed.sizes])
    image *= fmean(size**2 / largest**2 for size in settings.feed.sizes or [largest])
    forward = (settings.feed.size / largest) ** 2 / (step.forward_images_per_s * workers)
    epoch = index.count("train") * image + index.count("val") * forward + PAUSE_SECONDS
    passes = {"none": 1, "horizontal": 2, "all": 4}[settings.model.flips]
    test = index.count("test")
    changed = min(settings.evaluate.robustness, test) * COPIES
    examined = 0.0
    if settings.evaluate.confidence:
        examined = passes_to_calibrate(index.count("train"), index.count("val")) + 0.5 * test
    evaluation = FINISH_SECONDS + (test + changed + examined) * forward * passes
    evaluation += (test * MEASURE_SECONDS + changed * SHIFT_SECONDS) / max(plan.data_cpus + workers, 1)
    # Workers are started in two generations of processes: that of Ray Train, and their own.
    start = began + 2 * cost.started + 3
    fitting = int(max((limit - start - evaluation) // epoch, 0))
    # Epochs that are asked for fit, or nothing does.
    epochs = min(fitting, MOST_EPOCHS) if epochs is None else epochs if epochs <= fitting else 0
    each = settings.feed.size**2 * (index.corpus.channels + 1)
    kept_validation = index.count("val") * each // workers
    images = settings.feed.ahead * each + (kept_validation if kept_validation <= CACHED_VALIDATION_BYTES else 0)
    copies = 3 + (settings.train.average > 0) + (settings.optim.lookahead_k > 0)
    kept = settings.checkpoint.keep + 2
    return RunCost(
        epochs=epochs,
        images=epochs * index.count("train"),
        seconds={"start": start, "training": epochs * epoch, "evaluation": evaluation},
        memory=step.memory + (images if plan.device == "cpu" else 0),
        storage=4 * step.parameters * (copies * kept + 1),
    )


def choose(tried: Sequence[tuple[Rung, RunCost]], minutes: float, limit: float) -> int:
    """Returns the number of the heaviest rung that fits and sees enough images, or else of the lightest that fits.

    Args:
        tried: The rungs with what they cost, the lighter before the heavier.
        minutes: The time that there is.
        limit: The memory of a worker, bytes.

    Raises:
        UserError: If none fits.
    """
    fitting = [number for number, (_, found) in enumerate(tried) if found.epochs and found.memory <= limit]
    if not fitting:
        least = tried[0][1]
        raise UserError(
            f"Nothing fits into {minutes:g} minutes and {limit / 2**30:.1f} GiB for each worker: start and evaluation "
            f"alone take {(least.seconds['start'] + least.seconds['evaluation']) / 60:.1f} minutes, and a worker needs "
            f"{least.memory / 2**30:.1f} GiB. Raise --minutes or --gib, or add machines."
        )
    enough = [number for number in fitting if tried[number][1].images >= tried[number][0].least_images]
    return (enough or fitting[:1])[-1]


def _tables(tried: Sequence[Tried], chosen: int) -> tuple[Table, Table]:
    """Returns the choices as a wide and as a narrow table."""
    heads = ("images/s", "epochs", "minutes", "memory of a worker, GiB")
    wide, narrow = Table("", "network", *heads, title="What fits"), Table("", "network", "figure", "value")
    for number, one in enumerate(tried):
        mark, found = "->" if number == chosen else "", one.estimate
        memory = f"{found.memory / 2**30:.1f}"
        cells = (f"{one.cost.step.images_per_s:.1f}", str(found.epochs), f"{found.minutes:.1f}", memory)
        wide.add_row(mark, one.name, *cells)
        for head, cell in zip(heads, cells, strict=True):
            narrow.add_row(mark if head == heads[0] else "", one.name if head == heads[0] else "", head, cell)
    return wide, narrow


def _reasons(best: Tried, index: ShardIndex, plan: TrainingPlan) -> list[str]:
    """Returns the plan and what it rests on, a line each."""
    settings, cost, found = best.settings, best.cost, best.estimate
    device = "GPU" if plan.device == "cuda" else "CPU"
    hours = found.minutes / 60
    count = plan.workers if plan.device == "cuda" else plan.data_cpus + plan.workers
    price = hours * count * (GPU_PRICE if plan.device == "cuda" else CPU_PRICE)
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in found.seconds.items())
    test = index.count("test")
    return [
        f"{counted(index.count('train'), 'training image')}, {index.count('val')} for validation, {test} for the test; "
        f"shards {index.fingerprint[:16]}.",
        f"{best.name}, {cost.step.parameters / 1e6:.1f} M parameters, batches of {settings.feed.batch}, "
        f"{found.epochs} epochs, {counted(plan.workers, 'worker')} on {device}.",
        f"Expected: {found.minutes:.0f} minutes ({parts}), {found.memory / 2**30:.1f} GiB for each worker, "
        f"{found.storage / 2**20:.0f} MiB of checkpoints.",
        f"It rests on {cost.step.images_per_s:.1f} images/s in training and {cost.step.forward_images_per_s:.1f} in "
        f"validation, {cost.step.precision}, and {cost.prepare_seconds * 1000:.0f} ms of a CPU to prepare an image, "
        "which were measured here.",
        f"Price on demand, an estimate from AWS's list for us-east-1: {price:.3f} USD for {count} {device}"
        f"{'s' if count > 1 else ''}.",
    ]
