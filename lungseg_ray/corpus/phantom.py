"""Draws synthetic frontal chest X-rays with lung masks, so that everything can be tried without data of patients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lungseg_ray.config import PhantomSettings
from lungseg_ray.corpus.record import MaskSource, Record

Layer = NDArray[np.floating[Any]]
Points = NDArray[np.float64]
_SCHEME = "phantom"
# Of every six consecutive images, the last two show the same patient, so that one patient in five has two images.
_BLOCK = 6
# The number of fractional bits of coordinates in the drawing functions of OpenCV.
_SHIFT = 4


def list_phantoms(settings: PhantomSettings) -> list[Record]:
    """Lists the records of the synthetic corpus; one patient in five has two images.

    The URIs have the form `phantom://<seed>/<size>/<index>` and contain everything that `draw_uri` needs.

    Args:
        settings: The settings of the synthetic corpus: the number of images, their size and the seed.

    Returns:
        The records, ordered by `image_id`.
    """
    records = []
    for index in range(settings.count):
        uri = f"{_SCHEME}://{settings.seed}/{settings.size}/{index}"
        patient = f"phantom-patient-{_patient(index):06d}"
        records.append(
            Record(image_id=f"phantom-{index:06d}", image_uri=uri, masks=(MaskSource(uri),), patient_id=patient)
        )
    return records


def is_phantom(uri: str) -> bool:
    """Returns whether a URI has the scheme of the URIs of `list_phantoms`."""
    return uri.startswith(f"{_SCHEME}://")


def draw_uri(uri: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draws the X-ray and the lung mask that a URI of `list_phantoms` specifies, and returns them as `draw` does."""
    parts = urlsplit(uri)
    size, index = parts.path.strip("/").split("/")
    return draw(int(index), seed=int(parts.netloc), size=int(size))


def draw(index: int, *, seed: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draws one synthetic chest X-ray and its lung mask.

    The attenuations of body, lungs, mediastinum, heart and bones, and sometimes of devices, opacities and gas, are
    added up. They are then exposed with varying window, gamma, gradient, blur, noise and collimation. The mask covers
    the whole lung: it includes the part that the heart hides, but not the part below the dome of the diaphragm.

    Args:
        index: The index of the image in the corpus. Images of one patient share the anatomy, but not the pose and the
            exposure.
        seed: The seed of the corpus. Another seed gives other patients.
        size: The height and the width, pixels.

    Returns:
        The image, (size, size) uint8, and the mask, (size, size) uint8 with the labels 0 and 1. The same arguments give
        the same result in every process.
    """
    body = _Anatomy.of(np.random.default_rng([seed % 2**64, _patient(index), 1]))
    rng = np.random.default_rng([seed % 2**64, index])
    pose = _pose(rng)
    fine, coarse = _Canvas(size, pose), _Canvas(max(size // 2, 32), pose)

    lungs = [fine.fill(outline) for outline in body.lungs]
    mask = (np.maximum(*lungs) >= 0.5).astype(np.uint8)

    attenuation = coarse.enlarged(_soft_tissue(body, coarse, rng), size)
    lung = fine.blurred(np.maximum(*lungs), rng.uniform(0.0015, 0.005))
    aeration = rng.uniform(0.26, 0.42) * rng.uniform(0.85, 1.15, 2)
    cover = coarse.enlarged(_lung_field(body, coarse, aeration, rng), size)
    attenuation += lung * cover
    attenuation += coarse.enlarged(_in_front(body, coarse, rng), size)
    attenuation += fine.blurred(_bones(body, fine, rng), 0.0015)
    if rng.random() < 0.35:
        attenuation += _devices(fine, rng)
    return _expose(attenuation, fine, rng), mask


def _patient(index: int) -> int:
    block, position = divmod(index, _BLOCK)
    return block * (_BLOCK - 1) + min(position, _BLOCK - 2)


@dataclass(frozen=True)
class _Anatomy:
    """The outlines of one patient in unit coordinates (x to the right, y down, the image is [0, 1] x [0, 1])."""

    lungs: tuple[Points, Points]
    gap: float
    apex: float
    base: float
    width: float
    outline: Points
    heart: Points
    rib_drop: float
    rib_count: int
    bone: float

    @classmethod
    def of(cls, rng: np.random.Generator) -> _Anatomy:
        gap = rng.uniform(0.035, 0.06)
        width = rng.uniform(0.25, 0.34)
        apex = rng.uniform(0.10, 0.17)
        base = apex + rng.uniform(0.58, 0.72)
        lungs = tuple(
            _lung(side, gap, width * rng.uniform(0.92, 1.08), apex, base + rise, rng)
            for side, rise in ((-1, -rng.uniform(0.0, 0.05)), (1, rng.uniform(-0.015, 0.02)))
        )
        shoulder = width + gap + rng.uniform(0.05, 0.1)
        neck = rng.uniform(0.07, 0.1)
        right = np.array(
            [
                (neck, -0.15),
                (neck, apex - 0.1),
                (neck + 0.06, apex - 0.06),
                (shoulder * 0.75, apex - 0.04),
                (shoulder + 0.06, apex + 0.02),
                (shoulder + 0.08, apex + 0.2),
                (shoulder + 0.02, apex + 0.36),
                (shoulder, base),
                (shoulder + 0.02, 1.2),
            ]
        )
        left = right[::-1] * (-1, 1)
        outline = _spline(np.concatenate([right, left]) + np.array([0.5, 0.0]), closed=True)
        heart = np.array(
            [
                (-0.8, 0.2),
                (-0.6, -0.6),
                (-0.1, -1.3),
                (0.5, -0.95),
                (0.95, -0.1),
                (1.15, 0.6),
                (0.75, 0.95),
                (-0.3, 0.9),
            ]
        )
        heart = (heart + rng.normal(0, 0.05, heart.shape)) * rng.uniform(0.11, 0.17)
        heart += (0.5 + rng.uniform(0.03, 0.06), base - rng.uniform(0.15, 0.2))
        return cls(
            lungs=(lungs[0], lungs[1]),
            gap=gap,
            apex=apex,
            base=base,
            width=width,
            outline=outline,
            heart=_spline(heart, closed=True),
            rib_drop=rng.uniform(0.03, 0.11),
            rib_count=int(rng.integers(8, 11)),
            bone=rng.uniform(0.08, 0.16),
        )


def _lung(side: int, gap: float, width: float, apex: float, base: float, rng: np.random.Generator) -> Points:
    """Returns the closed outline of one lung; `side` is -1 for the right lung, which is on the left of the image."""
    dome = rng.uniform(0.07, 0.2)
    across_down = np.array(
        [
            (0.34, 0.0),
            (0.62, 0.06),
            (0.83, 0.24),
            (0.95, 0.48),
            (1.0, 0.75),
            (1.005, 0.97),
            (0.985, 1.0),
            (0.82, 0.985 - 0.6 * dome),
            (0.5, 0.985 - dome),
            (0.2, 0.99 - 0.95 * dome),
            (0.04, 0.975 - 0.6 * dome),
            (0.0, 0.7),
            (0.05, 0.45),
            (0.07, 0.2),
            (0.16, 0.05),
        ]
    )
    across_down += rng.normal(0, 0.012, across_down.shape)
    bulge = rng.uniform(-0.05, 0.05)
    across = across_down[:, 0] + bulge * np.sin(np.pi * across_down[:, 1])
    return _spline(
        np.stack([0.5 + side * (gap + width * across), apex + (base - apex) * across_down[:, 1]], 1), closed=True
    )


def _spline(points: Points, *, closed: bool) -> Points:
    """Returns a Catmull-Rom curve through the points, with 12 segments between each two of them."""
    padded = np.concatenate([points[-1:], points, points[:2]] if closed else [points[:1], points, points[-1:]])
    before, start, end, after = padded[:-3, None], padded[1:-2, None], padded[2:-1, None], padded[3:, None]
    t = np.linspace(0, 1, 12, endpoint=False)[None, :, None]
    curve = 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - before - 3 * end + after) * t**3
    )
    return curve.reshape(-1, 2)


def _pose(rng: np.random.Generator) -> Points:
    """Returns a 2 x 3 affine matrix that slightly rotates, shears, shifts and scales the patient."""
    angle = np.deg2rad(rng.normal(0, 3.5))
    scale = rng.uniform(0.86, 1.18) * np.array([rng.uniform(0.93, 1.07), 1.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, rng.normal(0, 0.03)], [0, 1]]) @ np.diag(scale)
    centre = np.array([0.5, 0.5])
    return np.column_stack([matrix, centre - matrix @ centre + rng.normal(0, (0.025, 0.02))])


class _Canvas:
    """A canvas that draws shapes in unit coordinates as layers, (size, size) float32 in [0, 1]."""

    def __init__(self, size: int, pose: Points) -> None:
        self.size = size
        self.pose = pose

    def _pixels(self, points: Points) -> NDArray[np.int32]:
        placed = points @ self.pose[:, :2].T + self.pose[:, 2]
        # The first pixel centre is at half a pixel here, and at 0 in OpenCV.
        return np.round((placed * self.size - 0.5) * 2**_SHIFT).astype(np.int32)

    def fill(self, outline: Points) -> Layer:
        """Draws a filled closed outline."""
        layer = np.zeros((self.size, self.size), np.uint8)
        cv2.fillPoly(layer, [self._pixels(outline)], 255, cv2.LINE_AA, _SHIFT)
        return layer.astype(np.float32) / 255

    def ellipse(self, centre: ArrayLike, half_axes: ArrayLike, degrees: float = 0.0) -> Layer:
        """Draws a filled ellipse with a given centre and half axes, rotated by an angle in degrees."""
        t, turn = np.linspace(0, 2 * np.pi, 48, endpoint=False), np.deg2rad(degrees)
        circle = np.stack([np.cos(t), np.sin(t)], 1) * half_axes
        turned = circle @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        return self.fill(turned + centre)

    def strokes(self, lines: list[Points], width: float) -> Layer:
        """Draws lines of one width, which is a fraction of the width of the image."""
        layer = np.zeros((self.size, self.size), np.uint8)
        thickness = max(1, round(width * self.size))
        cv2.polylines(layer, [self._pixels(line) for line in lines], False, 255, thickness, cv2.LINE_AA, _SHIFT)
        return layer.astype(np.float32) / 255

    def blurred(self, layer: Layer, sigma: float) -> Layer:
        """Applies a Gaussian blur, whose sigma is a fraction of the width of the image."""
        return cv2.GaussianBlur(layer, (0, 0), max(sigma * self.size, 0.3))

    def noise(self, cells: int, rng: np.random.Generator) -> Layer:
        """Draws a smooth random field from `cells` x `cells` nodes of unit variance."""
        field = rng.standard_normal((cells, cells), dtype=np.float32)
        return cv2.resize(field, (self.size, self.size), interpolation=cv2.INTER_CUBIC)

    def enlarged(self, layer: Layer, size: int) -> Layer:
        """Resizes a layer to another size, pixels."""
        return cv2.resize(layer, (size, size), interpolation=cv2.INTER_LINEAR)


def _soft_tissue(body: _Anatomy, canvas: _Canvas, rng: np.random.Generator) -> Layer:
    """Draws the chest wall and the abdomen, and sometimes arms and gas below the diaphragm."""
    trunk = canvas.blurred(canvas.fill(body.outline), 0.008)
    rows = np.linspace(0, 1, canvas.size, dtype=np.float32)[:, None]
    layer = trunk * (rng.uniform(0.42, 0.6) + rng.uniform(0.0, 0.12) * rows)
    if rng.random() < 0.6:
        layer = np.maximum(layer, _arms(body, canvas, rng))
    abdomen = np.array([(-0.2, body.base - 0.06), (1.2, body.base - 0.06), (1.2, 1.4), (-0.2, 1.4)])
    layer += trunk * canvas.blurred(canvas.fill(abdomen), 0.03) * rng.uniform(0.02, 0.14)
    for _ in range(int(rng.integers(0, 4))):
        place = (rng.uniform(0.35, 0.8), body.base + rng.uniform(0.0, 0.2))
        gas = canvas.ellipse(place, rng.uniform(0.025, 0.08, 2), rng.uniform(0, 90))
        layer -= canvas.blurred(gas, 0.012) * trunk * rng.uniform(0.05, 0.25)
    return layer


def _arms(body: _Anatomy, canvas: _Canvas, rng: np.random.Generator) -> Layer:
    """Draws the upper arms beside the chest, each with its bone."""
    layer = np.zeros((canvas.size, canvas.size), np.float32)
    shoulder, swing, thick = body.outline[:, 0].max() - 0.5, rng.uniform(0.02, 0.16), rng.uniform(0.09, 0.13)
    for side in (-1, 1):
        line = np.array(
            [(shoulder - 0.04, 0.1), (shoulder - 0.01, 0.24), (shoulder + swing, 0.62), (shoulder + swing, 1.3)]
        )
        line = _spline(line * (side, 1) + (0.5, body.apex - 0.02), closed=False)
        layer += 0.42 * canvas.blurred(canvas.strokes([line], thick), 0.008)
        layer += body.bone * canvas.blurred(canvas.strokes([line], 0.045) - 0.4 * canvas.strokes([line], 0.025), 0.003)
    return layer


def _lung_field(body: _Anatomy, canvas: _Canvas, aeration: NDArray[np.float64], rng: np.random.Generator) -> Layer:
    """Draws the attenuation inside the lungs: air reduces it, vessels and opacities increase it."""
    columns = np.linspace(0, 1, canvas.size, dtype=np.float32)[None, :]
    right = 1 / (1 + np.exp((columns - 0.5) * 40))
    layer = np.broadcast_to(-(aeration[0] * right + aeration[1] * (1 - right)), (canvas.size, canvas.size)).astype(
        np.float32
    )
    layer = layer * (1 + 0.08 * canvas.noise(6, rng) + 0.05 * canvas.noise(24, rng) + 0.04 * canvas.noise(64, rng))
    vessels: dict[float, list[Points]] = {0.007: [], 0.003: []}
    for side in (-1, 1):
        for _ in range(int(rng.integers(24, 36))):
            hilum = np.array([0.5 + side * (body.gap + 0.02), body.apex + 0.45 * (body.base - body.apex)])
            angle = rng.uniform(-1.4, 1.4)
            outward = np.array([side * np.cos(angle), np.sin(angle)])
            far = rng.uniform(0, 1)
            steps = np.cumsum(rng.normal(0, 0.3, 6)) + angle
            path = np.cumsum(np.stack([side * np.cos(steps), np.sin(steps)], 1) * rng.uniform(0.012, 0.028), 0)
            path += hilum + outward * far * 0.13 + rng.normal(0, 0.012, 2)
            vessels[0.007 if far < 0.25 else 0.003].append(_spline(path, closed=False))
    strength = rng.uniform(0.03, 0.09)
    for width, lines in vessels.items():
        layer += strength * canvas.blurred(canvas.strokes(lines, width), 0.003)
    for outline in body.lungs:
        if rng.random() < 0.3:
            low, high = outline.min(0), outline.max(0)
            place = low + (high - low) * rng.uniform((0.2, 0.15), (0.8, 0.85))
            blob = canvas.ellipse(place, rng.uniform(0.03, 0.09, 2), rng.uniform(0, 180))
            cloud = canvas.blurred(blob, 0.02) * np.clip(1 + 0.5 * canvas.noise(20, rng), 0, None)
            layer += rng.uniform(0.08, 0.24) * cloud
    # A ray through the heart passes little air, so the shadow of the heart hides vessels and most of the inner border
    # of the lung.
    return layer * (1 - rng.uniform(0.5, 0.85) * canvas.blurred(canvas.fill(body.heart), 0.006))


def _in_front(body: _Anatomy, canvas: _Canvas, rng: np.random.Generator) -> Layer:
    """Draws mediastinum, heart, aortic knob, windpipe, hila and breasts, which cover parts of the lungs."""
    rows = np.linspace(body.apex - 0.3, 1.2, 9)
    edge = body.gap + rng.uniform(0.005, 0.02) + 0.02 * np.sin(np.linspace(0, 3, 9)) + rng.normal(0, 0.004, 9)
    column = np.concatenate([np.stack([0.5 - edge, rows], 1), np.stack([0.5 + edge, rows], 1)[::-1]])
    layer = canvas.blurred(canvas.fill(_spline(column, closed=True)), 0.006) * rng.uniform(0.1, 0.2)
    layer += canvas.blurred(canvas.fill(body.heart), 0.006) * rng.uniform(0.02, 0.08)
    knob = canvas.ellipse((0.5 + body.gap, body.apex + 0.24), (0.03, 0.035))
    layer += canvas.blurred(knob, 0.006) * rng.uniform(0.03, 0.1)
    windpipe = np.array([(0.5, body.apex - 0.2), (0.505, body.apex + 0.05), (0.5, body.apex + 0.24)])
    layer -= canvas.blurred(canvas.strokes([windpipe], 0.03), 0.005) * rng.uniform(0.04, 0.12)
    for side in (-1, 1):
        place = (0.5 + side * (body.gap + 0.03), body.apex + (0.42 + 0.03 * side) * (body.base - body.apex))
        hilum = canvas.ellipse(place, rng.uniform((0.02, 0.03), (0.035, 0.06)), -20 * side)
        layer += canvas.blurred(hilum, 0.01) * rng.uniform(0.03, 0.12)
    if rng.random() < 0.4:
        strength = rng.uniform(0.04, 0.1)
        for side in (-1, 1):
            breast = canvas.ellipse((0.5 + side * 0.2, body.base - rng.uniform(0.1, 0.16)), (0.15, 0.13), -15 * side)
            layer += canvas.blurred(breast, 0.008) * strength
    return layer


def _bones(body: _Anatomy, canvas: _Canvas, rng: np.random.Generator) -> Layer:
    """Draws spine, posterior and anterior ribs, clavicles and shoulder blades."""
    height = body.base - body.apex
    reach = body.gap + body.width
    behind: list[Points] = []
    front: list[Points] = []
    t = np.linspace(0, 1, 9)
    for side in (-1, 1):
        for number in range(body.rib_count):
            level = number / (body.rib_count - 1)
            y = body.apex - 0.05 + 0.92 * height * level
            out = reach * (0.55 + 0.5 * np.sqrt(min(level * 1.6, 1.0)))
            arch = 0.03 + 0.02 * level
            x = 0.5 + side * (0.025 + (out - 0.025) * np.sin(t * np.pi / 2))
            behind.append(np.stack([x, y - arch * np.sin(t * np.pi * 0.7) + body.rib_drop * (1 + level) * t**2], 1))
            if 1 < number < body.rib_count - 1:
                x = 0.5 + side * (out - (out - reach * 0.4) * t)
                y_front = y + body.rib_drop * (1 + level) + 0.17 * height * t**0.8 - 0.02 * np.sin(np.pi * t)
                front.append(np.stack([x, y_front], 1))
    thick = rng.uniform(0.016, 0.022)
    layer = body.bone * (canvas.strokes(behind, thick) - 0.55 * canvas.strokes(behind, thick * 0.6))
    layer += 0.55 * body.bone * (canvas.strokes(front, thick * 1.15) - 0.5 * canvas.strokes(front, thick * 0.75))

    spine_x, spine = 0.5 + rng.normal(0, 0.004), []
    for y in np.arange(body.apex - 0.15, 1.1, 0.055):
        spine.append(np.array([(spine_x - 0.024, y), (spine_x + 0.024, y)]))
    layer += 0.5 * body.bone * canvas.strokes(spine, 0.04)
    rise, tilt = rng.uniform(0.0, 0.05), rng.uniform(-0.03, 0.02)
    collar = [
        _spline(
            np.array(
                [
                    (0.5 + side * 0.03, body.apex + 0.06),
                    (0.5 + side * 0.12, body.apex + 0.045 - rise / 2),
                    (0.5 + side * 0.22, body.apex + 0.03 + tilt - rise / 2),
                    (0.5 + side * (reach + 0.03), body.apex + 0.03 - rise),
                ]
            ),
            closed=False,
        )
        for side in (-1, 1)
    ]
    layer += 1.1 * body.bone * (canvas.strokes(collar, 0.028) - 0.35 * canvas.strokes(collar, 0.018))
    inward = rng.uniform(-0.05, 0.03)
    for side in (-1, 1):
        blade = np.array([(-0.03, 0.02), (0.06, 0.03), (0.07, 0.12), (0.0, 0.29), (-0.035, 0.2)])
        blade = blade * (side, 1) + (0.5 + side * (reach - inward), body.apex + 0.03)
        layer += 0.45 * body.bone * canvas.fill(_spline(blade, closed=True))
    return layer


def _devices(canvas: _Canvas, rng: np.random.Generator) -> Layer:
    """Draws a random choice of electrodes with leads, a tube and a pacemaker, which are bright, thin and sharp."""
    layer = np.zeros((canvas.size, canvas.size), np.float32)
    kind = rng.random(3)
    if kind[0] < 0.6:
        for _ in range(int(rng.integers(1, 4))):
            ends = rng.uniform((0.15, 0.05), (0.85, 0.95), (4, 2))
            wire = _spline(ends[np.argsort(ends[:, 1])], closed=False)
            layer += rng.uniform(0.1, 0.25) * canvas.strokes([wire], 0.004)
            layer += rng.uniform(0.1, 0.25) * canvas.ellipse(ends[0], (0.012, 0.012))
    if kind[1] < 0.4:
        tube = np.array([(0.5, -0.1), (0.505, 0.1), (0.497, 0.3), (0.51, rng.uniform(0.4, 0.95))])
        layer += rng.uniform(0.08, 0.2) * canvas.strokes([_spline(tube, closed=False)], 0.007)
    if kind[2] < 0.3:
        x, y = 0.5 + rng.choice([-1, 1]) * rng.uniform(0.2, 0.28), rng.uniform(0.22, 0.3)
        layer += rng.uniform(0.3, 0.5) * canvas.ellipse((x, y), (0.045, 0.04), rng.uniform(0, 90))
        lead = np.array([(x, y), ((x + 0.5) / 2, y - 0.03), (0.52, 0.35), (0.56, 0.68)])
        layer += 0.25 * canvas.strokes([_spline(lead, closed=False)], 0.005)
    return layer


def _expose(attenuation: Layer, canvas: _Canvas, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Converts attenuation to grey values with window, gamma, gradient, blur, noise, a side marker and collimation."""
    low, high = rng.uniform(-0.08, 0.06), rng.uniform(0.8, 1.05)
    ramp = np.linspace(-0.5, 0.5, canvas.size, dtype=np.float32)
    shade = rng.normal(0, 0.06) * ramp[None, :] + rng.normal(0, 0.06) * ramp[:, None]
    image = np.clip((attenuation + shade - low) / (high - low), 0, 1)
    image = cv2.pow(image, float(rng.uniform(0.65, 1.5)))
    if rng.random() < 0.5:
        image = canvas.blurred(image, rng.uniform(0.0005, 0.0025))
    grain = rng.standard_normal((canvas.size, canvas.size), dtype=np.float32)
    image += rng.uniform(0.004, 0.025) * grain + rng.uniform(0.0, 0.012) * canvas.noise(max(canvas.size // 4, 8), rng)
    image = rng.uniform(0.0, 0.08) + image * rng.uniform(0.8, 0.95)
    pixels = np.clip(image * 255, 0, 255).astype(np.uint8)
    if rng.random() < 0.7:
        corner = (int(rng.choice([0.05, 0.88]) * canvas.size), int(rng.uniform(0.08, 0.16) * canvas.size))
        scale, thick = canvas.size * rng.uniform(0.0015, 0.003), max(1, round(canvas.size * 0.005))
        cv2.putText(
            pixels, str(rng.choice(["R", "L"])), corner, cv2.FONT_HERSHEY_SIMPLEX, scale, 245, thick, cv2.LINE_AA
        )
    if rng.random() < 0.4:
        window = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) + rng.uniform(0.0, 0.06, (4, 2)) * (
            (1, 1),
            (-1, 1),
            (-1, -1),
            (1, -1),
        )
        field = np.zeros_like(pixels)
        cv2.fillPoly(field, [np.round(window * canvas.size).astype(np.int32)], 255)
        pixels[field == 0] = int(rng.integers(0, 12))
    return pixels
