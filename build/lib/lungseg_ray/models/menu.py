"""The encoders that the project offers; each is tested with U-Net and U-Net++, and measured in docs/encoders.md."""

from collections.abc import Mapping

MENU: Mapping[str, tuple[str, ...]] = {
    "ResNet": ("resnet18", "resnet34"),
    "ResNeXt": ("resnext50_32x4d",),
    "ResNeSt": ("timm-resnest14d", "timm-resnest200e"),
    "Res2Net": ("timm-res2net50_26w_4s",),
    "RegNet": ("timm-regnety_002", "timm-regnety_004"),
    # GERNet-S is left out because it is not safe in channels last on CPUs; see `memory_format`.
    "GERNet": ("timm-gernet_m",),
    "SE-Net": ("se_resnet50",),
    "SK-Net": ("timm-skresnet18",),
    "DenseNet": ("densenet121",),
    "Inception": ("inceptionv4",),
    "EfficientNet": ("efficientnet-b0",),
    "MobileNet": ("mobilenet_v2", "timm-mobilenetv3_large_100"),
    "DPN": ("dpn68",),
    "VGG": ("vgg11",),
    "Xception": ("xception",),
}
"""The menu lists one or two encoders of each of the 15 families that the published recipe compares.

Keys are the names of the families, and values the names of encoders, as for `build`.
"""
