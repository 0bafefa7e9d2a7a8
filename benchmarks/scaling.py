"""Writes docs/scaling.md: settings, bottlenecks and prices from a laptop to 64 GPUs, computed from measured figures.

The figures are those in `benchmarks/results/`; what nobody has measured is named there as an assumption.
Run it from the folder of the repository, after the benchmarks: python -m benchmarks.scaling
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from textwrap import fill

from benchmarks.page import DOCS, Result, table
from benchmarks.results import read_result
from lungseg_ray.config import Settings
from lungseg_ray.training.model import model_cost

PAGE = DOCS / "scaling.md"
SIZE, STORED = 256, 1024
EPOCHS = 30
BYTES = 1.1e6
"""Of an image and its mask in a shard, at a longer side of 1024 px: raw grey pixels, and a compressed mask."""
ROWS, CHUNK_REQUESTS = 64, 8
"""Images of a shard, and the requests in which it is read."""

DEVICE_RATE, DEVICE_SHARE = 70e12, 0.25
"""An NVIDIA A10G makes 70e12 operations per second in dense bf16 products (NVIDIA's data sheet); the share of it that a
network like Unet++ reaches is an assumption."""
PRICES = {"g5.xlarge": 1.006, "m6i.2xlarge": 0.384, "m6i.xlarge": 0.192}
"""USD per hour, on demand, us-east-1."""
STORE_PRICE, REQUEST_PRICE = 0.023, 0.0004 / 1000
"""USD per GB and month, and per GET request, S3 Standard, us-east-1."""


@dataclass(frozen=True)
class Step:
    """A size of a corpus, and the machines for it."""

    images: int
    machines: str
    gpus: int
    data_nodes: int
    settings: str

    @property
    def cpus(self) -> int:
        """CPUs for the data: four beside each GPU, eight on a node of its own; two on the laptop."""
        return 4 * self.gpus + 8 * self.data_nodes or 2

    @property
    def price(self) -> float:
        """USD per hour: nothing for a machine that one has."""
        head = PRICES["m6i.xlarge"] if self.gpus > 1 else 0
        return self.gpus * PRICES["g5.xlarge"] + self.data_nodes * PRICES["m6i.2xlarge"] + head


STEPS = (
    Step(300, "a laptop, 2 cores", 0, 0, "none"),
    Step(10_000, "1 x g5.xlarge", 1, 0, "`--feed.batch 32`"),
    Step(100_000, "4 x g5.xlarge, a bucket", 4, 0, "`--train.workers 4 --feed.batch 128 --checkpoint.every_steps 200`"),
    Step(
        1_000_000,
        "16 x g5.xlarge, 4 x m6i.2xlarge",
        16,
        4,
        "the same with 16 workers, `--shards.rows 256`",
    ),
    Step(
        10_000_000,
        "64 x g5.xlarge, 16 x m6i.2xlarge",
        64,
        16,
        "the same with 64 workers, `--feed.batch 512`, `--feed.window 16`, `--optim.encoder_lr` and `lr` searched anew",
    ),
)


def main() -> None:
    """Computes the tables and writes the page."""
    results = {name: read_result(name) for name in ("train", "feed", "sharding", "records", "predict", "listing")}
    missing = [name for name, found in results.items() if found is None]
    if missing:
        raise SystemExit(f"There are no figures of {', '.join(missing)}; run make bench.")
    page = _page({name: found for name, found in results.items() if found})
    PAGE.write_text(
        "\n\n".join(part if part[0] in "#|" else fill(part, 120, break_on_hyphens=False) for part in page) + "\n"
    )
    print(f"Written: {PAGE}")


@dataclass(frozen=True)
class Rates:
    """What the page computes with; rates are for one GPU or one CPU.

    Attributes:
        gflops: 10^9 operations of the network for an image, forward.
        gpu: Training, images per second, estimated.
        cpu: Training on the measured machine, images per second.
        machine: The measured machine.
        feed: Reading and augmentation, images per second.
        sharding: Sharding, pairs per second.
        prediction: Reading, prediction and writing, images per second.
        driver: The driver's own work when shards are made, seconds per image.
        driver_images: The number of images with which that was measured.
        driver_mib: The memory of the driver with them.
    """

    gflops: float
    gpu: float
    cpu: float
    machine: str
    feed: float
    sharding: float
    prediction: float
    driver: float
    driver_images: int
    driver_mib: float

    @classmethod
    def of(cls, results: dict[str, Result]) -> Rates:
        """Reads the measured figures."""
        settings = Settings.model_validate({"feed": {"size": SIZE}, "model": {"encoder": "timm-regnety_004"}})
        gflops = model_cost(settings).gflops
        # The feed is measured with smaller images; what augmentation costs depends on the size of the network's input.
        feed = next(one for what, one in results["feed"]["cases"].items() if "local" in what)
        images, phases = max(results["records"]["cases"].items(), key=lambda one: int(one[0]))
        seconds = sum(value for phase, value in phases.items() if phase not in ("peak_mib", "total"))
        return cls(
            gflops=gflops,
            gpu=DEVICE_RATE * DEVICE_SHARE / (3e9 * gflops),
            cpu=results["train"]["images_per_s"],
            machine=results["train"]["machine"],
            feed=feed["pairs_per_s"] / results["feed"]["tasks"],
            sharding=results["sharding"]["median"]["images_per_s"] / 2,
            prediction=results["predict"]["free, 2 CPU"]["images_per_s"] / 2,
            driver=seconds / int(images),
            driver_images=int(images),
            driver_mib=phases["peak_mib"],
        )


def _page(results: dict[str, Result]) -> list[str]:
    rates = Rates.of(results)
    rows, arithmetic = zip(*(_rows(step, rates) for step in STEPS), strict=True)
    heads = ("images", "machines", "settings", "what bounds the speed", f"{EPOCHS} epochs", "price, USD")
    counted = ("images", "images/s of the devices", "images/s of the feed", "epoch", "MB/s per machine", "shards, GB")
    later = ("store, USD a month", "sharding", "driver of sharding", "prediction")
    return [
        "# From a laptop to 64 GPUs",
        "This page is written by `python -m benchmarks.scaling` from the figures of [performance.md](performance.md) "
        "and from public list prices. **Everything about GPUs and prices is an estimate**: nothing of it was run.",
        "The same command serves all sizes. What changes are the machines, the address of shards and runs, and these "
        "settings, all with `--feed.size 256`, and `--model.encoder timm-regnety_004`:",
        table(heads, rows),
        "## Arithmetic",
        table((*counted, *later), arithmetic),
        *_notes(rates),
    ]


def _rows(step: Step, rates: Rates) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the rows of a step in the table of settings, and in that of the arithmetic."""
    speed, data = step.gpus * rates.gpu or rates.cpu, step.cpus * rates.feed
    # On a laptop, the measured speed contains the data.
    used = min(speed, data) if step.gpus else speed
    bound = "the CPUs, which compute" if not step.gpus else "the GPUs" if speed <= data else "the CPUs that augment"
    epoch = step.images / used
    hours = epoch * EPOCHS / 3600
    price = hours * step.price + step.images / ROWS * CHUNK_REQUESTS * REQUEST_PRICE
    store = step.images * BYTES / 1e9
    several = step.gpus > 1
    network = used * BYTES / max(step.gpus + step.data_nodes, 1)
    images = f"{step.images:,}"
    arithmetic = (
        images,
        f"{speed:,.0f}",
        f"{data:,.0f}" if step.gpus else "-",
        _hours(epoch),
        f"{network / 1e6:,.0f}" if several else "-",
        f"{store:,.0f}" if store >= 1 else f"{store:.1f}",
        f"{store * STORE_PRICE:,.2f}" if several else "-",
        _hours(step.images / (step.cpus * rates.sharding)),
        _hours(step.images * rates.driver),
        _hours(step.images / (step.cpus * rates.prediction)),
    )
    return (images, step.machines, step.settings, bound, _hours(hours * 3600), _usd(price)), arithmetic


def _notes(rates: Rates) -> list[str]:
    prices = ", ".join(f"{name} {price:.3f} USD per hour" for name, price in PRICES.items())
    return [
        f"- **Devices.** Unet++ with RegNetY-004 at {SIZE} px takes {rates.gflops:.1f} GFLOPs forward, three times "
        f"that for a step. An A10G makes {DEVICE_RATE / 1e12:.0f}e12 operations per second in dense bf16 (data sheet); "
        f"with an assumed {DEVICE_SHARE:.0%} of it, {rates.gpu:.0f} images/s. Measured: {rates.cpu:.1f} images/s with "
        f"{rates.machine}. `summary.json` of a run has the share that your device reaches.",
        f"- **Augmentation.** {rates.feed:.0f} images/s for each CPU were measured, so that a GPU needs "
        f"{rates.gpu / rates.feed:.1f} CPUs. Where it has fewer, add `cpu` nodes, and let each worker use them: "
        "`--feed.tasks`.",
        f"- **Network.** A shard row has {BYTES / 1e6:.1f} MB at {STORED} px. Each machine reads its share of the "
        "images once, from the bucket, and later from its own disk (`feed.cache`), where that has room for it. "
        "A g5.xlarge has 2.5 Gbit/s for long and up to 10 for a while (AWS's documentation), which is 312 MB/s: the "
        "first epoch may take half as long again as the others. "
        "`--shards.longer_side 512` makes a quarter of it, and loses nothing for a network of 256 px but sharpness in "
        "zoomed crops.",
        f"- **Requests.** About {CHUNK_REQUESTS} for each shard in the first epoch, {REQUEST_PRICE * 1000:.4f} USD for "
        "a thousand.",
        f"- **Sharding.** {rates.sharding:.1f} pairs/s for each CPU, PNG of 2000 x 2000 px. The driver's own work, "
        f"one process, was measured with {rates.driver_images:,} images and grows linearly; memory: "
        f"{rates.driver_mib:,.0f} MiB.",
        f"- **Prediction.** {rates.prediction:.1f} images/s for each CPU that decodes and encodes; a GPU is "
        "faster than these, so that the CPUs bound it.",
        "- **Gradients.** Unet++ with RegNetY-004 has some 6 M parameters, 24 MB in fp32. A ring exchanges twice that "
        "in each step and direction: at 10 Gbit/s 40 ms, a part of which is behind the backward pass. With 64 workers, "
        "keep 8 images or more for each, so that a step is longer than that.",
        f"- **Prices.** On demand in us-east-1: {prices}; S3 Standard {STORE_PRICE} USD per GB and month. Spot "
        "machines cost a half to a third of it. Look them up before you decide.",
    ]


def _hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _usd(price: float) -> str:
    return "-" if not price else f"{price:,.2f}" if price < 10 else f"{math.ceil(price):,}"


if __name__ == "__main__":
    main()
