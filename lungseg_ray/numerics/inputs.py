"""The input of a network, computed from the pixels of an image: alike in training and in prediction."""

from torch import Tensor


def scale_pixels(pixels: Tensor, *, scale: float, normalise: bool) -> Tensor:
    """Scales the pixels of images, in place.

    Args:
        pixels: (N, C, H, W) float32, the values of the pixels.
        scale: The number by which they are divided.
        normalise: Whether each image gets mean 0 and standard deviation 1, over all of its pixels and channels.

    Returns:
        `pixels`, changed.
    """
    pixels.div_(scale)
    if normalise:
        # An image of one grey value alone stays finite.
        deviation = pixels.std(dim=(1, 2, 3), keepdim=True, correction=0).clamp_(min=1e-3)
        pixels.sub_(pixels.mean(dim=(1, 2, 3), keepdim=True)).div_(deviation)
    return pixels
