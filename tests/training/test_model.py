from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lungseg_ray.config import ModelSettings, Settings, SweepJob
from lungseg_ray.errors import UserError
from lungseg_ray.run.folder import BEST, Run
from lungseg_ray.storage import Location, locate
from lungseg_ray.training.loop import train_loop
from lungseg_ray.training.model import build_model, probe_size, with_start
from tests.helpers import make_settings
from tests.inference.helpers import save_small_model
from tests.training.test_loop import STEPS, Memory

HEAD = "segmentation_head."


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Location:
    """A run with an exported model, Linknet with timm-regnety_002 at 64 px, whose weights follow from seed 7."""
    folder = locate(str(tmp_path_factory.mktemp("before")))
    save_small_model(folder / BEST, build_model(make_settings(train={"seed": 7})), size=64)
    return folder


def settings_from(place: Location, **sections: Any) -> Settings:
    tree: dict[str, Any] = {"model": {"from": str(place)}, **sections}
    return Settings.model_validate(tree)


def new_run(folder: Path) -> Run:
    return Run(locate(str(folder)))


@pytest.mark.parametrize("inner", ["", f"/{BEST}"])
def test_all_weights_of_a_run_are_taken(before: Location, tmp_path: Path, inner: str) -> None:
    place = Location(f"{before.uri}{inner}")
    settings, said = with_start(settings_from(place), new_run(tmp_path).config)
    assert (settings.model.architecture, settings.model.encoder) == ("Linknet", "tu-regnety_002")
    assert settings.feed.size == 64
    assert said == f"Starting from the weights of {before / BEST}: Linknet with tu-regnety_002, trained at 64 px."
    trained = build_model(make_settings(train={"seed": 7})).state_dict()
    for key, value in build_model(settings).state_dict().items():
        assert torch.equal(value, trained[key]), key
    fresh = build_model(settings, pretrained=False).state_dict()
    assert any(not torch.equal(value, trained[key]) for key, value in fresh.items())


@pytest.mark.parametrize("corpus", [{"class_names": ["heart"]}, {"classes": 3, "class_names": ["left", "right"]}])
def test_other_classes_get_a_new_head(before: Location, tmp_path: Path, corpus: dict[str, Any]) -> None:
    settings, said = with_start(settings_from(before, corpus=corpus), new_run(tmp_path).config)
    assert said.endswith(f"It segments lung; its head is replaced by a new one for {', '.join(corpus['class_names'])}.")
    trained = build_model(make_settings(train={"seed": 7})).state_dict()
    fresh = build_model(settings, pretrained=False).state_dict()
    for key, value in build_model(settings).state_dict().items():
        assert torch.equal(value, (fresh if key.startswith(HEAD) else trained)[key]), key


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"architecture": "Unet"}}, "model.architecture is Linknet, and Unet is asked for"),
        ({"model": {"encoder": "resnet18"}}, "model.encoder is tu-regnety_002, and resnet18 is asked for"),
        ({"corpus": {"channels": 3}}, "corpus.channels is 1, and 3 is asked for"),
    ],
)
def test_what_does_not_fit_is_refused(
    before: Location, tmp_path: Path, sections: dict[str, dict[str, Any]], words: str
) -> None:
    model = {"from": str(before), **sections.get("model", {})}
    with pytest.raises(UserError, match=words):
        with_start(Settings.model_validate({**sections, "model": model}), new_run(tmp_path).config)


def test_what_is_asked_for_and_fits_is_kept(before: Location, tmp_path: Path) -> None:
    asked = {"model": {"from": str(before), "encoder": "timm-regnety_002"}, "feed": {"size": 96}}
    settings, _ = with_start(Settings.model_validate(asked), new_run(tmp_path).config)
    assert (settings.model.encoder, settings.feed.size) == ("timm-regnety_002", 96)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a finished run, or the folder of its model \(best/\)"):
        with_start(settings_from(locate(str(tmp_path))), new_run(tmp_path).config)


def test_a_run_that_has_begun_does_not_need_the_model(before: Location, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    settings, _ = with_start(settings_from(before), run.config)
    run.start(settings, fingerprint="f")
    run.write_history([])
    gone = settings_from(before)
    gone = gone.model_copy(update={"model": gone.model.model_copy(update={"start": locate("/gone")})})
    again, said = with_start(gone, run.config)
    assert said == ""
    assert (again.model.architecture, again.model.encoder, again.feed.size) == ("Linknet", "tu-regnety_002", 64)
    with pytest.raises(UserError, match=f"model.from: {before} -> /gone"):
        run.can_resume(again, fingerprint="f")


def test_the_loop_starts_from_the_model_and_resumes_without_it(before: Location, tmp_path: Path) -> None:
    settings = make_settings(model={"from": str(before)}, train={"epochs": 2}, optim={"lr": 1e-12, "encoder_lr": 1e-12})
    with pytest.raises(KeyboardInterrupt):
        train_loop(settings, steps_per_epoch=STEPS, runtime=Memory(tmp_path, stop_after=STEPS))
    trained = build_model(make_settings(train={"seed": 7})).state_dict()
    content = Memory(tmp_path).newest().weights
    learned = [key for key in content if key.endswith(".weight")]
    assert all(torch.allclose(content[key], trained[key], atol=1e-6) for key in learned)
    model = settings.model.model_copy(update={"start": locate("/gone")})
    progress = train_loop(settings.model_copy(update={"model": model}), steps_per_epoch=STEPS, runtime=Memory(tmp_path))
    assert progress.epoch == 2


def test_two_sources_of_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="from holds all weights"):
        ModelSettings.model_validate({"from": "runs/a", "weights": "imagenet"})


def test_a_sweep_cannot_search_what_the_model_has() -> None:
    space = {"model.encoder": {"grid": ["resnet18", "resnet34"]}}
    with pytest.raises(ValueError, match=r"model\.encoder cannot be searched"):
        SweepJob.model_validate({"model": {"from": "runs/a"}, "sweep": {"space": space}})


@pytest.mark.parametrize(
    ("architecture", "asked"), [("DeepLabV3", None), ("Unet", [256, 128, 64, 32, 16]), ("Unet", None)]
)
def test_widths_that_an_architecture_has_by_itself(tmp_path: Path, architecture: str, asked: list[int] | None) -> None:
    place = locate(str(tmp_path / "before"))
    made = make_settings(model={"architecture": architecture, "encoder": "resnet18"})
    save_small_model(place / BEST, build_model(made), size=64)
    settings, _ = with_start(
        settings_from(place, model={"from": str(place), "decoder_channels": asked}), new_run(tmp_path / "new").config
    )
    assert settings.model.architecture == architecture


def test_a_small_trial_pass_where_the_network_accepts_it() -> None:
    free = make_settings(feed={"size": 96})
    assert [probe_size(build_model(free), free, size) for size in (64, 128)] == [64, 96]
    model = {"architecture": "Unet", "encoder": "tu-swin_tiny_patch4_window7_224"}
    bound = make_settings(model=model, feed={"size": 224})
    network = build_model(bound).train()
    assert probe_size(network, bound, 64) == 224
    assert network.training
