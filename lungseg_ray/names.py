"""Names of architectures and augmentation presets, as settings may have them; in a file that imports nothing."""

from typing import Literal

ARCHITECTURES = ("Unet", "UnetPlusPlus", "FPN", "DeepLabV3", "DeepLabV3Plus", "Linknet", "MAnet", "PraNet", "U2Net")
"""Architectures that `lungseg_ray.models.build` builds."""

OWN_ARCHITECTURES = ("PraNet", "U2Net")
"""Architectures that segmentation_models_pytorch lacks."""

WITH_DECODER_CHANNELS = ("Unet", "UnetPlusPlus", "MAnet")
"""Architectures whose decoder has five stages, the channels of which may be set."""

Fit = Literal["stretch", "pad"]
"""The ways in which an image that is not square becomes so: it is stretched, or gets black borders."""

Flips = Literal["none", "horizontal", "all"]
"""The mirror images over which a prediction may be averaged: the left-right one, or the four of both axes."""

Format = Literal["onnx", "torch-export", "torchscript"]
"""The formats of files in which a model leaves for other programs."""

PRESETS = ("valid", "light", "medium", "heavy", "chest", "chest_robust")
"""Augmentation presets that `lungseg_ray.feed.augment.build_augmentation` builds."""

BACKGROUND_NAMES = ("background", "bg", "none", "void", "unlabelled", "unlabeled")
"""Names that stand for label 0, in lower case."""
