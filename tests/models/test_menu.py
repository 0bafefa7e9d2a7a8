import re
from collections.abc import Iterator
from functools import partial
from itertools import chain, product
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from lungseg_ray.feed.batch import Batch
from lungseg_ray.models import MENU, build, memory_format
from lungseg_ray.training.learner import Learner
from tests.helpers import ROOT, make_settings

SIZE = 64
IMAGES = 2  # ResNeSt and SK-Net normalise what they pooled to one pixel, over the images alone: one is not enough.


@pytest.fixture(scope="module", autouse=True)
def _one_process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    store: Path = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", init_method=store.as_uri(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
    torch.set_num_threads(threads)


def make_batch(step: int) -> Batch:
    """Noise (2, 1, 64, 64) that is brighter in a box, and the box as masks (2, 64, 64)."""
    generator = torch.Generator().manual_seed(step)
    masks = torch.zeros(IMAGES, SIZE, SIZE, dtype=torch.uint8)
    masks[:, 10:40, 20:50] = 1
    noise = torch.randint(0, 128, (IMAGES, 1, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return Batch(step=step, images=noise + 120 * masks[:, None], masks=masks, image_ids=["first", "second"])


PAIRS = [
    *product(["Unet", "UnetPlusPlus"], chain.from_iterable(MENU.values())),
    ("PraNet", "timm-res2net50_26w_4s"),
    ("PraNet", "timm-regnety_004"),
    ("U2Net", "rsu_small"),
]


@pytest.mark.parametrize(("architecture", "encoder"), PAIRS)
def test_every_pair_learns_in_data_parallel_training(architecture: str, encoder: str) -> None:
    settings = make_settings(
        model={"architecture": architecture, "encoder": encoder},
        feed={"size": SIZE, "batch": IMAGES},
        # Without decay, a weight changes by its gradient alone.
        optim={"weight_decay": 0.0, "encoder_weight_decay": 0.0},
    )
    learner = Learner(
        settings=settings,
        device=torch.device("cpu"),
        precision="fp32",
        total_steps=2,
        wrap=partial(DistributedDataParallel, find_unused_parameters=False),
    )
    before = {name: value.detach().clone() for name, value in learner.model.named_parameters()}
    # The second step would raise if any parameter had got no gradient in the first.
    losses = [learner.step(make_batch(step)).result().sums["loss"] / IMAGES for step in range(2)]
    assert all(0 < loss < 20 for loss in losses)
    changed = {name for name, value in learner.model.named_parameters() if not torch.equal(value, before[name])}
    # A bias before a normalisation has a gradient of 0, so not all change; but the ends of the network do.
    last = {"PraNet": "decoder.reverse_attention.2.layers.5.0.weight", "U2Net": "segmentation_head.weight"}
    assert {next(iter(before)), last.get(architecture, "segmentation_head.0.weight")} <= changed
    assert changed.isdisjoint(learner.frozen)


def test_data_parallel_training_raises_where_nothing_is_frozen() -> None:
    model = DistributedDataParallel(
        build(architecture="UnetPlusPlus", encoder="vgg11", in_channels=1, classes=1), find_unused_parameters=False
    )
    images = torch.zeros(IMAGES, 1, SIZE, SIZE)
    model(images).sum().backward()
    with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
        model(images)


def test_the_menu_has_two_members_at_most_of_each_of_the_fifteen_families() -> None:
    assert len(MENU) == 15
    assert all(len(encoders) in (1, 2) for encoders in MENU.values())


@pytest.mark.parametrize("encoder", chain.from_iterable(MENU.values()))
def test_every_encoder_is_trained_channels_last(encoder: str) -> None:
    with torch.device("meta"):
        model = build(architecture="Unet", encoder=encoder, in_channels=1, classes=1)
    assert memory_format(model, device=torch.device("cpu")) == torch.channels_last


def test_the_page_has_a_row_for_each_encoder_of_the_menu() -> None:
    page = (ROOT / "docs/encoders.md").read_text()
    rows = re.findall(r"^\| (\S+) \| `(\S+)` \|", page, re.MULTILINE)
    assert rows == [(family, encoder) for family, encoders in MENU.items() for encoder in encoders]
