"""Reads the files of annotation tools: COCO, LabelMe, Darwin (JSON) and CVAT (XML)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np

from lungseg_ray.corpus.annotations.drawing import Drawing, Shape
from lungseg_ray.errors import BadFileError

_ELLIPSE = {"cx": "nan", "cy": "nan", "rx": "nan", "ry": "nan", "rotation": "0"}
_CORNERS = 180


def read_annotation(data: bytes) -> Drawing:
    """Reads the annotation of a single image: a file of LabelMe or Darwin.

    Args:
        data: The content of the JSON file.

    Returns:
        The shapes.

    Raises:
        BadFileError: With the reason `unreadable` if the file is damaged, or `unsupported` if it is another document.
    """
    content = _json(data)
    try:
        if "shapes" in content:
            return _labelme(content)
        if "annotations" in content and ("item" in content or "image" in content):
            return _darwin(content)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BadFileError("unreadable", _damaged(error)) from None
    raise BadFileError("unsupported", "expected an annotation of LabelMe or Darwin, found another JSON document")


def is_annotation(data: bytes) -> bool:
    """Returns whether a file is the annotation of a single image."""
    try:
        read_annotation(data)
    except BadFileError:
        return False
    return True


def read_collection(data: bytes, suffix: str) -> dict[str, Drawing] | None:
    """Reads the annotations of many images from one file: of COCO (JSON) or CVAT (XML).

    Args:
        data: The content of the file.
        suffix: The suffix of its name, ".json" or ".xml".

    Returns:
        The shapes of each image, by the path of the image as the file has it; None if it is another document.

    Raises:
        BadFileError: With the reason `unreadable` if the file is damaged.
    """
    try:
        if suffix == ".xml":
            return _cvat(data)
        content = json.loads(data)
        if not isinstance(content, dict):
            return None
        if isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list):
            return _coco(content)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        ElementTree.ParseError,
        RecursionError,
    ) as error:
        raise BadFileError("unreadable", _damaged(error)) from None
    return None


def _damaged(error: Exception) -> str:
    return f"damaged: an annotation that cannot be read ({type(error).__name__})"


def _json(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadFileError("unreadable", _damaged(error)) from None
    if not isinstance(content, dict):
        raise BadFileError("unsupported", "expected a JSON document with named parts, found another")
    return content


def _coco(content: Mapping[str, Any]) -> dict[str, Drawing]:
    names = {category["id"]: str(category["name"]) for category in content.get("categories", [])}
    shapes: dict[object, list[Shape]] = defaultdict(list)
    # A crowd beside single structures is an area that nobody took apart. Tools also export single masks as crowds.
    crowds = {bool(one.get("iscrowd")) for one in content["annotations"]}
    for one in content["annotations"]:
        area, name = one.get("segmentation"), names.get(one.get("category_id"), "")
        if len(crowds) > 1 and one.get("iscrowd"):
            name = "ignore"
        if isinstance(area, list) and area:
            rings = area if isinstance(area[0], list) else [area]
            shapes[one["image_id"]].append(Shape(name=name, rings=rings))
        elif isinstance(area, dict):
            counts, box = area["counts"], (*map(int, area["size"]), 0, 0)
            runs = {"counts": counts} if isinstance(counts, str) else {"runs": counts}
            shapes[one["image_id"]].append(Shape(name=name, box=box, whole=True, **runs))
    return {
        str(image["file_name"]): Drawing(
            size=_size(image.get("height"), image.get("width")), shapes=shapes[image["id"]]
        )
        for image in content["images"]
    }


def _labelme(content: Mapping[str, Any]) -> Drawing:
    shapes = []
    for one in content["shapes"]:
        points, kind = one["points"], one.get("shape_type") or "polygon"
        ring = [float(value) for point in points for value in point[:2]]
        if kind == "rectangle":
            left, top, right, bottom = ring
            ring = [left, top, right, top, right, bottom, left, bottom]
        elif kind not in ("polygon", "linestrip"):
            if kind in ("point", "line", "points"):
                continue
            raise BadFileError(
                "unsupported", "expected polygons and rectangles, found another kind of shape of LabelMe"
            )
        shapes.append(Shape(name=str(one.get("label", "")), rings=[ring]))
    return Drawing(size=_size(content.get("imageHeight"), content.get("imageWidth")), shapes=shapes)


def _darwin(content: Mapping[str, Any]) -> Drawing:
    shapes = []
    for one in content["annotations"]:
        area = one.get("polygon") or one.get("complex_polygon")
        if not area:
            continue
        paths = area.get("paths") or area.get("path") or []
        paths = paths if paths and isinstance(paths[0], list) else [paths]
        rings = [[float(value) for point in path for value in (point["x"], point["y"])] for path in paths]
        shapes.append(Shape(name=str(one.get("name", "")), rings=rings, holes=True))
    # Version 2 names the size by slot, and version 1 beside the name of the image.
    item = content.get("item") or {}
    slots = item.get("slots") or [content.get("image") or {}]
    return Drawing(size=_size(slots[0].get("height"), slots[0].get("width")), shapes=shapes)


def _cvat(data: bytes) -> dict[str, Drawing] | None:
    root = ElementTree.fromstring(data)
    if root.tag != "annotations":
        return None
    found = {}
    for image in root.iter("image"):
        shapes = []
        for one in sorted(image, key=lambda shape: int(shape.get("z_order", 0))):
            name = one.get("label", "")
            if one.tag == "polygon":
                ring = [float(value) for point in (one.get("points") or "").split(";") for value in point.split(",")]
                shapes.append(Shape(name=name, rings=[ring]))
            elif one.tag == "ellipse":
                shapes.append(Shape(name=name, rings=[_ellipse(one)]))
            elif one.tag in ("cuboid", "skeleton"):
                raise BadFileError(
                    "unsupported", f"expected polygons, boxes, ellipses and masks of CVAT, found a {one.tag}"
                )
            elif one.tag == "box":
                left, top, right, bottom = (float(one.get(key, "nan")) for key in ("xtl", "ytl", "xbr", "ybr"))
                shapes.append(Shape(name=name, rings=[[left, top, right, top, right, bottom, left, bottom]]))
            elif one.tag == "mask":
                rows, columns, top, left = (
                    int(float(one.get(key, "nan"))) for key in ("height", "width", "top", "left")
                )
                runs = [int(value) for value in (one.get("rle") or "").split(",")]
                shapes.append(_by_rows(name, runs, rows, columns, top, left))
        found[str(image.get("name"))] = Drawing(size=_size(image.get("height"), image.get("width")), shapes=shapes)
    return found


def _ellipse(shape: ElementTree.Element) -> list[float]:
    """Returns the outline of an ellipse of CVAT, whose rotation is in degrees."""
    x, y, across, down, turn = (float(shape.get(key, default)) for key, default in _ELLIPSE.items())
    angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    points = np.stack([across * np.cos(angles), down * np.sin(angles)])
    cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    turned = np.array([[cos, -sin], [sin, cos]]) @ points + [[x], [y]]
    return [float(value) for value in turned.T.ravel()]


def _by_rows(name: str, runs: list[int], rows: int, columns: int, top: int, left: int) -> Shape:
    """Returns a mask of CVAT, whose run lengths go row by row, with run lengths that go column by column."""
    # Rows of the mask are columns of its transpose.
    return Shape(name=name, rings=[], runs=_transposed(runs, rows, columns), box=(rows, columns, top, left))


def _transposed(runs: list[int], rows: int, columns: int) -> list[int]:
    if sum(runs) != rows * columns or rows * columns > 1 << 26:
        raise BadFileError("unreadable", f"damaged: run lengths of {sum(runs)} pixels for {columns} x {rows} px")
    marked = np.repeat(np.arange(len(runs)) % 2, runs).reshape(rows, columns)
    flat = marked.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    found = np.diff([0, *edges, len(flat)]).tolist()
    return found if flat[:1].tolist() == [0] else [0, *found]


def _size(height: Any, width: Any) -> tuple[int, int] | None:
    return (int(height), int(width)) if height and width else None
