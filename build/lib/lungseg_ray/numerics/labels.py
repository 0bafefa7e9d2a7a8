"""The label value on which all modules have to agree."""

IGNORE_LABEL = 255
"""Pixels with this label are left out of losses, metrics and figures."""
