import pytest
import torch

from lungseg_ray.numerics.inputs import scale_pixels


def test_pixels_are_divided() -> None:
    found = scale_pixels(torch.tensor([[[[0.0, 51.0, 255.0]]]]), scale=255.0, normalise=False)
    torch.testing.assert_close(found, torch.tensor([[[[0.0, 0.2, 1.0]]]]))


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_normalised_by_itself(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(3, channels, 16, 16, generator=generator) * 255
    dark = pixels.clone() * 0.25 + 10
    found = scale_pixels(pixels.clone(), scale=255.0, normalise=True)
    torch.testing.assert_close(found.mean(dim=(1, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(dim=(1, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    # Brightness and contrast make no difference.
    torch.testing.assert_close(scale_pixels(dark, scale=255.0, normalise=True), found, atol=1e-4, rtol=0)


def test_an_image_of_one_value_stays_finite() -> None:
    assert scale_pixels(torch.full((1, 1, 4, 4), 77.0), scale=255.0, normalise=True).abs().max() < 1e-3
