"""Segmentation networks: build one, start it from pretrained weights, and hand it on."""

from lungseg_ray.models.export import export, load_export
from lungseg_ray.models.factory import (
    ARCHITECTURES,
    build,
    check,
    find_unused_parameters,
    freeze_unused_parameters,
    resolve_encoder,
)

__all__ = [
    "ARCHITECTURES",
    "build",
    "check",
    "export",
    "find_unused_parameters",
    "freeze_unused_parameters",
    "load_export",
    "resolve_encoder",
]
