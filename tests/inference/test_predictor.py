from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lungseg_ray.errors import UserError
from lungseg_ray.inference import predictor
from lungseg_ray.inference.predictor import Predictor
from lungseg_ray.names import Flips
from lungseg_ray.run.exported import CARD, SIDECAR
from lungseg_ray.storage import Location, locate
from lungseg_ray.training.model import build_model
from tests.helpers import make_settings
from tests.inference.helpers import logits_without_this_project, make_sidecar, save_small_model


class Columns(nn.Module):
    """Logits that are known: of channel 0 of one class, -inf-like on the left half and the opposite on the right."""

    def __init__(self, classes: int = 1) -> None:
        super().__init__()
        self.classes = classes
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images)
        n, _, height, width = images.shape
        logits = torch.full((n, self.classes, height, width), -20.0)
        if self.classes == 1:
            logits[:, 0, :, width // 2 :] = 20.0
        for label in range(self.classes if self.classes > 1 else 0):
            logits[:, label, :, label * width // self.classes : (label + 1) * width // self.classes] = 20.0
        return logits


def image(height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((height, width, 1), 51, np.uint8)


class TestCall:
    def test_own_size(self) -> None:
        model = Columns()
        found = Predictor([(model, make_sidecar())])([image(64, 96), image(40, 33)])
        assert [one.shape for one in found] == [(64, 96, 1), (40, 33, 1)]
        assert {one.dtype for one in found} == {np.dtype(np.float32)}
        # Network input: (2, 1, 32, 32) in [0, 1]; 51 / 255 = 0.2.
        assert model.seen[0].shape == (2, 1, 32, 32)
        torch.testing.assert_close(model.seen[0], torch.full((2, 1, 32, 32), 0.2))
        # The edge at column 16 of 32 is at 48 of 96.
        np.testing.assert_allclose(found[0][:, :46, 0], 0, atol=1e-6)
        np.testing.assert_allclose(found[0][:, 50:, 0], 1, atol=1e-6)

    def test_asked_size(self) -> None:
        found = Predictor([(Columns(), make_sidecar())])([image(64, 96), image(64, 96)], [(10, 20), (100, 8)])
        assert [one.shape for one in found] == [(10, 20, 1), (100, 8, 1)]
        assert (found[0][:, 11:] > 0.99).all()
        assert (found[0][:, :9] < 0.01).all()

    def test_three_classes(self) -> None:
        use = Predictor([(Columns(3), make_sidecar(size=96, classes=3))])
        found = use([image(96, 96)])[0]
        assert found.shape == (96, 96, 3)
        np.testing.assert_allclose(found.sum(axis=2), 1, atol=1e-5)
        labels = use.labels(found)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels[5], np.repeat([0, 1, 2], 32))

    def test_does_not_train(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).train()
        before = model.state_dict()["1.running_mean"].clone()
        first, second = (Predictor([(model, make_sidecar())])([image(8, 8)])[0] for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert torch.equal(model.state_dict()["1.running_mean"], before)


class Narrow(Columns):
    """A network for which the memory is enough for two images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        if len(images) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return logits


def test_batches_become_smaller_where_memory_is_short() -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 1), np.uint8)
    model = Narrow()
    (found,) = Predictor([(model, make_sidecar())]).maps([images], batch=7)
    np.testing.assert_array_equal(found, Predictor([(Columns(), make_sidecar())]).maps([images])[0])
    assert [len(seen) for seen in model.seen] == [7, 3, 1, 2, 4, 2, 2]


class Corner(nn.Module):
    """A logit for the last quarter of rows and columns that cross, and -20 elsewhere, whatever the image."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        n, _, height, width = images.shape
        logits = torch.full((n, 1, height, width), -20.0)
        logits[:, :, height // 2 :, width // 2 :] = self.logit
        return logits


def quarters(use: Predictor) -> list[list[float]]:
    """The probability in the middle of each quarter of an image of (64, 64)."""
    return use([image(64, 64)])[0][16::32, 16::32, 0].astype(float).round(6).tolist()


class TestMean:
    def test_of_models_with_inputs_of_their_own(self) -> None:
        # sigmoid(ln 3) = 0.75 and sigmoid(-ln 3) = 0.25 in the last quarter, 0 elsewhere.
        large, small = Corner(math.log(3)), Corner(-math.log(3))
        use = Predictor([(large, make_sidecar(size=64, threshold=0.3)), (small, make_sidecar(size=32, threshold=0.5))])
        assert quarters(Predictor([(large, make_sidecar(size=64))])) == [[0, 0], [0, 0.75]]
        assert quarters(use) == [[0, 0], [0, 0.5]]
        # Both models at their thresholds are just at the mean's: 0.3 and 0.5 are at 0.4.
        assert use.sidecar.threshold == pytest.approx(0.4)
        assert use([image(64, 64)])[0].dtype == np.float32

    @pytest.mark.parametrize(
        ("flips", "expected"),
        [
            ("none", [[0, 0], [0, 0.8]]),
            ("horizontal", [[0, 0], [0.4, 0.4]]),
            ("all", [[0.2, 0.2], [0.2, 0.2]]),
        ],
    )
    def test_of_mirror_images(self, flips: Flips, expected: list[list[float]]) -> None:
        # sigmoid(ln 4) = 0.8; each pass sees it in the last quarter of its own image.
        assert quarters(Predictor([(Corner(math.log(4)), make_sidecar())], flips=flips)) == expected

    def test_of_those_that_the_model_was_trained_to_be_used_with(self) -> None:
        side = make_sidecar(flips="horizontal")
        assert quarters(Predictor([(Corner(math.log(4)), side)])) == [[0, 0], [0.4, 0.4]]
        assert quarters(Predictor([(Corner(math.log(4)), side)], flips="none")) == [[0, 0], [0, 0.8]]

    def test_labels_of_sides_change_places(self) -> None:
        """A network that knows the left half of a picture from the right one, whatever it shows."""

        class Halves(nn.Module):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                maps = torch.zeros(len(images), 3, *images.shape[2:])
                half = images.shape[3] // 2
                maps[:, 1, :, :half] = maps[:, 2, :, half:] = 9.0
                return maps

        names = {"classes": 3, "class_names": ["left", "right"]}
        for pairs, least, most in (([(1, 2)], 0.99, 1.0), ([], 0.4, 0.6)):
            side = make_sidecar().model_copy(update={**names, "mirrored": pairs})
            (found,) = Predictor([(Halves(), side)], flips="horizontal")([np.zeros((8, 8, 1), np.uint8)])
            assert least <= found[0, 0, 1] <= most

    def test_labels_of_sides_change_places_in_reflections_alone(self) -> None:
        """A network that names a side by the handedness of the picture, of which a rotation changes nothing."""

        class Handed(nn.Module):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                ends = images[:, 0]
                down, right = ends[:, -1].mean(1) - ends[:, 0].mean(1), ends[:, :, -1].mean(1) - ends[:, :, 0].mean(1)
                maps = torch.zeros(len(images), 3, *images.shape[2:])
                for one, (kept, there) in zip(maps, zip(down * right > 0, images, strict=True), strict=True):
                    one[1 if kept else 2] = 9.0 * torch.ones_like(there[0])
                return maps

        rows, columns = np.indices((32, 32))
        picture = (20 + 3 * rows + 2 * columns).astype(np.uint8)[:, :, None]
        side = make_sidecar().model_copy(update={"classes": 3, "class_names": ["left", "right"], "mirrored": [(1, 2)]})
        (found,) = Predictor([(Handed(), side)], flips="all")([picture])
        assert found[:, :, 1].min() > 0.99

    @pytest.mark.parametrize("flips", ["horizontal", "all"])
    def test_each_pass_is_turned_back(self, flips: Flips) -> None:
        # A model that looks at single pixels does not see a flip.
        noise = np.random.default_rng(0).integers(0, 256, (32, 32, 1), np.uint8)
        plain, flipped = (
            Predictor([(nn.Identity(), make_sidecar())], flips=one)([noise])[0] for one in ("none", flips)
        )
        assert np.ptp(plain) > 0.2
        np.testing.assert_allclose(flipped, plain, atol=1e-6)


def test_labels_of_one_class() -> None:
    # (1, 4, 1): above the threshold alone is positive.
    probability = np.array([0.0, 0.3, 0.30001, 1.0], np.float32).reshape(1, 4, 1)
    use = Predictor([(Columns(), make_sidecar(threshold=float(np.float32(0.3))))])
    assert use.labels(probability).tolist() == [[0, 0, 1, 1]]
    assert Predictor([(Columns(), make_sidecar())]).labels(probability).tolist() == [[0, 0, 0, 1]]


def test_labels_of_three_classes() -> None:
    # (1, 3, 3): the largest, and the first of equal ones.
    probability = np.array([[[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.4, 0.4]]], np.float32)
    assert Predictor([(Columns(3), make_sidecar(classes=3))]).labels(probability).tolist() == [[0, 2, 1]]


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Location, nn.Module]:
    """A small network with fresh BatchNorm statistics, saved."""
    model = build_model(make_settings())
    with torch.no_grad():
        model.train()(torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    place = locate(str(tmp_path / "best"))
    save_small_model(place, model)
    return place, model.eval()


def test_saved_folder_opens_without_this_project(saved: tuple[Location, nn.Module]) -> None:
    place, model = saved
    assert {found.name for found, _ in place.list()} >= {
        "config.json",
        "model.safetensors",
        SIDECAR,
        CARD,
    }
    assert (place / CARD).read_text() == "# A card\n"
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(images)
    found = logits_without_this_project(place.path, images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_load(saved: tuple[Location, nn.Module]) -> None:
    place, model = saved
    use = predictor.load_predictor(place)
    assert use.sidecar == make_sidecar()
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 1), np.uint8)
    expected = Predictor([(model, make_sidecar())])([noise])[0]
    np.testing.assert_allclose(use([noise])[0], expected, atol=1e-5)
    assert predictor.load_predictor(place) is use


class TestLoadErrors:
    @pytest.fixture(autouse=True)
    def _forget(self) -> None:
        predictor.load_predictor.cache_clear()

    def test_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no trained model here \(preprocessing\.json is missing\)"):
            predictor.load_predictor(locate(str(tmp_path)))

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"size": "large"}'])
    def test_sidecar_unreadable(self, text: str, saved: tuple[Location, nn.Module]) -> None:
        place, _ = saved
        (place / SIDECAR).write_text(text)
        with pytest.raises(UserError, match=r"preprocessing\.json: cannot be read"):
            predictor.load_predictor(place)

    @pytest.mark.parametrize(
        "change",
        [
            {"size": 0},
            {"size": 10**12},
            {"scale": 0},
            {"threshold": 9},
            {"channels": 7},
            {"longer_side": -1},
            {"class_names": ["a", "b"]},
            {"mirrored": [[5, 9]]},
        ],
    )
    def test_sidecar_out_of_bounds(self, change: dict[str, Any], saved: tuple[Location, nn.Module]) -> None:
        place, _ = saved
        content = json.loads((place / SIDECAR).read_text())
        (place / SIDECAR).write_text(json.dumps({**content, **change}))
        with pytest.raises(UserError, match=r"preprocessing\.json: cannot be read"):
            predictor.load_predictor(place)

    def test_sidecar_that_is_no_text(self, saved: tuple[Location, nn.Module]) -> None:
        place, _ = saved
        (place / SIDECAR).write_bytes(b"\xff\xfe{}")
        with pytest.raises(UserError, match=r"preprocessing\.json: cannot be read"):
            predictor.load_predictor(place)

    @pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
    def test_file_missing(self, file: str, saved: tuple[Location, nn.Module]) -> None:
        place, _ = saved
        (place / file).delete()
        with pytest.raises(UserError, match=f"found no {file}"):
            predictor.load_predictor(place)

    def test_weights_of_another_model(self, saved: tuple[Location, nn.Module]) -> None:
        place, _ = saved
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**config, "classes": 2}))
        with pytest.raises(UserError, match="do not fit together"):
            predictor.load_predictor(place)


def test_a_full_folder_for_temporary_files(tmp_path: Path) -> None:
    program = """
import resource, sys
from lungseg_ray.models import build
from lungseg_ray.run.exported import Sidecar, save_model
from lungseg_ray.storage import locate
model = build(architecture="Unet", encoder="resnet18", in_channels=1, classes=1)
side = Sidecar(size=64, channels=1, longer_side=64, classes=1, class_names=["lung"], threshold=0.5)
# As on a full disk, no more can be written.
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    save_model(locate(sys.argv[1]), model, side, "card")
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "best")], capture_output=True, text=True)
    assert "cannot be written into the folder for temporary files" in done.stdout, done.stderr
    assert not (tmp_path / "best").exists()


@pytest.mark.parametrize(("height", "width"), [(40, 100), (100, 40), (61, 60), (64, 64)])
def test_padded_images_come_back_at_their_places(height: int, width: int) -> None:
    # A network that returns its input, so that the map of a picture is the picture, scaled.
    picture = np.zeros((height, width, 1), np.uint8)
    picture[height // 4 : height // 2, width // 4 : width // 2] = 255

    class Same(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images * 20 - 10

    use = Predictor([(Same(), make_sidecar(size=128, fit="pad"))])
    assert use.inputs([picture])[0].shape == (1, 128, 128, 1)
    found = use.labels(use([picture])[0])
    assert found.shape == (height, width)
    assert np.mean(found != (picture[:, :, 0] > 0)) < 0.02
    np.testing.assert_allclose(np.argwhere(found).mean(0), np.argwhere(picture[:, :, 0]).mean(0), atol=0.6)


def test_the_clean_up_of_a_model_can_be_left_out() -> None:
    marked = np.zeros((32, 32, 1), np.float32)
    for top in (2, 12, 22):
        marked[top : top + 4 + top // 8, 4:12] = 1.0
    use = Predictor([(nn.Identity(), make_sidecar(clean_up=True))])
    assert [len(np.unique(np.nonzero(use.labels(marked, clean_up=asked))[0])) for asked in (None, False)] == [11, 15]
    plain = Predictor([(nn.Identity(), make_sidecar())])
    assert [len(np.unique(np.nonzero(plain.labels(marked, clean_up=asked))[0])) for asked in (None, True)] == [15, 11]
