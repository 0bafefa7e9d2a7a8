"""Lists several roots: each as a corpus of its own, or those together that are none by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from lungseg_ray.config import CorpusSettings, Roots
from lungseg_ray.corpus.layouts.annotated import names_runs
from lungseg_ray.corpus.layouts.labelmaps import require_same_names
from lungseg_ray.corpus.layouts.listing import Listing, NoLayoutError, united
from lungseg_ray.corpus.layouts.roles import splits_of
from lungseg_ray.corpus.layouts.single import list_manifest, list_tree
from lungseg_ray.corpus.layouts.table import is_table
from lungseg_ray.corpus.layouts.tree import SUFFIXES, FilesState, FileTree
from lungseg_ray.corpus.record import Record, Split
from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location
from lungseg_ray.text import named

_FEWEST = 0.1
"""A root in which a smaller share of the images has a mask is no corpus by itself, whatever a stray file is named."""


def list_roots(roots: Roots, settings: CorpusSettings, outputs: Sequence[Location]) -> Listing:
    """Lists several roots, each as a corpus. Those that are none by themselves, as images and masks, are one together.

    Raises:
        NoLayoutError: If the roots that are no corpus by themselves are none together.
        UserError: As for `list_corpus`.
        OSError: If a root cannot be read.
    """
    listings: dict[str, Listing] = {}
    parts: dict[str, FileTree] = {}
    states: list[FilesState] = []
    names = _names(roots)
    splits = _splits(names)
    for name, root in zip(names, roots, strict=True):
        own = settings.model_copy(update={"root": root})
        if settings.layout == "manifest" or (is_table(root) and not names_runs(root)):
            try:
                listed = list_manifest(root, own)
                listings[name] = _of_root(listed, name, splits[name])
                states += listed.files
                continue
            except NoLayoutError:
                # A table of patients or of splits speaks of the images of another root.
                if settings.layout == "manifest":
                    raise
        tree = FileTree.of_file(root) if root.is_file() else FileTree.of(root, outputs)
        states.append(tree.state)
        listing = None
        # Annotations alone may be of many gigabytes, and are read only with their images.
        if any(entry.path.lower().endswith(SUFFIXES) for entry in tree.files):
            with suppress(NoLayoutError):
                listing = list_tree(tree, own)
        if listing and len(listing.records) > _FEWEST * (len(listing.records) + len(listing.set_aside)):
            listings[name] = _of_root(listing, name, splits[name])
        else:
            parts[name] = tree
    if parts:
        tree = FileTree.joined(parts) if len(parts) > 1 else next(iter(parts.values()))
        listing = list_tree(tree, settings)
        if len(parts) > 1:
            said = f"roots: {named(list(parts))} are one corpus, since none of them has images and masks"
            listing = replace(listing, recognition=[said, *listing.recognition])
        together = "+".join(parts)
        listings[together] = _of_root(listing, together, None) if listings or len(parts) == 1 else listing
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


def _of_root(listing: Listing, name: str, split: Split | None) -> Listing:
    """Returns the listing of one of several roots; its name becomes a group, and a part of the ids of its images.

    A root that is named by a split prescribes it where nothing in the root does.
    """

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


def _splits(names: Sequence[str]) -> dict[str, Split | None]:
    """Returns the split that the name of each root says, in the last of its parts in which any does."""
    parts = [name.split("/") for name in names]
    for depth in range(max(map(len, parts)), 0, -1):
        by_part = splits_of(part[depth - 1] for part in parts if len(part) >= depth)
        if any(by_part.values()):
            return {
                name: by_part[part[depth - 1]] if len(part) >= depth else None
                for name, part in zip(names, parts, strict=True)
            }
    return dict.fromkeys(names)


def _names(roots: Sequence[Location]) -> list[str]:
    """Returns the last folders of roots, as many as tell them apart."""
    parts = [root.path.rstrip("/").split("/") for root in roots]
    depth = 1
    while depth < max(map(len, parts)) and len({tuple(one[-depth:]) for one in parts}) < len(parts):
        depth += 1
    return ["/".join(one[-depth:]) for one in parts]
