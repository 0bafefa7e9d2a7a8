"""Plants wrong masks in a corpus, and measures how many of them an audit with models finds.

A copy of the corpus gets errors of five kinds in one of twenty of its masks; its shards, a sweep over
`configs/folds.yaml` and `jobs/shard.py --audit --run` are made as a user makes them. Run it from the folder of the
repository: python -m benchmarks.planted CORPUS
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.results import write_result
from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts import list_corpus
from lungseg_ray.corpus.read import read_sample

ROOT = Path(__file__).resolve().parent.parent
SHARE, SIDE = 0.05, 512
Mask = NDArray[np.uint8]


def shifted(mask: Mask, other: Mask) -> Mask:
    """Moves a mask to the right and down by a twelfth of the image."""
    high, wide = mask.shape
    moved = np.zeros_like(mask)
    moved[high // 12 :, wide // 12 :] = mask[: high - high // 12, : wide - wide // 12]
    return moved


def eroded(mask: Mask, other: Mask) -> Mask:
    """Takes a fortieth of the image's longer side off all around."""
    width = 2 * (max(mask.shape) // 40) + 1
    return cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))).astype(np.uint8)


def upside_down(mask: Mask, other: Mask) -> Mask:
    """Turns a mask upside down, as a tool that counts rows from the bottom does."""
    return mask[::-1].copy()


def of_another(mask: Mask, other: Mask) -> Mask:
    """Takes the mask of another patient."""
    return cv2.resize(other, mask.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8)


def without_a_lobe(mask: Mask, other: Mask) -> Mask:
    """Leaves out the lower third of the lung on the left."""
    found = mask.copy()
    left = found[:, : mask.shape[1] // 2]
    rows = np.flatnonzero(left.any(axis=1))
    left[rows[0] + 2 * (rows[-1] - rows[0]) // 3 :] = 0
    return found


KINDS: dict[str, Callable[[Mask, Mask], Mask]] = {
    "shifted": shifted,
    "eroded": eroded,
    "upside down": upside_down,
    "of another patient": of_another,
    "without a lobe": without_a_lobe,
}


def plant(corpus: str, out: Path, *, seed: int) -> dict[str, str]:
    """Writes a copy of a corpus with wrong masks.

    Args:
        corpus: The folder of the corpus.
        out: The folder of the copy.
        seed: Seed of the choice.

    Returns:
        The kind of the error by the name of each image that has one.
    """
    listing = list_corpus(CorpusSettings.model_validate({"root": corpus}))
    records = sorted(listing.records, key=lambda record: record.image_id)
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(records), round(SHARE * len(records)), replace=False).tolist()
    kinds = list(KINDS)
    planted = {}
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True)
    lines = ["stem,patient"]
    for number, record in enumerate(records):
        sample = read_sample(record, listing.corpus, longer_side=SIDE)
        name, mask = f"x{number:04d}", (sample.mask == 1).astype(np.uint8)
        if number in chosen:
            kind = kinds[chosen.index(number) % len(kinds)]
            stranger = records[(number + len(records) // 2) % len(records)]
            other = read_sample(stranger, listing.corpus, longer_side=SIDE).mask
            mask = KINDS[kind](mask, (other == 1).astype(np.uint8))
            planted[name] = kind
        cv2.imwrite(str(out / "images" / f"{name}.png"), sample.image)
        cv2.imwrite(str(out / "masks" / f"{name}.png"), mask * 255)
        lines.append(f"{name},{record.patient_id}")
    (out / "index.csv").write_text("\n".join(lines) + "\n")
    return planted


def run(*arguments: str) -> None:
    """Runs a command as a user does."""
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def main() -> None:
    """Plants, searches, counts, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="lungseg-planted-") as name:
        folder = Path(name)
        planted = plant(given.corpus, folder / "corpus", seed=given.seed)
        shards = ("--shards.root", str(folder / "shards"))
        run("jobs/shard.py", "--corpus.root", str(folder / "corpus"), *shards)
        run("jobs/tune.py", "--config", "configs/folds.yaml", *shards, "--runs.root", str(folder))
        run("jobs/shard.py", "--audit", "--run", str(folder / "folds"))
        with (folder / "folds" / "masks.csv").open() as file:
            rows = list(csv.DictReader(file))
    looked_at = [row["image_id"].rpartition("/")[2].removesuffix(".png") for row in rows]
    count = len(planted)
    found = [name for name in looked_at[:count] if name in planted]
    by_dice = [row["image_id"] for row in sorted(rows, key=lambda row: float(row["dice"]))][:count]
    alone = sum(name.rpartition("/")[2].removesuffix(".png") in planted for name in by_dice)
    table = Table("kind", "planted", f"among the first {count} of {len(rows)}")
    kinds = {}
    for kind in KINDS:
        names = [name for name, other in planted.items() if other == kind]
        kinds[kind] = {"planted": len(names), "found": sum(name in found for name in names)}
        table.add_row(kind, *map(str, kinds[kind].values()))
    console.print(table)
    console.print(f"Precision: {len(found) / count:.2f}; by the Dice alone {alone / count:.2f}")
    result = {"images": len(rows), "planted": count, "precision": len(found) / count, "by_dice": alone / count}
    write_result("planted", {**result, "kinds": kinds}, console)


if __name__ == "__main__":
    main()
