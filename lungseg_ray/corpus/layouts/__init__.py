"""What a corpus holds: which mask belongs to which image, whose image it is, and which files cannot be used.

| layout | images | masks | whose |
|---|---|---|---|
| `pairs` | images/ | masks/, of one name with the image | the index, if there is one |
| `manifest` | the column `image_uri` of a table | its column `mask_uri` | its column `patient_id` |
| `montgomery` | CXR_png/MCUCXR_* | ManualMask/leftMask/ and rightMask/ together | one image, one patient |
| `shenzhen` | CXR_png/CHNCXR_* | mask/*_mask.png; not for all | one image, one patient |
| `jsrt` | JPCLN*.IMG, JPCNN*.IMG | fold1/, fold2/: left lung/ and right lung/ together | one image, one patient |
| `dicom` | files of DICOM | masks/ | their tags |

`auto` finds out which it is by the names of the files; the root `phantom` stands for drawn chests.
"""

from __future__ import annotations

from dataclasses import replace

from lungseg_ray.config import PHANTOM, CorpusSettings
from lungseg_ray.corpus import phantom
from lungseg_ray.corpus.layouts import manifest
from lungseg_ray.corpus.layouts.dicom import DICOM
from lungseg_ray.corpus.layouts.jsrt import JSRT
from lungseg_ray.corpus.layouts.listing import Layout, Listing
from lungseg_ray.corpus.layouts.montgomery import MONTGOMERY
from lungseg_ray.corpus.layouts.pairs import PAIRS
from lungseg_ray.corpus.layouts.shenzhen import SHENZHEN
from lungseg_ray.corpus.layouts.table import TABLES, is_table
from lungseg_ray.corpus.layouts.tree import FileTree
from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location, locate

__all__ = ["Listing", "list_corpus"]


def list_corpus(settings: CorpusSettings) -> Listing:
    """Lists a corpus, in a folder or a bucket, without opening an image.

    Raises:
        UserError: if nothing of the kind is there, if several layouts fit, or if an index or a manifest is wrong.
    """
    if settings.root == PHANTOM and settings.layout == "auto":
        return Listing(phantom.list_phantoms(settings.phantom), [], PHANTOM)
    root = settings.root if isinstance(settings.root, Location) else locate(settings.root)
    if settings.layout == "manifest" and not is_table(root):
        raise UserError(f"{root}: the layout manifest expects {manifest.EXPECTS}; set corpus.root to one.")
    if settings.layout == "manifest" or (settings.layout == "auto" and is_table(root)):
        listing = manifest.list_manifest(root, settings)
        because = f"corpus.root is a {' or '.join(one for one in TABLES if root.name.lower().endswith(one))} file"
        return listing if settings.layout == "manifest" else replace(listing, because=because)
    tree = FileTree.of(root)
    if settings.layout != "auto":
        return next(layout for layout in _LAYOUTS if layout.name == settings.layout).read(tree, settings)
    layout, because = _recognise(tree)
    return replace(layout.read(tree, settings), because=because)


def _recognise(tree: FileTree) -> tuple[Layout, str]:
    found = [(layout, because) for layout in _LAYOUTS if (because := layout.recognise(tree))]
    # Whoever has made images/ and masks/ means them, whatever the files in them are called.
    if (PAIRS, PAIRS.recognise(tree)) in found:
        found = [(layout, because) for layout, because in found if layout in (PAIRS, DICOM)]
    if len(found) == 1:
        return found[0]
    if found:
        reasons = "; ".join(f"{layout.name} ({because})" for layout, because in found)
        raise UserError(
            f"{tree.root}: several layouts fit: {reasons}. Set corpus.layout to the one that is meant, or corpus.root "
            "to the folder of one corpus."
        )
    expected = "\n".join(f"  {name}: {expects}" for name, expects in _expected())
    raise UserError(
        f"{tree.root}: found {tree.describe()}, which fits no layout. Set corpus.root to one of these, or to "
        f"'{PHANTOM}':\n{expected}"
    )


def _expected() -> list[tuple[str, str]]:
    return [("manifest", manifest.EXPECTS), *((layout.name, layout.expects) for layout in _LAYOUTS)]


_LAYOUTS = (PAIRS, DICOM, MONTGOMERY, SHENZHEN, JSRT)
