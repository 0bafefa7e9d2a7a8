"""The templates of pages, and their files."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import jinja2

import lungseg_ray
from lungseg_ray.storage import Location, translate_errors


def template(name: str, **functions: Any) -> jinja2.Template:
    """Returns a template, which escapes all text, and knows who writes the page and when.

    Args:
        name: The name of the file in this folder.
        **functions: What it may call, by name.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lungseg_ray.page", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    environment.globals.update(functions, version=lungseg_ray.__version__, written=written)
    # The order of the keys is kept, since an object in a chart must come before the references to it.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return environment.get_template(name)


def write_html(text: str, target: Location) -> Location:
    """Writes a page.

    Args:
        text: The page.
        target: The HTML file.

    Returns:
        The file.

    Raises:
        OSError: If it cannot be written; a `StorageError` for a bucket.
    """
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
