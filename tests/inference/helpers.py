"""Small exported models that several test modules share, and another program that opens them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lungseg_ray.run.exported import Sidecar, save_model
from lungseg_ray.storage import Location
from lungseg_ray.training.model import build_model
from tests.helpers import make_settings

OPEN_WITHOUT_THIS_PROJECT = """
import sys
sys.modules["lungseg_ray"] = None
import segmentation_models_pytorch as smp
import torch
folder, images, logits = sys.argv[1:]
model = smp.from_pretrained(folder).eval()
with torch.inference_mode():
    torch.save(model(torch.load(images, weights_only=True)), logits)
assert not [name for name, module in sys.modules.items() if name.startswith("lungseg_ray") and module]
"""


def make_sidecar(*, classes: int = 1, **change: Any) -> Sidecar:
    """The sidecar of a model for images of 32 x 32 pixels; `change` overrides single fields."""
    plain = {
        "size": 32,
        "channels": 1,
        "longer_side": 1024,
        "classes": classes,
        "class_names": ["lung"] if classes == 1 else [f"label {label}" for label in range(1, classes)],
        "threshold": 0.5,
    }
    return Sidecar.model_validate({**plain, **change})


def save_small_model(place: Location, model: nn.Module | None = None, **change: Any) -> None:
    """Saves a model as a run leaves it; without one, that of `make_settings` with random weights.

    Args:
        place: the folder.
        model: the model.
        change: fields of its sidecar that differ from those of `make_sidecar`.
    """
    save_model(place, model or build_model(make_settings()), make_sidecar(**change), "# A card\n")


def logits_without_this_project(folder: str, images: torch.Tensor) -> torch.Tensor:
    """What a program that has neither this project nor a network computes with an exported model."""
    with tempfile.TemporaryDirectory() as scratch:
        before, after = Path(scratch) / "images.pt", Path(scratch) / "logits.pt"
        torch.save(images, before)
        command = [sys.executable, "-c", OPEN_WITHOUT_THIS_PROJECT, folder, str(before), str(after)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run(command, env=environment, cwd=scratch, check=True, timeout=120)
        logits: torch.Tensor = torch.load(after, weights_only=True)
        return logits
