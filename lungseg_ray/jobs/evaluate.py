"""The job that measures a trained model on the images of its shards, or on another corpus."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from lungseg_ray.cluster.session import cluster
from lungseg_ray.config import CorpusSettings, EvaluateJob, Mark, Roots, Settings, explicitly_set, marked, merge
from lungseg_ray.corpus.layouts import Listing, list_corpus
from lungseg_ray.corpus.layouts.table import is_table
from lungseg_ray.corpus.split import assign_splits
from lungseg_ray.errors import UserError
from lungseg_ray.evaluation.evaluate import evaluate
from lungseg_ray.evaluation.images import CorpusImages, Images, ShardImages
from lungseg_ray.evaluation.regions import describe_outlines
from lungseg_ray.evaluation.summary import RESULT, figures_table
from lungseg_ray.jobs.console import print_table
from lungseg_ray.jobs.members import model_of
from lungseg_ray.run.folder import EVALUATION
from lungseg_ray.run.stored import read_stored
from lungseg_ray.run.summary import Evaluation
from lungseg_ray.shards.index import read_index
from lungseg_ray.storage import Location
from lungseg_ray.text import named


def main(job: EvaluateJob, console: Console) -> None:
    """Evaluates a model, and prints the figures.

    Args:
        job: The settings of the job.
        console: The console that the user reads.

    Raises:
        UserError: As `evaluate_run`, or if no Ray cluster answers.
        OSError: As `evaluate_run`.
    """
    with cluster(processes=job.evaluate.workers):
        if job.corpora:
            cross(job, console)
            return
        result, out = evaluate_run(job)
        print_table(console, figures_table(result), figures_table(result, narrow=True))
        console.print(f"Figures and pictures: {out}", highlight=False)


def cross(job: EvaluateJob, console: Console) -> list[dict[str, Any]]:
    """Measures each run on its own test images and on several corpora, prints the table, and says what differs.

    Args:
        job: The settings of the job.
        console: The console that the user reads.

    Returns:
        The content of `corpora.json`: for each run its folder (`run`), the figures by the name of the corpus
        (`corpora`), and sentences on the rules by which the corpora outline (`outlines`).

    Raises:
        UserError: As `evaluate_run`, or if two corpora have the same name.
        OSError: As `evaluate_run`.
    """
    names = [_name_of(corpus) for corpus in job.corpora]
    if same := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f"corpora: several are called {named(same)}, and the folders of their figures have that name. Measure them "
            "one after the other, each with an --out of its own."
        )
    alone = [
        job.model_copy(update={"run": run, "corpora": [], "others": [], "out": None}) for run in [job.run, *job.others]
    ]
    for one in alone:
        model_of(one).load()
    rows: list[dict[str, Any]] = []
    for one in alone:
        measured: dict[str, Evaluation] = {}
        if _has_test_images(one):
            measured[_OWN] = evaluate_run(one)[0]
        for name, corpus in zip(names, job.corpora, strict=True):
            measured[name] = evaluate_run(one.model_copy(update={"corpus": corpus}))[0]
        own = measured.get(_OWN)
        outlines = [text for name in names if own for text in describe_outlines(own, measured[name], name)]
        rows.append({"run": str(one.run), "corpora": measured, "outlines": outlines})
    table, narrow = Table("run", _OWN, *names, title=_TITLE), Table("run", "images", "Dice", title=_TITLE)
    for row in rows:
        cells = [_cell(row["corpora"].get(name)) for name in (_OWN, *names)]
        table.add_row(row["run"], *cells)
        for name, cell in zip((_OWN, *names), cells, strict=True):
            narrow.add_row(row["run"] if name == _OWN else "", name, cell)
    print_table(console, table, narrow)
    for row in rows:
        for text in row["outlines"] or [_ALIKE if _OWN in row["corpora"] else _NOT_COMPARED]:
            console.print(f"{row['run']}: {text}", highlight=False)
    out = (job.out or job.run / EVALUATION) / "corpora.json"
    out.write_text(json.dumps(rows, indent=2) + "\n")
    console.print(f"Figures: {out}", highlight=False)
    return rows


_OWN = "own test images"
_ALIKE = "The masks of all corpora follow the same rules, as far as these images show."
_NOT_COMPARED = "There are no own test images, with which the masks of the corpora could be compared."
_TITLE = "Dice, mean over images (95 % interval over patients)"


def _has_test_images(job: EvaluateJob) -> bool:
    return read_index(model_of(job).runs[0].started_with().settings.shards.root).count("test") > 0


def _cell(result: Evaluation | None) -> str:
    if result is None:
        return "none"
    dice = result["dice"]
    return f"{dice['mean']:.4f} ({dice['low']:.4f}-{dice['high']:.4f}), {result['n']} images"


def evaluate_run(job: EvaluateJob) -> tuple[Evaluation, Location]:
    """Measures the model of a run, or the best models of a sweep, on its own shards or on another corpus.

    Needs a running Ray cluster.

    Args:
        job: The settings of the job.

    Returns:
        The content of `evaluation.json`, and the folder that contains it.

    Raises:
        UserError: If the run does not exist or has no best model yet, if the shards are not those of the training, if
            the corpus does not fit the model, or if no image can be used.
        OSError: If a file cannot be read or written.
    """
    model = model_of(job)
    # All trials of a sweep train on the same shards, so those of the first run are those of all.
    kept = model.runs[0].started_with()
    listing: Listing | None = None
    if job.corpus is None:
        root = job.shards or kept.settings.shards.root
        index = read_index(root)
        if index.fingerprint != kept.shards:
            raise UserError(
                f"{root}: these are other shards than those that {job.run} was trained on, and their test images may "
                "have been trained on. Restore them, or evaluate another corpus with --corpus.root."
            )
        name: str = job.split or "test"
        images: Images = ShardImages.of(root, index.shards if name == "all" else index.of(name))  # type: ignore[arg-type]
    else:
        images, listing = corpus_images(kept.settings, job.corpus, job.split)
        name = "-".join(["corpus", _name_of(images.corpus), *([job.split] if job.split else [])])
    out = job.out or job.run / EVALUATION / f"{name}{model.suffix}"
    if listing and not job.out:
        _refuse_other_corpus(out, str(listing.corpus.root))
    result = evaluate(model, images, out, job.evaluate, device=job.device, listing=listing)
    return result, out


def _name_of(corpus: CorpusSettings) -> str:
    roots = corpus.root if isinstance(corpus.root, Roots) else [corpus.root]
    # The name of a folder may have a point in it, as that of a table has before its suffix.
    return "+".join(
        (root.stem if is_table(root) else root.name) if isinstance(root, Location) else root for root in roots
    )


def _refuse_other_corpus(out: Location, corpus: str) -> None:
    """Raises a `UserError` if the folder has the figures of another corpus, whose name is the same."""
    before = read_stored(out / RESULT, TypeAdapter(dict[str, Any]))
    if before and before.get("corpus", corpus) != corpus:
        raise UserError(
            f"{out}: the figures of {before['corpus']} are there, of the same name. Measure this corpus alone, "
            "with another folder for its figures (--out)."
        )


def corpus_images(trained: Settings, asked: CorpusSettings, split: str | None) -> tuple[CorpusImages, Listing]:
    """Lists the images of another corpus.

    Settings of the corpus that the user has not set are those of the training, but for those with `Mark.OF_FILES`,
    which describe the files of a corpus: they have their default values if they are not set. So has `empty_masks`,
    unless the model was trained on images with nothing to mark.

    Args:
        trained: The settings of the run.
        asked: The settings of the corpus in the command.
        split: The split whose images are used; "all" or None for all images.

    Returns:
        The images, and the listing of the whole corpus.

    Raises:
        UserError: If the corpus does not fit the model, or if it cannot be listed.
    """
    of_model = trained.corpus.model_dump(exclude=set(marked(CorpusSettings, Mark.OF_FILES)))
    if trained.corpus.empty_masks != "keep":
        # Where a corpus says of some images that nothing is marked, these are kept as in sharding.
        del of_model["empty_masks"]
    try:
        corpus = CorpusSettings.model_validate(merge(of_model, explicitly_set(asked)))
    except ValidationError as error:
        raise UserError(f"The corpus does not fit the model: {error.errors()[0]['msg']}.") from None
    if (corpus.channels, corpus.classes) != (trained.corpus.channels, trained.corpus.classes):
        raise UserError(
            f"The model was trained with {trained.corpus.channels} channel(s) and {trained.corpus.classes} class(es); "
            f"corpus.channels = {corpus.channels} and corpus.classes = {corpus.classes} do not fit it."
        )
    listing = list_corpus(corpus, trained.outputs)
    records = listing.records
    if split not in (None, "all"):
        records = [record for record in assign_splits(records, corpus.split) if record.split == split]
    return CorpusImages(records, listing.corpus, trained.shards.longer_side), listing
