"""What happens to an image before an exported model and after it, with NumPy and OpenCV alone.

side = json.load(open("preprocessing.json"))
probabilities = model(before(image, side)[None])  # (1, size, size, K) float32, of (1, size, size, C) uint8
labels = after(probabilities[0], image.shape[0], image.shape[1], side)
"""

from typing import Any

import cv2
import numpy as np


def before(image: Any, side: dict[str, Any]) -> Any:
    """Returns (size, size, C) uint8 of an image, (H, W, C) uint8: white is 255, C = 1 for grey and 3 for RGB."""
    high, wide = image.shape[:2]
    shrink = min(1.0, side["longer_side"] / max(high, wide))
    rows, columns = max(1, round(high * shrink)), max(1, round(wide * shrink))
    if (rows, columns) != (high, wide):
        image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA).reshape(rows, columns, -1)
    if side["fit"] == "pad":
        more = [max(rows, columns) - length for length in (rows, columns)]
        image = np.pad(image, [*((length // 2, length - length // 2) for length in more), (0, 0)])
    size = side["size"]
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR).reshape(size, size, -1)


def after(probabilities: Any, high: int, wide: int, side: dict[str, Any]) -> Any:
    """Returns (high, wide) uint8 labels, 0 for the background, of probabilities (size, size, K) float32."""
    if side["fit"] == "pad" and high != wide:
        square, size = max(high, wide), side["size"]
        at = [(np.arange(length) + (square - length) // 2 + 0.5) * (size / square) - 0.5 for length in (wide, high)]
        across, down = (grid.astype(np.float32) for grid in np.meshgrid(*at))
        sized = cv2.remap(probabilities, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    else:
        sized = cv2.resize(probabilities, (wide, high), interpolation=cv2.INTER_LINEAR)
    sized = sized.reshape(high, wide, -1)
    labels = (sized[:, :, 0] > side["threshold"]) if side["classes"] == 1 else sized.argmax(axis=2)
    found = labels.astype(np.uint8)
    return _cleaned(found, len(side["class_names"])) if side["clean_up"] else found


def _cleaned(labels: Any, classes: int) -> Any:
    """Keeps the two largest components of each label, and fills their holes."""
    result = np.zeros_like(labels)
    for label in range(1, classes + 1):
        _, parts, figures, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8), connectivity=4)
        largest = np.argsort(-figures[1:, cv2.CC_STAT_AREA], kind="stable")[:2] + 1
        around = np.pad(~np.isin(parts, largest), 1, constant_values=True).astype(np.uint8)
        outside = cv2.connectedComponents(around, connectivity=4)[1]
        filled = (outside != outside[0, 0])[1:-1, 1:-1]
        result[filled & ((labels == 0) | (labels == label))] = label
    return result
