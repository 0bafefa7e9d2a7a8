"""The job that looks at a corpus: lists it, reads each image once, and compares them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from lungseg_ray.audit import outliers
from lungseg_ray.audit.duplicates import find_duplicates
from lungseg_ray.audit.facts import ImageFacts, image_facts, read_for_audit
from lungseg_ray.audit.findings import list_findings
from lungseg_ray.audit.result import TABLE, Audit, write_table
from lungseg_ray.cluster.chunks import map_chunks
from lungseg_ray.cluster.places import check_lasting
from lungseg_ray.cluster.session import cluster
from lungseg_ray.config import CorpusSettings, Settings, SplitSettings
from lungseg_ray.corpus import SPLITS, Record, SetAside, Split, assign_splits, list_corpus
from lungseg_ray.corpus.split import prescribed
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.page.render import write_audit_page
from lungseg_ray.progress import ticks
from lungseg_ray.storage import Location
from lungseg_ray.text import counted

_SIDES = (*SPLITS, None)
_CHUNK = 8
"""Images that one task reads."""


@dataclass(frozen=True)
class _Look:
    """Computes the facts of a chunk of images, or why an image cannot be used; runs in a data task."""

    records: Sequence[Record]
    corpus: CorpusSettings
    longer_side: int

    def __call__(self, chunk: int, _: str) -> list[ImageFacts | SetAside]:
        found: list[ImageFacts | SetAside] = []
        for record in self.records[chunk * _CHUNK : (chunk + 1) * _CHUNK]:
            try:
                sample = read_for_audit(record, self.corpus, longer_side=self.longer_side)
                found.append(image_facts(record, sample, self.corpus.class_names))
            except BadFileError as error:
                found.append(SetAside(record.image_id, record.shown, error.reason, error.detail))
        return found


def main(job: Settings, console: Console) -> None:
    """Looks at the corpus, and prints what is worth knowing of it."""
    with cluster(processes=1):
        console.print(audit_summary(*audit(job)), soft_wrap=False)


def audit(settings: Settings) -> tuple[Audit, Location]:
    """Reads every image of a corpus, finds what is worth knowing of it, and writes a page and a table of it.

    Needs a running Ray cluster. `audit.html` and `audit.csv` go where the shards would.

    Returns:
        What was found, and the page.

    Raises:
        UserError: if the corpus cannot be listed, or if no image of it can be read.
    """
    root = settings.shards.root
    check_lasting(root)
    listing = list_corpus(settings.corpus)
    records, split_conflicts, unsplit_reason = sides(listing.records, settings.corpus.split)
    records = sorted([*records, *listing.unlabelled], key=lambda record: record.image_id)
    if not records:
        raise UserError(f"{settings.corpus.root}: there are no images in this corpus. Correct corpus.root.")
    work = _Look(records, settings.corpus, settings.shards.longer_side)
    kind: type[ImageFacts | SetAside] = ImageFacts | SetAside  # type: ignore[assignment]
    done = map_chunks(work, -(-len(records) // _CHUNK), kind, device="cpu")
    images: list[ImageFacts] = []
    bad = list(listing.set_aside)
    for row in ticks(done, total=len(records), description="Looking"):
        if isinstance(row, SetAside):
            bad.append(row)
        else:
            images.append(row)
    if not images:
        raise UserError(f"None of {len(records)} images can be read; the first: {bad[0].uri}: {bad[0].detail}.")
    images.sort(key=lambda one: one.image_id)
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
        # Of two that are one, the shards keep that which comes first in their order.
        duplicates=find_duplicates(sorted(images, key=lambda one: (_SIDES.index(one.split), one.image_id))),
        outliers=outliers.find_outliers(images, settings.corpus.class_names),
    )
    root.make_dir()
    write_table(found, root / TABLE)
    return found, write_audit_page(found, root)


def sides(records: Sequence[Record], settings: SplitSettings) -> tuple[list[Record], dict[str, list[Split]], str]:
    """Deals patients to the sides of the split, as far as that goes.

    Returns:
        The records with their sides; the patients whom the corpus puts on several, whose images stay where it puts
        them; and why no side could be dealt, which is empty where it could.
    """
    split_conflicts = {patient: sides for patient, sides in sorted(prescribed(records).items()) if len(sides) > 1}
    whole = [record for record in records if record.patient_id not in split_conflicts]
    try:
        dealt, unsplit_reason = assign_splits(whole, settings), ""
    except UserError as error:
        dealt, unsplit_reason = whole, str(error)
    return (
        [*dealt, *(record for record in records if record.patient_id in split_conflicts)],
        split_conflicts,
        unsplit_reason,
    )


def audit_summary(audit: Audit, page: Location) -> Group:
    """What is worth knowing, for a terminal.

    Args:
        audit: what was found.
        page: where it is shown.
    """
    dealt = Counter(one.split or "no side" for one in audit.labelled)
    told = "".join(f", {dealt[side]} in {side}" for side in (*SPLITS, "no side") if dealt[side])
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for finding in list_findings(audit):
        table.add_row(finding.weight, finding.text)
    if not table.row_count:
        table.add_row("Nothing stands out.")
    return Group(
        f"{counted(len(audit.images), 'image')} of {counted(audit.patients, 'patient')}, layout {audit.layout}{told}",
        table,
        Text(f"Page: {page}", no_wrap=True, overflow="ignore"),
    )
