"""Segmentation networks: their construction, pretrained encoder weights, cost, and export."""

from lungseg_ray.models.cost import Cost, cost
from lungseg_ray.models.export import export, load_export
from lungseg_ray.models.factory import (
    as_outputs,
    build,
    check,
    find_unused_parameters,
    freeze_unused_parameters,
    known_encoder,
    memory_format,
    output_layers,
    resolve_encoder,
)
from lungseg_ray.models.menu import MENU

__all__ = [
    "MENU",
    "Cost",
    "as_outputs",
    "build",
    "check",
    "cost",
    "export",
    "find_unused_parameters",
    "freeze_unused_parameters",
    "known_encoder",
    "load_export",
    "memory_format",
    "output_layers",
    "resolve_encoder",
]
