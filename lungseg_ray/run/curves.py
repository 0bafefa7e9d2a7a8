"""The curves of a run as a picture."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from lungseg_ray.imaging import figure_png
from lungseg_ray.run.progress import History, rank_epochs


def curves(history: History) -> bytes:
    """Draws loss, validation IoU and Dice, and the learning rate, against the epoch.

    Args:
        history: A row for each epoch, as in `history.csv`.

    Returns:
        A PNG file.
    """
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(12, 3.6), dpi=110, layout="constrained")
    loss, quality, rate = figure.subplots(1, 3)
    loss.plot(epochs, [row["loss"] for row in history], label="training")
    loss.plot(epochs, [row["val_loss"] for row in history], label="validation")
    loss.set_title("Loss: Dice + weighted BCE")
    quality.plot(epochs, [row["val_dice"] for row in history], label="Dice")
    quality.plot(epochs, [row["val_iou"] for row in history], label="IoU")
    quality.set_title("Validation, mean over images")
    rate.plot(epochs, [row["lr"] for row in history], label="decoder and head")
    rate.plot(epochs, [row["encoder_lr"] for row in history], label="encoder", linestyle="--")
    rate.set_yscale("log")
    # By default, powers of ten are written as formulas, which `figure_png` does not read.
    for set_formatter in (rate.yaxis.set_major_formatter, rate.yaxis.set_minor_formatter):
        set_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.4)))
    rate.set_title("Learning rate at the epoch's start")
    best = rank_epochs(history)[0]["epoch"]
    for axis in (loss, quality):
        axis.axvline(best, color="0.6", linewidth=0.8, linestyle=":")
    for axis in (loss, quality, rate):
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    return figure_png(figure)
