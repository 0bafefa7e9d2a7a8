"""Lists several roots: each as a corpus of its own, or those together that are none by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from lungseg_ray.config import CorpusSettings, Roots
from lungseg_ray.corpus.layouts.annotated import names_runs
from lungseg_ray.corpus.layouts.labelmaps import require_same_names
from lungseg_ray.corpus.layouts.listing import Listing, NoLayoutError, united
from lungseg_ray.corpus.layouts.roles import read_words
from lungseg_ray.corpus.layouts.single import list_manifest, list_tree
from lungseg_ray.corpus.layouts.table import is_table
from lungseg_ray.corpus.layouts.tree import SUFFIXES, FilesState, FileTree
from lungseg_ray.corpus.record import Record
from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location
from lungseg_ray.text import named


def list_roots(roots: Roots, settings: CorpusSettings, outputs: Sequence[Location]) -> Listing:
    """Lists several roots, each as a corpus. Those that are none by themselves, as images and masks, are one together.

    Raises:
        UserError: As for `list_corpus`, also if the roots that are no corpus by themselves are none together.
        OSError: If a root cannot be read.
    """
    listings: dict[str, Listing] = {}
    parts: dict[str, FileTree] = {}
    states: list[FilesState] = []
    for name, root in zip(_names(roots), roots, strict=True):
        own = settings.model_copy(update={"root": root})
        if is_table(root) and not names_runs(root):
            listings[name] = _of_root(list_manifest(root, own), name)
            continue
        tree = FileTree.of_file(root) if root.is_file() else FileTree.of(root, outputs)
        if not is_table(root):
            states.append(tree.state)
        listing = None
        # Annotations alone may be of many gigabytes, and are read only with their images.
        if any(entry.path.lower().endswith(SUFFIXES) for entry in tree.files):
            with suppress(NoLayoutError):
                listing = list_tree(tree, own)
        if listing and listing.records:
            listings[name] = _of_root(listing, name)
        else:
            parts[name] = tree
    if parts:
        tree = FileTree.joined(parts) if len(parts) > 1 else next(iter(parts.values()))
        listing = list_tree(tree, settings)
        if len(parts) > 1:
            said = f"roots: {named(list(parts))} are one corpus, since none of them has images and masks"
            listing = replace(listing, recognition=[said, *listing.recognition])
        together = "+".join(parts)
        listings[together] = _of_root(listing, together) if listings or len(parts) == 1 else listing
    if not settings.mask_values:
        _require_same_names(listings)
    several = list(listings.values())
    return replace(united(several) if len(several) > 1 else several[0], files=states)


def _require_same_names(listings: Mapping[str, Listing]) -> None:
    """Raises a `UserError` if the values of masks mean one thing in one root, and another or nothing in another."""
    names = {root: listing.value_names for root, listing in listings.items() if listing.records}
    require_same_names(names)
    without = [root for root, one in names.items() if not one]
    if without and len(without) < len(names):
        file, root = next((root for root, one in names.items() if one)), without[0]
        raise UserError(
            f"A file in {file} names the values of its masks, and none does in {root}, where they may mean something "
            "else. Shard these corpora one by one, or set corpus.mask_values."
        )


def _of_root(listing: Listing, name: str) -> Listing:
    """Returns the listing of one of several roots; its name becomes a group, and a part of the ids of its images.

    A root that is named by a split, such as `train`, prescribes it where nothing in the root does.
    """
    split = read_words(name.rpartition("/")[2]).split

    def of(records: Iterable[Record]) -> list[Record]:
        return [
            replace(
                record,
                image_id=f"{name}/{record.image_id}",
                groups={"root": name, **record.groups},
                split=record.split or split,
            )
            for record in records
        ]

    return replace(
        listing,
        records=of(listing.records),
        set_aside=[replace(one, image_id=f"{name}/{one.image_id}") for one in listing.set_aside],
        unlabelled=of(listing.unlabelled),
        because=f"{name}: {listing.because}" if listing.because else "",
        recognition=[f"{name}: {line}" for line in listing.recognition],
        warnings=[f"{name}: {line}" for line in listing.warnings],
    )


def _names(roots: Sequence[Location]) -> list[str]:
    """Returns the last folders of roots, as many as tell them apart."""
    parts = [root.path.rstrip("/").split("/") for root in roots]
    depth = 1
    while depth < max(map(len, parts)) and len({tuple(one[-depth:]) for one in parts}) < len(parts):
        depth += 1
    return ["/".join(one[-depth:]) for one in parts]
