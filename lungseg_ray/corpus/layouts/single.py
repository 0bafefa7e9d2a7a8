"""Lists a corpus in one folder, or of one table, with the layout that is set or recognised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lungseg_ray.config import PHANTOM, CorpusSettings
from lungseg_ray.corpus.layouts import manifest
from lungseg_ray.corpus.layouts.annotated import names_runs
from lungseg_ray.corpus.layouts.dicom import DICOM
from lungseg_ray.corpus.layouts.folders import PAIRS
from lungseg_ray.corpus.layouts.jsrt import JSRT
from lungseg_ray.corpus.layouts.listing import Layout, Listing, NoLayoutError, united
from lungseg_ray.corpus.layouts.montgomery import MONTGOMERY
from lungseg_ray.corpus.layouts.shenzhen import SHENZHEN
from lungseg_ray.corpus.layouts.table import TABLES, is_table
from lungseg_ray.corpus.layouts.tree import FileTree
from lungseg_ray.corpus.record import Record
from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location, locate


def list_root(settings: CorpusSettings, outputs: Sequence[Location]) -> Listing:
    """Lists a corpus in a folder, or that of a table.

    Args:
        settings: The settings of the corpus, with a single root.
        outputs: Folders that jobs write; those below the root are left out.

    Returns:
        The listing, with the state of the files if the root is a folder.

    Raises:
        UserError: As for `list_corpus`.
        OSError: If the root cannot be read.
    """
    root = settings.root if isinstance(settings.root, Location) else locate(str(settings.root))
    if settings.layout == "manifest" or (settings.layout == "auto" and is_table(root)):
        if settings.layout == "auto" and names_runs(root):
            raise UserError(
                f"{root}: this table has run lengths, and the folder of its images is not known. Give both: "
                f"--corpus.root IMAGES --corpus.root {root}"
            )
        return list_manifest(root, settings)
    tree = FileTree.of(root, outputs)
    return replace(list_tree(tree, settings), files=[tree.state])


def list_manifest(root: Location, settings: CorpusSettings) -> Listing:
    """Lists the corpus of a table, as `manifest.list_manifest` does, with the evidence for this layout.

    Raises:
        UserError: If the root is no table, or the table is wrong.
        OSError: If the table cannot be read.
    """
    if not is_table(root):
        raise UserError(f"{root}: the layout manifest expects {manifest.EXPECTS}; set corpus.root to one.")
    listing = manifest.list_manifest(root, settings)
    because = f"corpus.root is a {' or '.join(one for one in TABLES if root.name.lower().endswith(one))} file"
    return listing if settings.layout == "manifest" else replace(listing, because=because)


def list_tree(tree: FileTree, settings: CorpusSettings) -> Listing:
    """Lists the corpus in a tree of files.

    Args:
        tree: The files.
        settings: The settings of the corpus, of which the root is not used.

    Returns:
        The listing, without the state of the files.

    Raises:
        NoLayoutError: If no layout finds images with masks; the message lists the layouts.
        UserError: If several layouts fit, or the files are wrong for the one that does.
        OSError: If a file cannot be read.
    """
    if settings.layout != "auto":
        listing = next(layout for layout in _LAYOUTS if layout.name == settings.layout).read(tree, settings)
    else:
        found = _recognise(tree)
        try:
            listings = [replace(layout.read(tree, settings), because=because) for layout, because in found]
            listing = listings[0] if len(listings) == 1 else united([_of_set(each) for each in listings])
        except NoLayoutError as error:
            expected = "\n".join(f"  {layout.name}: {layout.expects}" for layout in _LAYOUTS)
            raise NoLayoutError(
                f"{error}\nThese layouts are read:\n  manifest: {manifest.EXPECTS}\n{expected}\nAll are described in "
                f"docs/input.md; --corpus.root {PHANTOM} draws chest X-rays to try."
            ) from None
    return replace(listing, recognition=[*tree.notes, *listing.recognition])


def _recognise(tree: FileTree) -> list[tuple[Layout, str]]:
    """Returns the layouts that fit, with the evidence. Several may do so for public sets, which are then united."""
    found = [(layout, because) for layout in _LAYOUTS if (because := layout.recognise(tree))]
    names = [layout for layout, _ in found]
    if PAIRS in names:
        # JSRT's folders are named like those of any pairs. The files of the other sets are also kept in other folders.
        found = [
            (layout, because) for layout, because in found if layout in ((JSRT,) if JSRT in names else (PAIRS, DICOM))
        ]
    if not found:
        return [(PAIRS, "by the names of files")]
    if len(found) > 1 and not all(layout in _PUBLIC for layout, _ in found):
        reasons = "; ".join(f"{layout.name} ({because})" for layout, because in found)
        raise UserError(
            f"{tree.name}: several layouts fit: {reasons}. Set corpus.layout to the one that is meant, or corpus.root "
            "to the folder of one corpus."
        )
    return found


def _of_set(listing: Listing) -> Listing:
    """Returns the listing of one of several public sets in one folder; the name of the set becomes a group."""

    def of(records: Iterable[Record]) -> list[Record]:
        return [replace(record, groups={**record.groups, "set": listing.layout}) for record in records]

    return replace(listing, records=of(listing.records), unlabelled=of(listing.unlabelled))


_PUBLIC = (MONTGOMERY, SHENZHEN, JSRT)
_LAYOUTS = (PAIRS, DICOM, *_PUBLIC)
