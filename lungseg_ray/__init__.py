"""Distributed training of medical image segmentation on Ray."""

import os

# albumentations asks the network for a newer release when it is imported; an air-gapped node would wait for it.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Ray Data reads this when it is imported; a run prints a line for each epoch, and Ray's own chatter would bury it.
os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")

__version__ = "0.1.0"
