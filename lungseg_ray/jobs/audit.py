"""The job that audits a corpus: it lists the corpus, reads each image once, compares them, and reports the findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from lungseg_ray.audit import outliers
from lungseg_ray.audit.drift import Drift, Figures, compared_figures, figures, figures_of_sample, find_shifts
from lungseg_ray.audit.duplicates import find_duplicates
from lungseg_ray.audit.facts import ImageFacts, image_facts, read_for_audit
from lungseg_ray.audit.findings import list_findings
from lungseg_ray.audit.result import TABLE, Audit, write_table
from lungseg_ray.cluster.chunks import OneStage, map_chunks
from lungseg_ray.cluster.places import check_lasting
from lungseg_ray.cluster.session import cluster
from lungseg_ray.config import CorpusSettings, Settings, ShardJob, SplitSettings
from lungseg_ray.corpus.layouts import list_corpus
from lungseg_ray.corpus.record import SPLITS, Record, SetAside, Split
from lungseg_ray.corpus.split import assign_splits, prescribed
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.evaluation.images import ShardImages
from lungseg_ray.imaging import fit_to, overlay
from lungseg_ray.jobs import mask_audit
from lungseg_ray.numerics.sampling import evenly_spaced
from lungseg_ray.page.render import write_audit_page
from lungseg_ray.progress import ticks
from lungseg_ray.shards.index import ShardIndex, read_index
from lungseg_ray.storage import Location
from lungseg_ray.text import counted

_NO_SPLIT = "no split"
_CHUNK = 8
"""The number of images that one data task reads."""
_COMPARED = 2000
"""The largest number of training images that a corpus is compared with, at equal distances in the shards."""
_EXAMPLES, _EXAMPLE_SIDE = 3, 256
"""The number of training images that are shown, and their longer side, pixels."""


@dataclass(frozen=True)
class _ReadFacts(OneStage):
    """Computes the facts of images, or the reason why an image cannot be used."""

    records: Sequence[Record]
    corpus: CorpusSettings
    longer_side: int

    def run(self, chunk: int) -> list[ImageFacts | SetAside]:
        """Reads and measures the images of a chunk."""
        found: list[ImageFacts | SetAside] = []
        for record in self.records[chunk * _CHUNK : (chunk + 1) * _CHUNK]:
            try:
                sample = read_for_audit(record, self.corpus, longer_side=self.longer_side)
                found.append(image_facts(record, sample, self.corpus.class_names))
            except BadFileError as error:
                found.append(SetAside(record.image_id, record.shown, error.reason, error.detail))
        return found


@dataclass(frozen=True, slots=True)
class TrainingFigures:
    """The figures of a training image."""

    figures: Figures


@dataclass(frozen=True)
class _ReadFigures(OneStage):
    """Computes the figures of training images."""

    images: ShardImages
    class_names: Sequence[str]

    def run(self, chunk: int) -> list[TrainingFigures]:
        """Reads and measures the images of a chunk."""
        numbers = range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, len(self.images)))
        samples = (self.images.read(number).sample for number in numbers)
        return [TrainingFigures(figures_of_sample(sample, self.class_names)) for sample in samples]


def main(job: ShardJob, console: Console) -> None:
    """Audits the corpus, and prints a summary.

    Args:
        job: The settings of the job.
        console: The console that the user reads.

    Raises:
        UserError: As `audit`, or if no Ray cluster answers.
        OSError: As `audit`.
    """
    if job.run:
        mask_audit.main(job.run, console)
        return
    with cluster(processes=1):
        console.print(audit_summary(*audit(job, against=job.against)), soft_wrap=False)


def audit(settings: Settings, *, against: Location | None = None) -> tuple[Audit, Location]:
    """Reads every image of a corpus, and writes a page and a table with the findings. Needs a running Ray cluster.

    The page `audit.html` and the table `audit.csv` are written to the folder of the shards.

    Args:
        settings: The settings of the job, of which those of the corpus and the shards are used.
        against: The folder of other shards, with whose training images the corpus is compared; its images are then
            decoded as those were.

    Returns:
        The result of the audit, and the location of the page.

    Raises:
        UserError: If the folder would be lost with the job, if the corpus cannot be listed or is empty, or if no image
            of it can be read.
        OSError: If a file cannot be written, or the storage cannot be used.
    """
    root = settings.shards.root
    check_lasting(root)
    if against:
        settings = _as_trained(settings, read_index(against))
    listing = list_corpus(settings.corpus, settings.outputs)
    settings = settings.model_copy(update={"corpus": listing.corpus})
    records, split_conflicts, unsplit_reason = assign_possible_splits(listing.records, settings.corpus.split)
    records = sorted([*records, *listing.unlabelled], key=lambda record: record.image_id)
    if not records:
        raise UserError(f"{settings.corpus.root}: there are no images in this corpus. Correct corpus.root.")
    work = _ReadFacts(records, settings.corpus, settings.shards.longer_side)
    kind: type[ImageFacts | SetAside] = ImageFacts | SetAside  # type: ignore[assignment]
    done = map_chunks(work, -(-len(records) // _CHUNK), kind, device="cpu")
    images: list[ImageFacts] = []
    bad = list(listing.set_aside)
    for row in ticks(done, total=len(records), description="Reading images"):
        if isinstance(row, SetAside):
            bad.append(row)
        else:
            images.append(row)
    if not images:
        raise UserError(f"None of {len(records)} images can be read; the first: {bad[0].uri}: {bad[0].detail}.")
    images.sort(key=lambda one: one.image_id)
    drift = _drift(against, images) if against else None
    found = Audit(
        corpus=settings.corpus,
        longer_side=settings.shards.longer_side,
        layout=listing.recognised,
        records={record.image_id: record for record in records},
        images=images,
        set_aside=sorted(bad, key=lambda one: (one.reason, one.image_id)),
        ignored=listing.ignored,
        split_conflicts=split_conflicts,
        unsplit_reason=unsplit_reason,
        # Of two images with the same bytes, the shards keep the one that comes first in this order.
        duplicates=find_duplicates(sorted(images, key=lambda one: ((*SPLITS, None).index(one.split), one.image_id))),
        outliers=outliers.find_outliers(images, settings.corpus.class_names),
        drift=drift,
    )
    root.make_dir()
    write_table(found, root / TABLE)
    return found, write_audit_page(found, root)


def _as_trained(settings: Settings, index: ShardIndex) -> Settings:
    """Returns settings by which images are decoded as those of some shards, and as a model of them predicts."""
    corpus = settings.corpus.model_copy(update={"white": index.corpus.white, "channels": index.corpus.channels})
    shards = settings.shards.model_copy(update={"longer_side": index.longer_side})
    return settings.model_copy(update={"corpus": corpus, "shards": shards})


def _drift(shards: Location, images: Sequence[ImageFacts]) -> Drift:
    """Compares images with some of the training images of shards."""
    index = read_index(shards)
    rows = ShardImages.of(shards, index.of("train"))
    if not len(rows):
        raise UserError(f"{shards}: there are no training images to compare with (--against).")
    chosen = ShardImages(shards, [rows.rows[number] for number in evenly_spaced(len(rows), _COMPARED)])
    work = _ReadFigures(chosen, index.corpus.class_names)
    done = map_chunks(work, -(-len(chosen) // _CHUNK), TrainingFigures, device="cpu")
    before = [one.figures for one in ticks(done, total=len(chosen), description="Reading training images")]
    examples = []
    for number in evenly_spaced(len(chosen), _EXAMPLES):
        sample = chosen.read(number).sample
        nothing = np.zeros_like(sample.mask)
        examples.append(fit_to(overlay(sample.image, nothing, sample.mask), _EXAMPLE_SIDE))
    now = [figures(one) for one in images]
    return Drift(str(shards), len(before), len(compared_figures(before, now)), find_shifts(before, now), examples)


def assign_possible_splits(
    records: Sequence[Record], settings: SplitSettings
) -> tuple[list[Record], dict[str, list[Split]], str]:
    """Assigns patients to splits where that is possible.

    Args:
        records: The labelled records of the corpus.
        settings: The shares of patients for val and test, and the seed.

    Returns:
        The records with their splits; the patients that the corpus assigns to several splits, each with these splits;
        and the reason why the other patients could not be assigned, empty if they were. The records of the patients
        with several splits keep the splits that the corpus prescribes.
    """
    split_conflicts = {patient: splits for patient, splits in sorted(prescribed(records).items()) if len(splits) > 1}
    whole = [record for record in records if record.patient_id not in split_conflicts]
    try:
        assigned, unsplit_reason = assign_splits(whole, settings), ""
    except UserError as error:
        assigned, unsplit_reason = whole, str(error)
    return (
        [*assigned, *(record for record in records if record.patient_id in split_conflicts)],
        split_conflicts,
        unsplit_reason,
    )


def audit_summary(audit: Audit, page: Location) -> Group:
    """Returns a summary of an audit for the terminal: the size of the corpus, the findings, and the page.

    Args:
        audit: The result of the audit.
        page: The location of the page.
    """
    counts = Counter(one.split or _NO_SPLIT for one in audit.labelled)
    shares = "".join(f", {counts[split]} in {split}" for split in (*SPLITS, _NO_SPLIT) if counts[split])
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for finding in list_findings(audit):
        table.add_row(finding.weight, finding.text)
    if not table.row_count:
        table.add_row("Nothing stands out.")
    return Group(
        f"{counted(len(audit.images), 'image')} of {counted(audit.patients, 'patient')}, layout {audit.layout}{shares}",
        table,
        Text(f"Page: {page}", no_wrap=True, overflow="ignore"),
    )
