"""A trained model over a set of images with masks: figures for each, with their intervals, and pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from rich.table import Table

from lungseg_ray import report
from lungseg_ray.cluster.chunks import map_chunks
from lungseg_ray.config import CorpusSettings, Device, EvaluateJob, EvaluateSettings, Settings, merge, non_default
from lungseg_ray.corpus import STUDY_KEY, Listing, Record, SetAside, assign_splits, list_corpus, read_sample
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.numerics import metrics
from lungseg_ray.numerics.labels import IGNORE_LABEL
from lungseg_ray.predictor import Model
from lungseg_ray.progress import ticks
from lungseg_ray.run.folder import EVALUATION
from lungseg_ray.shards.format import Shard, ShardRow, read_index, read_rows
from lungseg_ray.storage import Location, locate

FIGURES = ("dice", "iou", "hd95", "assd")
PER_IMAGE = "per_image.csv"
RESULT = "evaluation.json"
SHEET = "contact_sheet.png"
SHOWN = 4
"""Images on each row of the contact sheet: the worst, those around the median, the best."""


class Images(Protocol):
    """Images with masks, by number."""

    def __len__(self) -> int:
        """How many."""

    def name(self, number: int) -> tuple[str, str]:
        """Id and place of one of them."""

    def read(self, number: int) -> ShardRow:
        """One of them.

        Raises:
            BadFileError: if it cannot be used.
        """


@dataclass(frozen=True)
class ShardImages:
    """The rows of some shards."""

    root: Location
    rows: list[tuple[str, int]]

    def __len__(self) -> int:
        """How many."""
        return len(self.rows)

    def name(self, number: int) -> tuple[str, str]:
        """Id and place of one of them."""
        file, row = self.rows[number]
        return f"{file}:{row}", str(self.root / file)

    def read(self, number: int) -> ShardRow:
        """One of them."""
        file, row = self.rows[number]
        return read_rows(self.root / file, [row])[0]

    @classmethod
    def of(cls, root: Location, shards: Iterable[Shard]) -> ShardImages:
        """All rows of these files that count."""
        return cls(root, [(shard.file, row) for shard in shards for row in shard.usable])


@dataclass(frozen=True)
class CorpusImages:
    """The records of a corpus, read as sharding reads them."""

    records: list[Record]
    corpus: CorpusSettings
    longer_side: int

    def __len__(self) -> int:
        """How many."""
        return len(self.records)

    def name(self, number: int) -> tuple[str, str]:
        """Id and place of one of them."""
        return self.records[number].image_id, self.records[number].shown

    def read(self, number: int) -> ShardRow:
        """One of them."""
        record = self.records[number]
        sample = read_sample(record, self.corpus, longer_side=self.longer_side)
        return ShardRow(record.image_id, record.patient_id, dict(record.groups), sample)


@dataclass(frozen=True)
class _Measure:
    """Measures a chunk of images."""

    model: Model
    images: Images
    settings: EvaluateSettings

    def __call__(self, chunk: int, device: str) -> list[dict[str, Any]]:
        model = self.model.load(device=device)
        first = chunk * self.settings.batch
        good: dict[int, ShardRow] = {}
        found: list[dict[str, Any]] = []
        for number in range(first, min(first + self.settings.batch, len(self.images))):
            try:
                good[number] = self.images.read(number)
            except BadFileError as error:
                image_id, uri = self.images.name(number)
                found.append({"bad": vars(SetAside(image_id, uri, error.reason, error.detail)), "number": number})
        maps = model([row.sample.image for row in good.values()]) if good else []
        for (number, row), probability in zip(good.items(), maps, strict=True):
            labels = model.labels(probability, threshold=self.settings.threshold)
            figures = measure(row, labels, model.sidecar.class_names, clean_up=self.settings.clean_up)
            found.append({**figures, "bad": None, "sha256": row.sample.image_sha256, "number": number})
        return found


def measure(
    row: ShardRow, prediction: npt.NDArray[np.uint8], class_names: Sequence[str], *, clean_up: bool
) -> dict[str, Any]:
    """The figures of one image, on the grid of its decoded pixels.

    Args:
        row: with the true mask (H, W).
        prediction: (H, W) uint8 labels.
        class_names: of the labels from 1 on.
        clean_up: also measure what is left of each label after `metrics.clean_up`.

    Returns:
        Columns of the per-image table: `dice`, `iou`, `hd95`, `assd` (means over the classes; distances in pixels of
        the source, and in mm as `hd95_mm`, `assd_mm` where its spacing is known), the same for each class where there
        are several, `empty` (classes with one side empty), and the pixel counts. Cleaned ones start with `clean_`.
    """
    sample = row.sample
    height, width = sample.mask.shape
    scale = (sample.source_height / height, sample.source_width / width)
    columns: dict[str, Any] = {
        **row.groups,
        "image_id": row.image_id,
        "patient_id": row.patient_id,
        "height": sample.source_height,
        "width": sample.source_width,
    }
    valid = sample.mask != IGNORE_LABEL
    versions = {"": prediction}
    if clean_up:
        versions["clean_"] = metrics.clean_up_labels(prediction, classes=len(class_names))
    for prefix, labels in versions.items():
        columns |= {
            f"{prefix}{key}": value
            for key, value in _compare(labels, sample.mask, valid, class_names, scale, sample.spacing).items()
        }
    return columns


def _compare(
    prediction: npt.NDArray[np.uint8],
    truth: npt.NDArray[np.uint8],
    valid: npt.NDArray[np.bool_],
    class_names: Sequence[str],
    scale: tuple[float, float],
    spacing: tuple[float, float] | None,
) -> dict[str, Any]:
    counts = metrics.confusion_counts(
        torch.from_numpy(prediction)[None], torch.from_numpy(truth)[None], classes=max(len(class_names) + 1, 2)
    )
    by_class: list[dict[str, float]] = []
    empty = 0
    for label, _ in enumerate(class_names, start=1):
        pair = (prediction == label) & valid, (truth == label) & valid
        found = metrics.surface_distances(*pair, spacing=scale)
        figures = {
            "dice": float(metrics.dice(counts)[0, label - 1]),
            "iou": float(metrics.iou(counts)[0, label - 1]),
            "hd95": found.hd95,
            "assd": found.assd,
        }
        if spacing:
            pixel = (scale[0] * spacing[0], scale[1] * spacing[1])
            found = metrics.surface_distances(*pair, spacing=pixel)
            figures |= {"hd95_mm": found.hd95, "assd_mm": found.assd}
        empty += found.empty
        by_class.append(figures)
    columns: dict[str, Any] = {
        key: float(np.mean([figures[key] for figures in by_class])) for key in (by_class[0] if by_class else ())
    }
    columns["empty"] = empty
    several = len(class_names) > 1
    for label, (name, figures) in enumerate(zip(class_names, by_class, strict=True)):
        if several:
            columns |= {f"{key}_{name}": value for key, value in figures.items()}
        suffix = f"_{name}" if several else ""
        columns |= {f"{key}{suffix}": int(getattr(counts, key)[0, label]) for key in ("tp", "fp", "fn")}
    if several:
        both = valid & (prediction == 0)
        columns["tp_background"] = int((both & (truth == 0)).sum())
        columns["fp_background"] = int((both & (truth != 0)).sum())
        columns["fn_background"] = int((valid & (truth == 0) & (prediction != 0)).sum())
    return columns


def summarise(rows: Sequence[dict[str, Any]], class_names: Sequence[str], settings: EvaluateSettings) -> dict[str, Any]:
    """Means with their 95 % bootstrap intervals over patients, for all images and for each subgroup.

    Returns:
        `n`, `n_empty` (images in which truth or prediction, but not both, is empty), `patients`, and for each figure
        `mean`, `low`, `high`; `iou_pooled`, over the pixels of all images together; `classes` where there are several,
        with the background's `iou_pooled` and the mean of all as `iou_pooled_with_background`; `clean_up`, the same
        after cleaning; `groups`, the same for each value of each subgroup.
    """
    result = _figures(rows, class_names, settings, "")
    if settings.clean_up:
        result["clean_up"] = _figures(rows, class_names, settings, "clean_")
    result["groups"] = {
        column: {
            value: _figures([row for row in rows if row.get(column) == value], class_names, settings, "")
            for value in values
        }
        for column, values in _subgroups(rows, settings).items()
    }
    return result


def _figures(
    rows: Sequence[dict[str, Any]], class_names: Sequence[str], settings: EvaluateSettings, prefix: str
) -> dict[str, Any]:
    patients = [row["patient_id"] for row in rows]

    def interval(key: str) -> dict[str, float]:
        values = [row[prefix + key] for row in rows]
        return metrics.bootstrap_interval(values, patients, resamples=settings.resamples)._asdict()

    def pooled(suffix: str) -> float:
        tp, fp, fn = (sum(row[f"{prefix}{key}{suffix}"] for row in rows) for key in ("tp", "fp", "fn"))
        return tp / (tp + fp + fn) if tp + fp + fn else 1.0

    known = [key for key in (*FIGURES, "hd95_mm", "assd_mm") if all(prefix + key in row for row in rows)]
    result: dict[str, Any] = {
        "n": len(rows),
        "n_empty": sum(row[f"{prefix}empty"] > 0 for row in rows),
        "patients": len(set(patients)),
        **{key: interval(key) for key in known},
    }
    if len(class_names) == 1:
        return {**result, "iou_pooled": pooled("")}
    shares = {name: pooled(f"_{name}") for name in ("background", *class_names)}
    result["iou_pooled"] = float(np.mean([shares[name] for name in class_names]))
    result["iou_pooled_with_background"] = float(np.mean(list(shares.values())))
    result["classes"] = {
        name: {**{key: interval(f"{key}_{name}") for key in known}, "iou_pooled": shares[name]} for name in class_names
    } | {"background": {"iou_pooled": shares["background"]}}
    return result


def _subgroups(rows: Sequence[dict[str, Any]], settings: EvaluateSettings) -> dict[str, list[str]]:
    texts = {key for row in rows for key, value in row.items() if isinstance(value, str)}
    columns = sorted(texts - {"image_id", "patient_id", STUDY_KEY, "sha256"})
    values = {key: sorted({row[key] for row in rows if row.get(key)}) for key in columns}
    if settings.subgroups is None:
        return {key: found for key, found in values.items() if 2 <= len(found) <= 12}
    missing = [key for key in settings.subgroups if key not in values]
    if missing:
        raise UserError(f"evaluate.subgroups: the corpus has no column {missing}; it has {sorted(values)}.")
    return {key: values[key] for key in settings.subgroups}


def evaluate(
    model: Model,
    images: Images,
    out: Location,
    settings: EvaluateSettings,
    *,
    device: Device = "auto",
    listing: Listing | None = None,
) -> dict[str, Any]:
    """Measures a model on images and writes tables and pictures. Needs a running Ray cluster.

    The figures do not depend on the number of processes: the images of a forward pass are fixed by their order.

    Args:
        model: what to measure.
        images: what to measure on.
        out: folder for `per_image.csv`, `evaluation.json` and `contact_sheet.png`.
        settings: of the evaluation.
        device: to compute on.
        listing: of the corpus that the images are from, where they are not from shards.

    Returns:
        The content of `evaluation.json`: that of `summarise`; `members`, the runs whose models made it, and `flips`;
        `set_aside`; and, of a corpus, its `layout` and how many images are `unlabelled`.

    Raises:
        UserError: if there is no image that can be used.
    """
    class_names = model.load().sidecar.class_names
    if not len(images):
        raise UserError(f"{out}: there are no images to evaluate. Choose another --split or another --corpus.root.")
    work = _Measure(model, images, settings)
    count = -(-len(images) // settings.batch)
    done = map_chunks(work, count, workers=settings.workers, device=device)
    found = sorted(ticks(done, total=len(images), description="Evaluating"), key=lambda row: row["number"])
    rows: list[dict[str, Any]] = []
    bad = [vars(one) for one in listing.set_aside] if listing else []
    seen: dict[str, str] = {}
    for row in found:
        if row["bad"]:
            bad.append(row["bad"])
        elif (twin := seen.setdefault(row["sha256"], row["image_id"])) != row["image_id"]:
            uri = images.name(row["number"])[1]
            bad.append(vars(SetAside(row["image_id"], uri, "duplicate", f"same bytes as {twin}")))
        else:
            rows.append(row)
    if not rows:
        raise UserError(f"None of {len(images)} images can be used; the first: {bad[0]['uri']}: {bad[0]['detail']}.")
    result = {
        **summarise(rows, class_names, settings),
        "members": [str(run.place) for run in model.runs],
        "flips": model.flips,
        "set_aside": bad,
    }
    if listing:
        result |= {"layout": listing.recognised, "unlabelled": len(listing.unlabelled)}
    (out / PER_IMAGE).write_text(_to_csv(rows))
    (out / SHEET).write_bytes(_sheet(model, images, rows, settings))
    (out / RESULT).write_text(json.dumps(result, indent=2) + "\n")
    return result


def evaluate_run(job: EvaluateJob) -> tuple[dict[str, Any], Location]:
    """Measures the model of a run, or of a sweep's best, on its own shards or another corpus. Needs a Ray cluster.

    Returns:
        The content of `evaluation.json`, and the folder it lies in.

    Raises:
        UserError: if the run is not there or has no best model yet, or if there is nothing to measure on.
    """
    model = Model.of(job)
    # All trials of a sweep train on the same shards.
    kept = model.runs[0].kept()
    listing: Listing | None = None
    if job.corpus is None:
        root = locate(job.shards or kept.settings.shards.root)
        index = read_index(root)
        if index.fingerprint != kept.shards:
            raise UserError(
                f"{root}: these are other shards than those that {job.run} was trained on, and their test images may "
                "have been trained on. Restore them, or evaluate another corpus with --corpus.root."
            )
        name: str = job.split or "test"
        images: Images = ShardImages.of(root, index.shards if name == "all" else index.of(name))  # type: ignore[arg-type]
    else:
        images, listing = _corpus_images(kept.settings, job.corpus, job.split)
        name = "-".join([locate(job.corpus.root).stem, *([job.split] if job.split else [])])
        name = f"corpus-{name}"
    out = locate(job.out) if job.out else locate(job.run) / EVALUATION / f"{name}{model.suffix}"
    result = evaluate(model, images, out, job.evaluate, device=job.device, listing=listing)
    return result, out


def table(result: dict[str, Any]) -> Table:
    """The figures of `evaluation.json` as a table for the terminal."""
    known = [key for key in (*FIGURES, "hd95_mm", "assd_mm") if key in result]
    drawn = Table("images", "n", *known, "IoU pooled", title="Mean over images (95 % interval over patients)")

    def add(name: str, figures: dict[str, Any]) -> None:
        cells = [f"{figures[key]['mean']:.4g} ({figures[key]['low']:.4g}-{figures[key]['high']:.4g})" for key in known]
        drawn.add_row(name, str(figures.get("n", "")), *cells, f"{figures['iou_pooled']:.4f}")

    add("all", result)
    for name, figures in result.get("classes", {}).items():
        if name != "background":
            add(f"  {name}", figures)
    notes = [f"Layout {result['layout']}"] if "layout" in result else []
    if result.get("unlabelled"):
        notes.append(f"{result['unlabelled']} images unlabelled")
    if result["set_aside"]:
        notes.append(f"{len(result['set_aside'])} files set aside, listed in {RESULT}")
    drawn.caption = "; ".join(notes) or None
    if "clean_up" in result:
        add("all, cleaned up", result["clean_up"])
    for column, values in result["groups"].items():
        for value, figures in values.items():
            add(f"{column} = {value}", figures)
    return drawn


def _corpus_images(trained: Settings, asked: CorpusSettings, split: str | None) -> tuple[CorpusImages, Listing]:
    """The images of another corpus; what the command does not say of it is as it was in training, but how it lies."""
    own = {"layout": asked.layout, "outside": asked.outside, "mask_scale": asked.mask_scale}
    try:
        corpus = CorpusSettings.model_validate(merge(trained.corpus.model_dump(), non_default(asked) | own))
    except ValidationError as error:
        raise UserError(f"The corpus does not fit the model: {error.errors()[0]['msg']}.") from None
    if (corpus.channels, corpus.classes) != (trained.corpus.channels, trained.corpus.classes):
        raise UserError(
            f"The model was trained with {trained.corpus.channels} channel(s) and {trained.corpus.classes} class(es); "
            f"corpus.channels = {corpus.channels} and corpus.classes = {corpus.classes} do not fit it."
        )
    listing = list_corpus(corpus)
    records = listing.records
    if split not in (None, "all"):
        records = [record for record in assign_splits(records, corpus.split) if record.split == split]
    return CorpusImages(records, corpus, trained.shards.longer_side), listing


def _sheet(model: Model, images: Images, rows: list[dict[str, Any]], settings: EvaluateSettings) -> bytes:
    """The contact sheet; its few images are predicted again, so that no pixels travel."""
    order = sorted(rows, key=lambda row: (row["dice"], row["image_id"]))
    count = min(SHOWN, len(order))
    middle = max((len(order) - count) // 2, 0)
    use = model.load()
    panels = {}
    for title, few in {
        "worst": order[:count],
        "median": order[middle : middle + count],
        "best": order[::-1][:count],
    }.items():
        samples = [images.read(row["number"]).sample for row in few]
        panels[title] = [
            report.Panel(
                title=f"{row['image_id']}\nDice {row['dice']:.3f}  HD95 {row['hd95']:.0f} px",
                image=sample.image,
                truth=sample.mask,
                prediction=use.labels(use([sample.image])[0], threshold=settings.threshold),
            )
            for row, sample in zip(few, samples, strict=True)
        ]
    return report.contact_sheet(panels, use.sidecar.class_names)


def _to_csv(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in ("number", "sha256", "bad")))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
