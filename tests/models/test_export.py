import json
import socket
from pathlib import Path

import pytest
import torch
from segmentation_models_pytorch.base import SegmentationModel

from lungseg_ray.errors import UserError
from lungseg_ray.models import build, export, load_export
from lungseg_ray.names import ARCHITECTURES, WITH_DECODER_CHANNELS
from tests.inference.helpers import logits_without_this_project


def test_the_export_opens_in_the_library_without_a_network(tmp_path: Path) -> None:
    model: SegmentationModel = build(architecture="UnetPlusPlus", encoder="timm-regnety_002", in_channels=1, classes=2)
    model.to(memory_format=torch.channels_last)
    model.config["encoder_weights"] = "imagenet"
    model.config["pretrained_cfg_overlay"] = {"file": "/gone"}
    images = torch.rand(2, 1, 64, 64)
    model(images)  # BatchNorm's buffers leave their initial values
    model.eval()
    export(model, tmp_path / "best")

    with torch.no_grad():
        expected = model(images)
        opened = load_export(tmp_path / "best")
        torch.testing.assert_close(opened(images), expected, atol=1e-6, rtol=0)
    found = logits_without_this_project(str(tmp_path / "best"), images)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert not opened.training
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in model.state_dict().items())
    assert model.config["encoder_weights"] == "imagenet"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_comes_back(tmp_path: Path, architecture: str, capsys: pytest.CaptureFixture[str]) -> None:
    light = (32, 16, 16, 8, 8) if architecture in WITH_DECODER_CHANNELS else None
    encoder = "rsu_small" if architecture == "U2Net" else "resnet18"
    model = build(architecture=architecture, encoder=encoder, in_channels=3, classes=1, decoder_channels=light).eval()
    export(model, tmp_path)
    opened = load_export(tmp_path)
    assert type(opened) is type(model)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(opened(images), model(images))
    assert capsys.readouterr().out == ""


def test_a_later_export_replaces_an_earlier_one(tmp_path: Path) -> None:
    export(build(architecture="Unet", encoder="resnet18", in_channels=1, classes=1), tmp_path)
    export(build(architecture="FPN", encoder="resnet18", in_channels=3, classes=1), tmp_path)
    assert type(load_export(tmp_path)).__name__ == "FPN"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config.json and no model.safetensors"):
        load_export(tmp_path)


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    export(build(architecture="Unet", encoder="resnet18", in_channels=1, classes=1), tmp_path)
    config = (tmp_path / "config.json").read_text()
    export(build(architecture="FPN", encoder="resnet18", in_channels=1, classes=1), tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match="do not fit together"):
        load_export(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="do not fit together"):
        load_export(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_weights": "imagenet"}, "found encoder_weights = imagenet"),
        ({"encoder_name": "tu-hf-hub:someone/something"}, "There is no encoder"),
        ({"encoder_name": "tu-hf_hub:someone/something"}, "There is no encoder"),
        ({"encoder_name": ["resnet18"]}, "There is no encoder"),
        ({"_model_class": "Segformer"}, "expected one of Unet"),
        ({"_model_class": ["Unet"]}, "expected one of Unet"),
        ({"activation": "softmax"}, "found activation = softmax"),
        ({"pretrained": True}, "found pretrained"),
        ({"pretrained_cfg_overlay": {"hf_hub_id": "someone/something"}}, "found pretrained_cfg_overlay"),
    ],
)
def test_what_a_configuration_may_not_say(
    change: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(build(architecture="Unet", encoder="resnet18", in_channels=1, classes=1), tmp_path)
    place = tmp_path / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | change))
    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *names, **_: asked.append(names))
    with pytest.raises(UserError, match=message):
        load_export(tmp_path)
    assert asked == []
