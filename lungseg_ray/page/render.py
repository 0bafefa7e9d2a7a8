"""The rendering of the page of a sweep, a run or an audit to an HTML file."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import jinja2
from bokeh.resources import Resources

import lungseg_ray
from lungseg_ray.audit.result import PAGE, Audit
from lungseg_ray.errors import UserError
from lungseg_ray.page.audit_page import audit_page
from lungseg_ray.page.elements import NONE, Page
from lungseg_ray.page.run_page import run_page
from lungseg_ray.page.sweep_page import sweep_page
from lungseg_ray.run.folder import Run
from lungseg_ray.storage import Location, translate_errors
from lungseg_ray.sweep.ledger import REPORT, Sweep


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


def _write(page: Page, target: Location) -> Location:
    bundle = files("itables") / "html"
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lungseg_ray.page", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["plain"] = _plain
    # The order of the keys is kept, since an object in a chart must come before the references to it.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    text = environment.get_template("template.html").render(
        page=page,
        version=lungseg_ray.__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        chart_js=Resources(mode="inline", components=["bokeh"], log_level="warn").render_js(),
        table_css=(bundle / "dt_bundle.css").read_text(),
        table_js=base64.b64encode((bundle / "dt_bundle.js").read_bytes()).decode(),
    )
    # Stored texts may have halves of characters, which UTF-8 has no bytes for.
    data = text.encode(errors="backslashreplace")
    if target.is_local:
        target.write_bytes(data)
        return target
    # Without the content type, a browser would download the page instead of showing it.
    kind = {"Content-Type": "text/html; charset=utf-8"}
    with translate_errors(target), target.filesystem.open_output_stream(target.path, metadata=kind) as stream:
        stream.write(data)
    return target


def _plain(value: Any) -> str:
    """Formats a leaf of a tree of settings for the reader."""
    if value is None or value in ("", [], {}):
        return NONE
    if isinstance(value, dict):
        return ", ".join(f"{key}: {one}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
