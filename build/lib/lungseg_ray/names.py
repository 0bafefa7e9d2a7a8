"""Names of architectures and augmentation presets, as settings may have them; in a file that imports nothing."""

ARCHITECTURES = ("Unet", "UnetPlusPlus", "FPN", "DeepLabV3", "DeepLabV3Plus", "Linknet", "MAnet")
"""Architectures of segmentation_models_pytorch that `lungseg_ray.models.build` builds."""

PRESETS = ("valid", "light", "medium", "heavy", "chest")
"""Augmentation presets that `lungseg_ray.feed.augment.build_augmentation` builds."""
