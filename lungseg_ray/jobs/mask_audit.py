"""The part of an audit that looks for wrong masks: those of shards beside the predictions of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from rich.console import Console

from lungseg_ray.cluster.session import cluster
from lungseg_ray.errors import UserError
from lungseg_ray.evaluation.mask_scores import ComparedMask, Judge, compare_masks
from lungseg_ray.imaging import Pixels
from lungseg_ray.inference.predictor import Model
from lungseg_ray.page.render import write_mask_page
from lungseg_ray.run.folder import Run
from lungseg_ray.shards.format import read_rows
from lungseg_ray.shards.index import Shard, ShardIndex, read_index
from lungseg_ray.shards.parts import Row, split_off
from lungseg_ray.storage import Location
from lungseg_ray.sweep.ledger import Sweep

TABLE = "masks.csv"
_SHOWN = 24
"""The number of masks that are shown as pictures."""
_NAMED = 5


def main(place: Location, console: Console) -> None:
    """Writes a page and a table of the masks of a run's shards, and prints the most suspicious ones.

    Args:
        place: The folder of a sweep over `feed.leave_out`, or of a run.
        console: The console that the user reads.

    Raises:
        UserError: As `audit_masks`, or if no Ray cluster answers.
        OSError: As `audit_masks`.
    """
    with cluster(processes=1):
        masks, page = audit_masks(place, note=console.print)
    unseen = sum(not one.seen for one in masks)
    console.print(f"{len(masks)} masks, {unseen} of them by models that were not trained on them", highlight=False)
    for one in masks[:_NAMED]:
        console.print(f"  {one.image_id}: Dice {one.dice:.3f}, the model believes {one.certain:.3f}", highlight=False)
    console.print(f"Page: {page}", highlight=False)


def audit_masks(place: Location, *, note: Callable[[str], None]) -> tuple[list[ComparedMask], Location]:
    """Compares the masks of a run's shards with predictions, of models that have not seen them where there are such.

    The page `masks.html` and the table `masks.csv` are written to the folder of the run or sweep.

    Args:
        place: The folder of a sweep over `feed.leave_out`, whose models each judge the part that was left out, or of a
            run, which judges the masks that it was trained on, too. All of them judge those of validation and test.
        note: Is called with a sentence if the sweep has not finished, so that some masks cannot be judged.

    Returns:
        The masks, the most suspicious first, and the page.

    Raises:
        UserError: If there is no finished model, or if the shards are not those of the training.
        OSError: If a file cannot be read or written.
    """
    runs = _runs(place, note)
    first = runs[0].started_with()
    root = first.settings.shards.root
    index = read_index(root)
    if index.fingerprint != first.shards:
        raise UserError(f"{root}: these are other shards than those that {place} was trained on.")
    judges = _judges(runs, root, index)
    masks = compare_masks(judges, root, device=first.settings.train.device)
    columns = ("image_id", "patient_id", "split", "dice", "certain", "seen")
    rows = ({**asdict(one), "suspicion": one.suspicion, "seen": int(one.seen)} for one in masks)
    (place / TABLE).write_csv(rows, [*columns[:3], "suspicion", *columns[3:]])
    shards = {shard.file: shard for shard in index.shards}
    pictures = [_picture(root, shards[one.file], one, judges[one.model].model) for one in masks[:_SHOWN]]
    return masks, write_mask_page(masks, pictures, place, title=f"Masks of {root}")


def _runs(place: Location, note: Callable[[str], None]) -> list[Run]:
    """Returns the finished runs of a sweep that leave a part out, or the run itself."""
    if not Sweep.is_one(place):
        return [Run(place)]
    sweep = Sweep(place)
    done = [sweep.run(trial) for trial in sweep.trials() if trial.state == "done"]
    runs = [run for run in done if run.started_with().settings.feed.leave_out]
    if not runs:
        raise UserError(
            f"{place}: no trial of this sweep leaves a part of the patients out. Search feed.leave_out with "
            '{"grid": ["0/4", "1/4", "2/4", "3/4"]}, all at full length.'
        )
    parts = {run.started_with().settings.feed.leave_out for run in runs}
    whole = {
        f"{number}/{count}" for count in {part.partition("/")[2] for part in parts} for number in range(int(count))
    }
    if missing := sorted(whole - parts):
        note(
            f"{place}: no trial of this sweep has finished without the training images of part {', '.join(missing)}: "
            "their masks are not compared. Run the sweep again to finish it."
        )
    return runs


def _judges(runs: list[Run], root: Location, index: ShardIndex) -> list[Judge]:
    others = [(shard, row) for shard in (*index.of("val"), *index.of("test")) for row in shard.usable]
    judges = []
    for run in runs:
        left_out: list[Row] = []
        seen: list[Row] = []
        if part := run.started_with().settings.feed.leave_out:
            _, left_out = split_off(root, index, part)
        else:
            seen = [(shard, row) for shard in index.of("train") for row in shard.usable]
        judges.append(Judge(Model((run,)), [*left_out, *others], seen))
    return judges


def _picture(root: Location, shard: Shard, one: ComparedMask, model: Model) -> tuple[Pixels, Pixels, Pixels]:
    """Returns an image, its mask, and the labels that a model predicts."""
    (row,) = read_rows(root, shard, [one.row])
    use = model.load()
    return row.sample.image, row.sample.mask, use.labels(use([row.sample.image])[0])
