"""Segmentation networks: build one, start it from pretrained weights, and hand it on."""

from lungseg_ray.models.cost import Cost, cost
from lungseg_ray.models.export import export, load_export
from lungseg_ray.models.factory import (
    ARCHITECTURES,
    build,
    check,
    find_unused_parameters,
    freeze_unused_parameters,
    memory_format,
    resolve_encoder,
)
from lungseg_ray.models.menu import MENU

__all__ = [
    "ARCHITECTURES",
    "MENU",
    "Cost",
    "build",
    "check",
    "cost",
    "export",
    "find_unused_parameters",
    "freeze_unused_parameters",
    "load_export",
    "memory_format",
    "resolve_encoder",
]
