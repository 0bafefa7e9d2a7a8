"""The rendering of the page of a sweep, a run or an audit to an HTML file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from bokeh.resources import Resources

from lungseg_ray.audit.result import PAGE, Audit
from lungseg_ray.errors import UserError
from lungseg_ray.evaluation.mask_scores import ComparedMask
from lungseg_ray.imaging import Pixels
from lungseg_ray.page.audit_page import audit_page
from lungseg_ray.page.elements import NONE, Page
from lungseg_ray.page.mask_page import mask_page
from lungseg_ray.page.run_page import run_page
from lungseg_ray.page.sweep_page import sweep_page
from lungseg_ray.page.templates import template, write_html
from lungseg_ray.run.folder import Run
from lungseg_ray.storage import Location
from lungseg_ray.sweep.ledger import REPORT, Sweep

MASKS_PAGE = "masks.html"


def write_sweep_page(place: Location, *, shards: Location | None = None, out: Location | None = None) -> Location:
    """Writes the page of a sweep, which need not be finished.

    Args:
        place: The folder of the sweep.
        shards: The folder that now contains its shards; by default, the folder that contained them during training.
        out: The folder for the page; by default, the folder of the sweep.

    Returns:
        The HTML file.

    Raises:
        UserError: If there is no sweep, or if it cannot be read.
    """
    base = "" if out in (None, place) else f"{place.uri}/"
    return _write(sweep_page(Sweep(place), shards=shards, base=base), (out or place) / REPORT)


def write_run_page(place: Location, *, out: Location | None = None) -> Location:
    """Writes the page of a run, which need not be finished.

    Args:
        place: The folder of the run.
        out: The folder for the page; by default, the folder of the run.

    Returns:
        The HTML file.

    Raises:
        UserError: If the folder contains a sweep or no run, or if the configuration of the run cannot be read.
    """
    if Sweep.is_one(place):
        raise UserError(f"{place}: expected a run, found a sweep. Use --sweep {place}.")
    return _write(run_page(Run(place)), (out or place) / REPORT)


def write_audit_page(audit: Audit, out: Location) -> Location:
    """Writes the page of an audit.

    Args:
        audit: The results of the audit.
        out: The folder for the page.

    Returns:
        The HTML file.
    """
    return _write(audit_page(audit), out / PAGE)


def write_mask_page(
    masks: Sequence[ComparedMask], pictures: Sequence[tuple[Pixels, Pixels, Pixels]], out: Location, *, title: str
) -> Location:
    """Writes the page of masks beside predictions.

    Args:
        masks: The masks, the most suspicious first, at least one.
        pictures: For the first of them the image (H, W, C), its mask and the predicted labels, both (H, W), all uint8.
        out: The folder for the page.
        title: The title of the page.

    Returns:
        The HTML file.
    """
    return _write(mask_page(masks, pictures, title=title), out / MASKS_PAGE)


def _write(page: Page, target: Location) -> Location:
    bundle = files("itables") / "html"
    text = template("template.html", plain=_plain).render(
        page=page,
        chart_js=Resources(mode="inline", components=["bokeh"], log_level="warn").render_js(),
        table_css=(bundle / "dt_bundle.css").read_text(),
        table_js=base64.b64encode((bundle / "dt_bundle.js").read_bytes()).decode(),
    )
    return write_html(text, target)


def _plain(value: Any) -> str:
    """Formats a leaf of a tree of settings for the reader."""
    if value is None or value in ("", [], {}):
        return NONE
    if isinstance(value, dict):
        return ", ".join(f"{key}: {one}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
