import pytest
import torch
from torch import nn

from lungseg_ray.errors import UserError
from lungseg_ray.models import cost
from lungseg_ray.models.cost import flops


def test_operations_of_a_convolution_and_a_matrix_product() -> None:
    # (1, 3, 4, 6) -> (1, 2, 4, 6): each of 48 outputs sums 27 products of a 3 x 3 window of three channels.
    assert flops(nn.Conv2d(3, 2, 3, padding=1), torch.zeros(1, 3, 4, 6)) == 2 * 48 * 27
    # In two groups of two channels, each of 4 x 24 outputs sums 18; normalisation and activation do not count.
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    assert flops(grouped.eval(), torch.zeros(1, 4, 4, 6)) == 2 * 4 * 24 * 18
    # (1, 3, 4, 6) -> (1, 3, 4, 5): each of 60 outputs sums 6.
    assert flops(nn.Linear(6, 5, bias=False), torch.zeros(1, 3, 4, 6)) == 2 * 60 * 6


def test_a_known_pair() -> None:
    # ResNet-18 has 11 689 512 parameters, 512 * 1000 + 1000 of them in its classifier; its first convolution, 7 x 7 to
    # 64 channels, loses two of three input channels.
    encoder = 11_689_512 - 513_000 - 2 * 49 * 64
    # Each block of the decoder: two 3 x 3 convolutions without bias, and the scales and shifts after each.
    blocks = [(512 + 256, 256), (256 + 128, 128), (128 + 64, 64), (64 + 64, 32), (32, 16)]
    decoder = sum(9 * (before * after + after * after) + 4 * after for before, after in blocks)
    head = 9 * 16 + 1
    # At 256 px: the stem at 128 px; at 64, 32, 16 and 8 px a stage of four 3 x 3 convolutions, whose first, after stage
    # one, comes from half as many channels, beside a 1 x 1 on the shortcut; the decoder and the head at 16 to 256 px.
    products = 128**2 * 49 * 64 + 64**2 * 4 * 9 * 64 * 64
    for size, width in ((32, 128), (16, 256), (8, 512)):
        products += size**2 * width * (9 * (width // 2) + 3 * 9 * width + width // 2)
    for size, (before, after) in zip((16, 32, 64, 128, 256), blocks, strict=True):
        products += size**2 * 9 * after * (before + after)
    products += 256**2 * 9 * 16
    found = cost(architecture="Unet", encoder="resnet18", in_channels=1, classes=1, size=256)
    assert found.parameters == encoder + decoder + head
    assert found.gflops == pytest.approx(2 * products / 1e9, rel=1e-12)


def test_it_leaves_the_random_state_and_counts_what_the_meta_device_cannot_build() -> None:
    random = torch.get_rng_state()
    # Mix Transformer's keys and values are made from a map of 2 x 2 at 64 px, so four times the pixels cost more than
    # four times as much.
    small, large = (
        cost(architecture="FPN", encoder="mit_b0", in_channels=3, classes=2, size=size).gflops for size in (64, 128)
    )
    assert large > 4 * small > 0
    assert torch.equal(torch.get_rng_state(), random)


def test_it_refuses_what_does_not_work() -> None:
    with pytest.raises(UserError, match=r"DeepLabV3 does not work with encoder vgg11: .*dilated"):
        cost(architecture="DeepLabV3", encoder="vgg11", in_channels=1, classes=1, size=64)
