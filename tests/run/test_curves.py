from __future__ import annotations

import pytest

from lungseg_ray.run.curves import curves
from tests.evaluation.test_contact_sheet import decoded


@pytest.mark.parametrize("epochs", [1, 3])
def test_curves(epochs: int) -> None:
    row = {"loss": 0.5, "val_loss": 0.4, "val_dice": 0.8, "val_iou": 0.7, "lr": 1e-3, "encoder_lr": 1e-4}
    history = [{**row, "epoch": epoch, "val_loss": 0.4 / epoch} for epoch in range(1, epochs + 1)]
    height, width = decoded(curves(history)).shape[:2]
    assert (height, width) == (pytest.approx(396, abs=3), pytest.approx(1320, abs=3))
