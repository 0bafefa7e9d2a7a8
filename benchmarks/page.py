"""Writes docs/performance.md, with its plots, from the figures in benchmarks/results/.

Run it from the folder of the repository, after the benchmarks: python -m benchmarks.page
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure

from benchmarks.results import FOLDER, read_result

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, PLOTS = DOCS / "performance.md", DOCS / "images"
Result = Mapping[str, Any]
_WIDTH = 120

_START = """# Performance

This page is written by `python -m benchmarks.page` from the files in `benchmarks/results/`, which `make bench` makes
(an hour on two cores; it goes on where it was interrupted). Figures are medians of three runs, unless a section
says otherwise. A ratio compares figures of the same run. Each section names the command that measures it alone.
"""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a table in Markdown."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _machine(part: str, result: Result) -> str:
    """Returns the command that measured a part, and where."""
    command = " ".join(("python -m", f"benchmarks.{part}", *result["arguments"]))
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"`{command}` on {result['machine']}; Python {result['python']}, {versions}."


def _plot(name: str, title: str, unit: str, bars: Mapping[str, float]) -> str:
    """Draws horizontal bars, and returns the line of Markdown that shows them."""
    figure = Figure(figsize=(8, 0.45 * len(bars) + 1), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh(list(bars), list(bars.values()), color="#4477aa")
    axes.bar_label(drawn, fmt="%.3g", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    return _save(figure, name, title)


def _save(figure: Figure, name: str, title: str) -> str:
    """Writes a plot, and returns the line of Markdown that shows it."""
    figure.savefig(PLOTS / f"{name}.png", dpi=110)
    return f"![{title}](images/{name}.png)"


_TRAIN_FIGURES: dict[str, Callable[[Result], str]] = {
    "job / published script": lambda one: f"{one['job_over_published']:.2f}",
    "job / careful script": lambda one: f"{one['job_over_careful']:.2f}",
    "job / step in memory": lambda one: f"{one['job_over_in_memory']:.2f}",
    "2 workers / 1 worker, once": lambda one: f"{one['two_workers_over_one']:.2f}",
    "step beside an idle Ray / step in memory, once": lambda one: f"{one['beside_ray'] / one['in_memory']:.2f}",
    "job / step in memory, one thread each, once": lambda one: f"{one['one_thread']['ratio']:.2f}",
    "share of the time in which the job waits for images": lambda one: f"{one['data_wait_share']:.1%}",
    "the same in an epoch after the first": lambda one: f"{one['later_wait_share']:.1%}",
    "pause between two epochs, validation aside": lambda one: f"{one['pause']:.1f} s",
    "command to first step": lambda one: f"{one['first_step']:.1f} s",
}


def _train(result: Result) -> list[str]:
    bars = {
        "published script": result["published"],
        "careful script": result["careful"],
        "step in memory": result["in_memory"],
        "step in memory beside an idle Ray": result["beside_ray"],
        "jobs/train.py": result["images_per_s"],
        "jobs/train.py, 2 workers": result["two_workers"],
    }
    others = [found for path in sorted(FOLDER.glob("train-*.json")) if (found := read_result(path.stem))]
    columns = [result, *others]
    rows = [(name, *(figure(one) for one in columns)) for name, figure in _TRAIN_FIGURES.items()]
    return [
        "## Training",
        f"Unet++ with RegNetY-004 at {result['size']} px, batches of {result['batch']}, PNG files of 2000 x 2000 px, "
        f"{result['precision']}. The published script is the tutorial's: it decodes the files in every epoch, with two "
        "workers of a DataLoader, in fp32. The careful one keeps decoded images in memory, and uses bf16 where that is "
        "faster, and channels last.",
        "All threads of a step wait for each other at each layer. A process that takes a core for a moment therefore "
        "holds up the whole step, and the processes of Ray do so even where they have nothing to do. With one thread, "
        "or one worker for each core, the others go on.",
        _machine("train", result),
        _plot("performance-training", "Training", "images per second", bars),
        table(
            ("figure", *("measured" if one is result else f"{one['machine']}, {one['precision']}" for one in columns)),
            rows,
        ),
        *(
            [
                "The columns on the right are of other machines, measured earlier. Where a step takes long, all "
                "programs of the comparison are bound by the same computation, and what the processes of Ray take of "
                "two cores is a larger share."
            ]
            if others
            else []
        ),
    ]


def _feed(result: Result) -> list[str]:
    cases: Mapping[str, Result] = result["cases"]
    keys = ("first_batch", "start_pairs_per_s", "pairs_per_s", "task_mib")
    rows = [(what, *(f"{found[key]:,.0f}" for key in keys)) for what, found in cases.items()]
    return [
        "## The feed",
        f"Images of {result['stored_px']} px are read and augmented (`medium`) for a network of {result['size']} px by "
        f"{result['tasks']} data tasks; nothing is done with them. An index names more images by hard links to the "
        "same files. The bucket is a SeaweedFS server on the same machine; with 30 ms, a proxy delays each request. "
        "The first batch is counted from the start of the process, most of which is the start of Ray. The first epoch "
        "of a large index is its first 512 images.",
        _machine("feed", result),
        table(("images, place", "first batch, s", "pairs/s, first epoch", "then", "memory of a task, MiB"), rows),
        "The first version of the feed, on another machine: 425, 352 and 178 pairs/s with 3,000, 100,000 and 1,000,000 "
        "images, the first batch after 16, 14 and 37 s; from the bucket with 30 ms 71 pairs/s, where 580 to 890 came "
        "from the disk. In the next section, epochs are twice as long as those of the large index here.",
    ]


def _peers(result: Result) -> list[str]:
    cases: Mapping[str, Result] = result["cases"]
    measured = {what: one for what, one in cases.items() if one["each"]}
    rows = [(what, f"{one['start_pairs_per_s']:,.0f}", f"{one['pairs_per_s']:,.0f}") for what, one in measured.items()]
    bars = {what: one["pairs_per_s"] for what, one in measured.items()}
    failed = [f"{what} ({one['failed']})" for what, one in cases.items() if one.get("failed")]
    return [
        "## The feed beside its peers",
        f"Two processes read and augment the same pairs. The DataLoader reads the same shards row by row; LitData and "
        f"Streaming read the pixels in formats of their own. The bucket answers every request after "
        f"{1000 * result['latency_seconds']:.0f} ms. The first epoch starts with an "
        "empty cache, and is counted from the start of the process; most of it is the start of Ray and the imports.",
        _machine("peers", result),
        _plot("performance-feed", "Pairs per second after the first epoch", "pairs per second", bars),
        table(("feed, place", "pairs/s, first epoch", "then"), rows),
        *([f"Runs that ended with an error of the peer, and do not count: {', '.join(failed)}."] if failed else []),
        "Where the time of the two cores goes for each pair from the local disk, in a profile of processes that was "
        "taken once, before and after it led to a change (2 cores of AMD EPYC with AVX2): row groups of one row, of "
        "which training reads six columns of seventeen, and one data task more than there are CPUs, so that none waits "
        "until Ray Data has started the next. What came later is in the table above alone: the numbers of chunks are "
        "items instead of a range, for which Ray ran a task each.",
        table(
            ("ms of a core for each pair", "data tasks", "reader", "other processes of Ray", "idle", "sum"),
            (
                ("lungseg-ray, before", "3.24", "0.36", "0.29", "0.80", "4.69"),
                ("lungseg-ray, after", "2.40", "0.29", "0.21", "0.17", "3.07"),
                ("torch DataLoader, the same reading", "2.29", "0.16", "-", "0.14", "2.59"),
                ("MosaicML Streaming", "2.59", "0.16", "-", "0.34", "3.09"),
            ),
        ),
    ]


def _predict(result: Result) -> list[str]:
    names = {"real": "Unet++ with RegNetY-004, 2 CPUs"}
    names |= {key: f"a network that takes no time, {key[-5:]}" for key in result if key.startswith("free")}
    rows = [
        (name, *(f"{result[key][figure]:.2f}" for figure in ("images_per_s", "bare_images_per_s", "ratio")))
        for key, name in names.items()
    ]
    named = [(f"{int(n):,}", f"{one['seconds']:.0f}", f"{one['mib']:.0f}") for n, one in result["named"].items()]
    return [
        "## Prediction",
        f"PNG files of 2000 x 2000 px, a network of {result['size']} px, masks of the size of the files. The bare loop "
        "decodes, computes and encodes in as many processes. The network that takes no time runs on a resource of Ray "
        "that stands for a GPU: decoding and encoding are then all there is.",
        _machine("predict", result),
        table(("prediction", "images/s", "bare loop", "ratio"), rows),
        "In the first version, a device waited for one core that decoded, computed and encoded in turn: about 24 "
        "images/s at this size on another machine, whatever the device and the number of CPUs.",
        "What the driver does by itself for many images, of which no pixel is read, once:",
        table(("images", "seconds", "largest memory of the driver, MiB"), named),
    ]


def _sharding(result: Result) -> list[str]:
    median, peak = result["median"], result["peak_mib"]
    return [
        "## Sharding",
        f"PNG pairs of 2000 x 2000 px: {median['images_per_s']:.1f} pairs/s, {median['ratio']:.2f} of two bare "
        "processes that read, decode and resize the same files and write nothing. Memory of all processes (PSS): "
        f"{peak['few']:.0f} MiB for {result['pairs']['few']} pairs, {peak['many']:.0f} MiB for "
        f"{result['pairs']['many']}.",
        _machine("sharding", result),
    ]


def _records(result: Result) -> list[str]:
    cases = {int(count): figures for count, figures in result["cases"].items()}
    first, last = min(cases), max(cases)
    rows = []
    for phase in cases[first]:
        growth = math.log(cases[last][phase] / cases[first][phase]) / math.log(last / first)
        figures = (f"{one[phase]:,.1f}" for one in cases.values())
        rows.append((phase.replace("peak_mib", "largest memory, MiB"), *figures, f"{growth:.2f}"))
    return [
        "## The driver of `shard`",
        "What the driver does by itself, for a manifest of hard links to 64 images, once; seconds. The exponent says "
        "how they grow with the number of images. With up to 100,000 images, the index includes a search for images "
        "that look alike in different splits.",
        _machine("records", result),
        table(("phase", *(f"{count:,} images" for count in cases), "exponent"), rows),
    ]


def _listing(result: Result) -> list[str]:
    rows = [
        (what, *(f"{found[key]:.1f}" for key in ("seconds", "peer_seconds", "ratio")))
        for what, found in result["cases"].items()
    ]
    return [
        "## Listing a corpus",
        f"{result['files']:,} files are listed and their layout is recognised, beside the listing alone. The bucket "
        "answers every request after 30 ms.",
        _machine("listing", result),
        table(("place, tree", "seconds", "listing alone, s", "ratio"), rows),
    ]


def _serving(result: Result) -> list[str]:
    keys = ("requests_per_s", "median_s", "p95_s", "p99_s")
    rows = [(clients, *(f"{one[key]:.2f}" for key in keys)) for clients, one in result["clients"].items()]
    bare = " and ".join(f"{speed:.2f} with {threads}" for threads, speed in result["bare_images_per_s"].items())
    return [
        "## The service",
        "PNG files of 2000 x 2000 px are sent to `deploy/serve.py` on this machine, which answers with masks of a Unet "
        f"with RegNetY-004 at {result['size']} px; each client sends the next when it has its answer. Clients, HTTP "
        f"server and network share the cores. Images per second of a bare loop: {bare} thread(s).",
        _machine("serving", result),
        table(("clients", "requests/s", "median, s", "95 % within, s", "99 % within, s"), rows),
    ]


def _gpu(result: Result) -> list[str]:
    rows = [
        (
            one["network"],
            *(str(one[key]) for key in ("size", "batch")),
            *(f"{one[key]:.1f}" for key in ("images_per_s", "bare_images_per_s")),
            f"{one['ratio']:.2f}",
            f"{one['matrix_rate_share']:.0%}",
            "-" if one["compiled_images_per_s"] is None else f"{one['compiled_images_per_s']:.1f}",
            "-" if one["waits_per_step"] is None else str(one["waits_per_step"]),
        )
        for one in result["training"]
    ]
    return [
        "## The step on a device",
        "One run. `Learner.step` on batches in memory, bf16, beside a bare loop of the same network, loss and "
        "optimiser without any check. The share is that of the device's rate in large matrix products. Largest "
        "difference of 20 losses in fp32 between this device and a CPU: "
        f"{result['parity']['largest_difference_fp32']:.1e}."
        + (
            " No GPU was at hand: the figures are those of a CPU."
            if result["training"][0]["waits_per_step"] is None
            else ""
        ),
        _machine("gpu", result),
        table(
            ("network", "px", "batch", "images/s", "bare loop", "ratio", "share", "compiled", "waits per step"), rows
        ),
    ]


def _memory(results: Mapping[str, Result | None]) -> list[str]:
    """Returns the section with the memory of processes by the number of images, from the results of several parts."""
    curves: dict[str, dict[int, float]] = {}
    if feed := results["feed"]:
        local = {int(what.split()[0].replace(",", "")): one for what, one in feed["cases"].items() if "local" in what}
        curves["data task of a training"] = {count: one["task_mib"] for count, one in local.items()}
    if predict := results["predict"]:
        curves["driver of a prediction"] = {int(count): one["mib"] for count, one in predict["named"].items()}
    if records := results["records"]:
        curves["driver of sharding"] = {int(count): one["peak_mib"] for count, one in records["cases"].items()}
    if not curves:
        return []
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for (name, curve), marker in zip(curves.items(), "os^", strict=False):
        axes.plot(list(curve), list(curve.values()), marker=marker, label=name)
    axes.set(xscale="log", yscale="log", xlabel="images", ylabel="MiB")
    axes.set_title("Largest memory of a process", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return [
        "## Memory by the number of images",
        "The figures are those of the sections above.",
        _save(figure, "performance-memory", "Largest memory of a process"),
    ]


SECTIONS: dict[str, Callable[[Result], list[str]]] = {
    "train": _train,
    "feed": _feed,
    "peers": _peers,
    "predict": _predict,
    "sharding": _sharding,
    "records": _records,
    "listing": _listing,
    "serving": _serving,
    "gpu": _gpu,
}


def main() -> None:
    """Writes the page."""
    results = {name: read_result(name) for name in SECTIONS}
    sections = [part for name, section in SECTIONS.items() if (result := results[name]) for part in section(result)]
    parts = [
        part if part[0] in "#!|" else fill(part, _WIDTH, break_on_hyphens=False)
        for part in (*sections, *_memory(results))
    ]
    PAGE.write_text("\n\n".join([_START.strip(), *parts]) + "\n")
    print(f"Written: {PAGE}")


if __name__ == "__main__":
    main()
