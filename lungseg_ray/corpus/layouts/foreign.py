"""Names the tools whose annotations are in a tree and are not read, for the message that says so."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from lungseg_ray.corpus.layouts.roles import Roles
from lungseg_ray.corpus.layouts.tree import Entry, FileTree
from lungseg_ray.text import counted, shown

_LOOKED_AT = 5
_MOST_BYTES = 1 << 26
_NUMBERS = re.compile(rb"\d+(\s+-?\d*\.?\d+){4,}\s*")


def foreign_annotations(tree: FileTree) -> str:
    """Returns a sentence about annotations of tools that are not read; empty if there are none.

    Args:
        tree: The files of a corpus in which no masks were found. A few of them are opened.

    Raises:
        OSError: If a file cannot be read.
    """
    roles = Roles(entry.path.rpartition("/")[0] for entry in tree.files)
    texts = [
        entry
        for entry in tree.files
        if entry.path.lower().endswith(".txt") and roles.parse(entry.path.rpartition("/")[0]).role == "mask"
    ]
    kinds = {
        "JSON": [entry for entry in tree.files if entry.path.lower().endswith(".json")],
        "XML": [entry for entry in tree.files if entry.path.lower().endswith(".xml")],
        "text": texts,
    }
    for kind, entries in kinds.items():
        for entry in _few(entries):
            if tool := _TOOLS[kind](entry.place.read_bytes()):
                return (
                    f"{shown(entry.path)} is of {tool}, which is not read ({counted(len(entries), f'{kind} file')} in "
                    "all): export masks as images, or annotations as COCO, LabelMe, Darwin or CVAT."
                )
    return ""


def _few(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries[:: max(len(entries) // _LOOKED_AT, 1)] if entry.size <= _MOST_BYTES][:_LOOKED_AT]


def _of_json(data: bytes) -> str:
    try:
        content: Any = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    if isinstance(content, list):
        first = content[0] if content and isinstance(content[0], dict) else {}
        return "Label Studio" if "data" in first and ({"annotations", "completions"} & first.keys()) else ""
    if not isinstance(content, dict):
        return ""
    if "_via_img_metadata" in content or any(
        isinstance(one, dict) and "regions" in one and "filename" in one for one in content.values()
    ):
        return "VGG Image Annotator"
    objects = content.get("objects")
    if isinstance(objects, list) and any(isinstance(one, dict) and "classTitle" in one for one in objects):
        return "Supervisely"
    shapes = content.get("shapes")
    kinds = {one.get("shape_type") for one in shapes if isinstance(one, dict)} if isinstance(shapes, list) else set()
    others = kinds & {"mask", "circle"}
    return f"LabelMe with shapes of the kind {others.pop()}" if others else ""


def _of_xml(data: bytes) -> str:
    if b"<track" in data:
        return "CVAT for video"
    return "PASCAL VOC with boxes alone" if b"<bndbox" in data else ""


def _of_text(data: bytes) -> str:
    lines = [line for line in data.splitlines()[:20] if line.strip()]
    return "YOLO" if lines and all(_NUMBERS.fullmatch(line) for line in lines) else ""


_TOOLS = {"JSON": _of_json, "XML": _of_xml, "text": _of_text}
