from itertools import product

import pytest
import torch

from lungseg_ray.errors import UserError
from lungseg_ray.models import (
    as_outputs,
    build,
    check,
    cost,
    find_unused_parameters,
    freeze_unused_parameters,
    memory_format,
    resolve_encoder,
)
from lungseg_ray.names import ARCHITECTURES, WITH_DECODER_CHANNELS

PAIRS = [
    *product(sorted({*ARCHITECTURES} - {"U2Net"}), ["tu-regnety_002", "resnet18", "mobilenet_v2"]),
    ("U2Net", "rsu_small"),
]


@pytest.mark.parametrize(("architecture", "encoder"), PAIRS)
def test_every_architecture_builds_runs_and_learns(architecture: str, encoder: str) -> None:
    check(architecture=architecture, encoder=encoder, in_channels=1, classes=3, size=64)
    model = build(architecture=architecture, encoder=encoder, in_channels=1, classes=3)
    unused = freeze_unused_parameters(model, in_channels=1, size=64)
    outputs = as_outputs(model(torch.randn(2, 1, 64, 64)))
    assert all(logits.shape == (2, 3, 64, 64) and logits.isfinite().all() for logits in outputs)
    assert len(outputs) == {"PraNet": 4, "U2Net": 7}.get(architecture, 1)
    torch.stack([logits.square().mean() for logits in outputs]).sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == set(unused)
    assert torch.equal(model.eval()(torch.ones(1, 1, 64, 64)), as_outputs(model(torch.ones(1, 1, 64, 64)))[0])


@pytest.mark.parametrize(("encoder", "millions"), [("rsu", 44.0), ("rsu_small", 1.13)])
def test_u2net_has_the_published_size(encoder: str, millions: float) -> None:
    with torch.device("meta"):
        model = build(architecture="U2Net", encoder=encoder, in_channels=3, classes=1)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_reverse_attention_looks_where_nothing_is_found() -> None:
    seen: list[torch.Tensor] = []
    model = build(architecture="PraNet", encoder="resnet18", in_channels=1, classes=1).eval()
    attention = model.get_submodule("decoder.reverse_attention.0")
    attention.get_submodule("layers").register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    feature = torch.ones(1, 512, 2, 2)
    with torch.no_grad():
        attention(feature, torch.tensor([[[[20.0, -20.0], [0.0, 20.0]]]]))
    torch.testing.assert_close(seen[0][0, 0], torch.tensor([[0.0, 1.0], [0.5, 0.0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("architecture", "encoder", "channels", "message"),
    [
        ("U2Net", "resnet18", None, "encoders of its own, rsu and rsu_small"),
        ("Unet", "rsu", None, "encoders of its own, rsu and rsu_small"),
        ("FPN", "resnet18", (64, 32, 16, 8, 8), "only those of Unet, UnetPlusPlus, MAnet"),
    ],
)
def test_a_pair_that_cannot_be(architecture: str, encoder: str, channels: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(architecture=architecture, encoder=encoder, decoder_channels=channels, size=64)


@pytest.mark.parametrize("architecture", WITH_DECODER_CHANNELS)
def test_a_light_decoder(architecture: str) -> None:
    usual, light = (
        cost(
            architecture=architecture,
            encoder="tu-regnety_004",
            in_channels=1,
            classes=1,
            size=64,
            decoder_channels=channels,
        )
        for channels in (None, (64, 32, 32, 16, 16))
    )
    assert light.gflops < 0.7 * usual.gflops
    assert light.parameters < usual.parameters


@pytest.mark.parametrize(
    ("architecture", "encoder", "unused"),
    [
        ("Unet", "resnet18", set()),
        ("UnetPlusPlus", "vgg11", {"decoder.center"}),
        ("Unet", "efficientnet-b0", {"encoder._conv_head", "encoder._bn1"}),
    ],
)
def test_unused_parameters_are_found_and_frozen(architecture: str, encoder: str, unused: set[str]) -> None:
    model = build(architecture=architecture, encoder=encoder, in_channels=1, classes=1)
    found = freeze_unused_parameters(model, in_channels=1, size=64)
    assert {".".join(name.split(".")[:2]) for name in found} == unused
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == found


def test_the_probe_leaves_no_trace() -> None:
    # MobileNet's architecture has BatchNorm, DeepLab's decoder draws for dropout.
    model = build(architecture="DeepLabV3", encoder="mobilenet_v2", in_channels=1, classes=1).eval()
    model.get_submodule("encoder").train()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    assert find_unused_parameters(model, in_channels=1, size=64) == []
    check(architecture="FPN", encoder="resnet18")
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "resolved"),
    [
        ("resnet34", "resnet34"),
        ("timm-regnety_004", "tu-regnety_004"),
        ("regnety_002", "tu-regnety_002"),
        ("tu-regnety_004", "tu-regnety_004"),
        ("timm-resnest200e", "tu-resnest200e"),
        ("timm-res2net50_26w_4s", "tu-res2net50_26w_4s"),
        ("timm-gernet_l", "tu-gernet_l"),
        ("timm-mobilenetv3_small_075", "tu-tf_mobilenetv3_small_075"),
        ("timm-skresnet18", "timm-skresnet18"),
        ("timm-efficientnet-b0", "timm-efficientnet-b0"),
        ("xception", "xception"),
        ("tu-regnety_002.pycls_in1k", "tu-regnety_002.pycls_in1k"),
    ],
)
def test_encoder_names_old_and_new(name: str, resolved: str) -> None:
    assert resolve_encoder(name) == resolved


# One of each family that the recipe names.
@pytest.mark.parametrize(
    "encoder",
    [
        "resnet34", "resnext50_32x4d", "timm-resnest200e", "timm-res2net50_26w_4s", "timm-regnety_004", "timm-gernet_s",
        "se_resnet50", "timm-skresnet18", "densenet121", "inceptionv4", "efficientnet-b0", "mobilenet_v2", "dpn68",
        "vgg11", "xception",
    ],
)  # fmt: skip
def test_every_family_of_the_recipe_fits_both_of_its_architectures(encoder: str) -> None:
    check(architecture="Unet", encoder=encoder)
    check(architecture="UnetPlusPlus", encoder=encoder)


def test_names_may_be_written_in_any_case() -> None:
    check(architecture="unetplusplus", encoder="resnet18")


@pytest.mark.parametrize(
    ("architecture", "encoder", "message"),
    [
        ("Unett", "resnet18", "no architecture 'Unett'. Did you mean Unet"),
        ("Unet", "resnt34", "no encoder 'resnt34'. Did you mean resnet34"),
        ("Unet", "ResNeSt-200e", "no encoder 'ResNeSt-200e'. Did you mean tu-resnest200e"),
        ("DeepLabV3", "vgg11", "DeepLabV3 does not work with encoder vgg11: .*dilated"),
        ("DeepLabV3", "densenet121", "does not work with encoder densenet121: .*dilated"),
        ("DeepLabV3", "inceptionv4", "does not work with encoder inceptionv4: .*dilated"),
        ("DeepLabV3", "xception", "does not work with encoder xception: .*dilated"),
        ("UnetPlusPlus", "tu-xception", "does not work with encoder tu-xception: Sizes of tensors must match"),
        ("Linknet", "mit_b0", "does not work with encoder mit_b0: .*not supported"),
        ("Unet", "tu-swin_tiny_patch4_window7_224", r"Input height \(256\) doesn't match model \(224\)"),
        ("Unet", "tu-vit_tiny_patch16_224", "Unsupported model downsampling pattern"),
    ],
)
def test_check_refuses_with_the_reason(architecture: str, encoder: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(architecture=architecture, encoder=encoder)


def test_one_image_in_a_pass() -> None:
    """DeepLabV3 pools each image to one pixel, of which no batch normalisation can be computed."""
    with pytest.raises(UserError, match=r"needs several images in a pass, found 1\. Raise feed\.batch to at least 2"):
        check(architecture="DeepLabV3", encoder="resnet18", size=64, images=1)
    check(architecture="DeepLabV3", encoder="resnet18", size=64, images=2)
    # A pair that reads values while it is built is checked without the meta device.
    with pytest.raises(UserError, match="to a single pixel"):
        check(architecture="DeepLabV3Plus", encoder="mit_b0", size=64, images=1)
    check(architecture="Unet", encoder="resnet18", size=64, images=1)


def test_check_runs_what_the_meta_device_cannot() -> None:
    check(architecture="DeepLabV3", encoder="mit_b0", size=64)


def test_build_refuses_what_cannot_be_built() -> None:
    with pytest.raises(UserError, match="UnetPlusPlus does not work with encoder mit_b0"):
        build(architecture="UnetPlusPlus", encoder="mit_b0", in_channels=1, classes=1)


def test_what_would_overrun_memory_channels_last_is_trained_contiguous_on_cpus() -> None:
    with torch.device("meta"):
        model = build(architecture="Unet", encoder="timm-gernet_s", in_channels=1, classes=1)
    assert memory_format(model, device=torch.device("cpu")) == torch.contiguous_format
    assert memory_format(model, device=torch.device("cuda")) == torch.channels_last
