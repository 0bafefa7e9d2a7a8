"""Judges how well a run tells the Dice of its masks without true ones, and writes the figures of docs/confidence.md.

Test images are judged as they are, and in changed copies. Run it from the folder of the repository:

    python -m benchmarks.confidence --run RUN --shards SHARDS [--other NAME=SHARDS ...]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich.console import Console
from scipy import stats

from benchmarks.page import DOCS, PLOTS, table
from benchmarks.results import read_result, write_result
from lungseg_ray.confidence.calibration import COVERAGE, Estimate
from lungseg_ray.confidence.signals import SIGNALS, examine
from lungseg_ray.confidence.stored import confidence_of
from lungseg_ray.errors import UserError
from lungseg_ray.evaluation.robustness import dice_of_image
from lungseg_ray.feed.shifts import SHIFTS
from lungseg_ray.imaging import Pixels
from lungseg_ray.inference.predictor import Model
from lungseg_ray.run.folder import Run
from lungseg_ray.shards.format import read_rows
from lungseg_ray.shards.index import read_index
from lungseg_ray.storage import locate

COPIES = 8
"""The changed copies of each test image, drawn from all levels of all shifts."""
MOST = 100
"""The images of a corpus that are used, at equal distances."""
LOOKED_AT = 0.15
BAD = 0.9
Pair = tuple[Pixels, Pixels]


@dataclass(frozen=True)
class Judged:
    """A mask with its true Dice, what was expected of it, and the signals that this rests on."""

    dice: float
    estimate: Estimate
    signals: dict[str, float]


def main() -> None:
    """Judges, writes benchmarks/results/confidence.json and the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", required=True)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--other", action="append", default=[])
    given = parser.parse_args()
    model = Model((Run(locate(given.run)),))
    test = _pairs(given.shards)
    draw = np.random.default_rng(0)
    changes = [(shift.change, level) for shift in SHIFTS.values() for level in shift.levels]
    copies = [
        change(*pair, level)
        for pair in test
        for change, level in (changes[one] for one in draw.choice(len(changes), COPIES, replace=False))
    ]
    plain, changed = _judged(model, test), _judged(model, copies)
    sets = {"test images": plain, "test images and changed copies": plain + changed}
    for one in given.other:
        name, _, root = one.partition("=")
        sets[name] = _judged(model, _pairs(root))
    result = {
        "copies": COPIES,
        "sets": {name: _figures(rows) for name, rows in sets.items()},
        "points": {
            name: [[one.estimate.dice, one.dice, one.estimate.unlike] for one in rows] for name, rows in sets.items()
        },
    }
    write_result("confidence", result, Console())
    write_page()


def _pairs(root: str) -> list[Pair]:
    place = locate(root)
    rows = [row for shard in read_index(place).of("test") for row in read_rows(place, shard, shard.usable)]
    numbers = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST)).round().astype(int))
    return [(rows[number].sample.image, rows[number].sample.mask) for number in numbers]


def _judged(model: Model, pairs: list[Pair]) -> list[Judged]:
    confidence = confidence_of(model)
    if not confidence:
        raise UserError(f"{model.runs[0].place}: this model has no confidence.json.")
    use = model.load()
    found = []
    for image, mask in pairs:
        examined = examine(use, use.inputs([image])[0])
        (probability,) = use.combine([examined.maps], [mask.shape])
        dice = dice_of_image(use.labels(probability), mask, use.sidecar.classes)
        signals = confidence.reference.signals(examined, 0, use)
        found.append(Judged(dice, confidence.calibration.estimate(signals), signals))
    return found


def _figures(rows: list[Judged]) -> dict[str, Any]:
    dice = np.array([one.dice for one in rows])
    expected = np.array([one.estimate.dice for one in rows])
    inside = np.array([one.estimate.low <= one.dice <= one.estimate.high for one in rows])
    like = np.array([not one.estimate.unlike for one in rows])
    risks = {"expected Dice": -expected} | {name: np.array([one.signals[name] for one in rows]) for name in SIGNALS}
    looked_at = -(-len(rows) * 15 // 100)
    bad = dice < BAD
    return {
        "images": len(rows),
        "dice": float(dice.mean()),
        "mean_error": float(np.abs(expected - dice).mean()),
        "inside": float(inside.mean()),
        "like": int(like.sum()),
        "inside_like": float(inside[like].mean()) if like.any() else None,
        "width": float(np.mean([one.estimate.high - one.estimate.low for one in rows])),
        "bad": int(bad.sum()),
        "looked_at": looked_at,
        "spearman": {name: float(stats.spearmanr(-risk, dice).statistic) for name, risk in risks.items()},
        "aurc": {name: _aurc(risk, dice) for name, risk in risks.items()} | {"true Dice": _aurc(-dice, dice)},
        "found": {name: int(bad[np.argsort(-risk)[:looked_at]].sum()) for name, risk in risks.items()},
    }


def _aurc(risk: npt.NDArray[np.float64], dice: npt.NDArray[np.float64]) -> float:
    """Returns the area under the curve of 1 - Dice of those masks that are kept, over the share that is kept."""
    errors = (1 - dice)[np.argsort(risk)]
    return float((np.cumsum(errors) / np.arange(1, len(errors) + 1)).mean())


_HEADING = "## How well it tells"
"""What follows this heading in docs/confidence.md is written by this benchmark."""


def write_page() -> None:
    """Writes the figures into docs/confidence.md, and its plot."""
    result = read_result("confidence")
    if not result:
        raise UserError("There are no figures in benchmarks/results/confidence.json yet.")
    sets = result["sets"]
    _plot(result["points"])
    about = (
        f"Written by `python -m benchmarks.confidence`; {result['machine']}. The changed copies are {result['copies']} "
        f"of each test image, drawn from all levels of the robustness card. The range is meant to hold {COVERAGE:.0%}. "
        f"The last column: of the masks with a Dice below {BAD:g}, how many are among the {LOOKED_AT:.0%} of the "
        "images with the lowest expected Dice."
    )
    alone = (
        "Each signal alone, and all together. AURC is the area under the curve of 1 - Dice of the masks that are kept, "
        "over the share that is kept, from the most trusted on; that of the true Dice is the least possible."
    )
    page = DOCS / "confidence.md"
    prose, heading, _ = page.read_text().partition(_HEADING)
    parts = [prose, heading, fill(about, 120), _sets_table(sets)]
    parts += ["![Expected and true Dice](images/confidence.png)", fill(alone, 120)]
    for name, found in sets.items():
        parts += [f"**{name}**", _signals_table(found)]
    page.write_text("\n\n".join(part.strip() for part in parts) + "\n")


def _sets_table(sets: dict[str, Any]) -> str:
    head = ["set", "images", "Dice", "mean error", "rank correlation", "in the range", "of those not unlike"]
    head.append(f"Dice below {BAD:g}, found in {LOOKED_AT:.0%}")
    rows = [
        [
            name,
            str(found["images"]),
            f"{found['dice']:.3f}",
            f"{found['mean_error']:.3f}",
            f"{found['spearman']['expected Dice']:.2f}",
            f"{found['inside']:.0%}",
            "" if found["inside_like"] is None else f"{found['inside_like']:.0%} of {found['like']}",
            f"{found['found']['expected Dice']} of {found['bad']}",
        ]
        for name, found in sets.items()
    ]
    return table(head, rows)


def _signals_table(found: dict[str, Any]) -> str:
    rows = [
        [name, f"{found['spearman'][name]:.2f}", f"{found['aurc'][name]:.4f}", str(found["found"][name])]
        for name in ("expected Dice", *SIGNALS)
    ]
    rows.append(["true Dice", "1", f"{found['aurc']['true Dice']:.4f}", str(min(found["bad"], found["looked_at"]))])
    return table(["told by", "rank correlation", "AURC", f"found of {found['bad']}"], rows)


def _plot(points: dict[str, list[list[float]]]) -> None:
    figure = Figure(figsize=(4 * len(points), 4), layout="constrained")
    panels = figure.subplots(1, len(points), squeeze=False)[0]
    for axes, (name, of_set) in zip(panels, points.items(), strict=True):
        expected, true, unlike = np.array(of_set, float).T
        for mark, colour, label in ((0, "#4477aa", "like training"), (1, "#ee6677", "unlike")):
            chosen = unlike == mark
            axes.scatter(expected[chosen], true[chosen], s=12, color=colour, label=label, alpha=0.7)
        low = max(min(expected.min(), true.min()) - 0.02, 0)
        axes.plot([low, 1], [low, 1], color="#999999", linewidth=1)
        axes.set(xlabel="expected Dice", ylabel="true Dice", title=name, xlim=(low, 1), ylim=(low, 1))
        axes.legend(loc="lower right", frameon=False)
    figure.savefig(PLOTS / "confidence.png", dpi=110)


if __name__ == "__main__":
    main()
