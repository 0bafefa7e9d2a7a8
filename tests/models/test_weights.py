from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn

from lungseg_ray.errors import UserError
from lungseg_ray.models import build, weights


def unet(encoder: str, encoder_weights: object, in_channels: int = 1) -> nn.Module:
    return build(
        architecture="Unet", encoder=encoder, in_channels=in_channels, classes=1, encoder_weights=str(encoder_weights)
    )


def donor_of(encoder: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], str]:
    """A published file's content, the state it should give an encoder of three channels, its first convolution."""
    if encoder == "resnet18":
        smp_encoder = get_encoder("resnet18", in_channels=3, weights=None)
        state = {
            name: torch.rand_like(value.float()).to(value.dtype) for name, value in smp_encoder.state_dict().items()
        }
        return {**state, "fc.weight": torch.rand(1000, 512)}, state, "conv1.weight"
    whole = timm.create_model("regnety_002", pretrained=False)
    state = {name: torch.rand_like(value.float()).to(value.dtype) for name, value in whole.state_dict().items()}
    body = {f"model.{name}": value for name, value in state.items() if not name.startswith("head.")}
    return state, body, "model.stem.conv.weight"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("encoder", ["resnet18", "tu-regnety_002"])
def test_weights_from_a_file(tmp_path: Path, encoder: str, suffix: str) -> None:
    content, expected, first = donor_of(encoder)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save({"state_dict": {f"module.{name}": value for name, value in content.items()}, "epoch": 3}, path)

    grey = unet(encoder, path).get_submodule("encoder").state_dict()
    assert grey.keys() == expected.keys()
    torch.testing.assert_close(grey.pop(first), expected[first].sum(dim=1, keepdim=True))
    assert all(torch.equal(value, expected[name]) for name, value in grey.items())

    colour = unet(encoder, path, in_channels=3).get_submodule("encoder").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in colour.items())


def test_weights_from_a_whole_segmentation_model(tmp_path: Path) -> None:
    donor = unet("tu-regnety_002", "none")
    save_file(donor.state_dict(), tmp_path / "model.safetensors")
    found = unet("tu-regnety_002", tmp_path / "model.safetensors").get_submodule("encoder").state_dict()
    assert all(torch.equal(value, found[name]) for name, value in donor.get_submodule("encoder").state_dict().items())


def test_a_file_of_another_encoder_is_refused_with_counts(tmp_path: Path) -> None:
    content, _, _ = donor_of("resnet18")
    save_file(content, tmp_path / "resnet18.safetensors")
    with pytest.raises(
        UserError, match=r"tu-regnety_002: of its \d+ tensors, \d+ are missing and 0 have another shape"
    ):
        unet("tu-regnety_002", tmp_path / "resnet18.safetensors")
    # ResNet-34 has ResNet-18's tensors and more.
    with pytest.raises(UserError, match=r"resnet34: of its \d+ tensors, 80 are missing and 0 have another shape"):
        unet("resnet34", tmp_path / "resnet18.safetensors")


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    content, _, _ = donor_of("resnet18")
    save_file({**content, "layer1.0.conv1.weight": torch.zeros(32, 64, 3, 3)}, tmp_path / "wrong.safetensors")
    with pytest.raises(
        UserError, match=r"1 have another shape.*layer1.0.conv1.weight \(64, 64, 3, 3\) \(file: \(32, 64"
    ):
        unet("resnet18", tmp_path / "wrong.safetensors")


class Pickled:
    """Not a tensor: opening it would run its code."""


@pytest.mark.parametrize("name", ["text.safetensors", "text.pth", "pickle.pth"])
def test_an_unreadable_file_is_refused(tmp_path: Path, name: str) -> None:
    if name == "pickle.pth":
        torch.save({"conv1.weight": Pickled()}, tmp_path / name)
    else:
        (tmp_path / name).write_text("not weights")
    with pytest.raises(UserError, match=f"{name}: cannot be read as a weights file"):
        unet("resnet18", tmp_path / name)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.pth.*imagenet, .*none or the path"):
        unet("resnet18", tmp_path / "missing.pth")


def test_weights_that_nobody_published_are_refused() -> None:
    with pytest.raises(UserError, match=r"dpn68b has no weights named 'imagenet', only imagenet\+5k"):
        unet("dpn68b", "imagenet")


class NoNetwork:
    def head(self, url: str, *, timeout: float) -> None:
        raise ConnectionError("no route to host")


@pytest.mark.parametrize("encoder", ["resnet18", "tu-regnety_002"])
def test_without_a_network_imagenet_weights_name_the_way_out(
    encoder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.get_session", NoNetwork)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(UserError, match=rf"encoder {encoder}.*cannot be reached: no route to host.*give its path"):
        unet(encoder, "imagenet")


@pytest.mark.parametrize("encoder", ["resnet18", "tu-regnety_002"])
def test_published_weights_reach_the_model(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []

    def fetch(name: str, *, in_channels: int, weights: object) -> nn.Module:
        assert weights in ("imagenet", True)
        made.append(get_encoder(name, in_channels=in_channels, weights=None))
        return made[-1]

    monkeypatch.setattr(weights, "get_encoder", fetch)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: "a file")
    found = unet(encoder, "imagenet").get_submodule("encoder").state_dict()
    assert all(torch.equal(value, found[name]) for name, value in made[0].state_dict().items())
