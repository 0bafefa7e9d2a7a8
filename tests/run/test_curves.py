from __future__ import annotations

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from lungseg_ray.imaging import figure_png
from lungseg_ray.run import curves as module
from lungseg_ray.run.curves import curves
from tests.evaluation.test_contact_sheet import decoded


@pytest.mark.parametrize("epochs", [1, 3])
def test_curves(epochs: int) -> None:
    row = {"loss": 0.5, "val_loss": 0.4, "val_dice": 0.8, "val_iou": 0.7, "lr": 1e-3, "encoder_lr": 1e-4}
    history = [{**row, "epoch": epoch, "val_loss": 0.4 / epoch} for epoch in range(1, epochs + 1)]
    height, width = decoded(curves(history)).shape[:2]
    assert (height, width) == (pytest.approx(396, abs=3), pytest.approx(1320, abs=3))


def test_labels_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No text of a picture is read as a formula, so that none may be written as one, as labels of powers are."""
    drawn: list[Figure] = []

    def noted(figure: Figure) -> bytes:
        drawn.append(figure)
        return figure_png(figure)

    monkeypatch.setattr(module, "figure_png", noted)
    row = {"loss": 0.5, "val_loss": 0.4, "val_dice": 0.8, "val_iou": 0.7, "encoder_lr": 1e-4}
    curves([{**row, "epoch": epoch, "lr": rate} for epoch, rate in enumerate((1e-4, 3e-3, 1e-3), start=1)])
    texts = [text.get_text() for text in drawn[0].findobj(Text)]
    assert "1e\N{MINUS SIGN}03" in texts
    assert not [text for text in texts if "$" in text]
