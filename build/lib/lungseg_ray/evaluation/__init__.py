"""A trained model over images with masks: figures, summary, contact sheet."""
