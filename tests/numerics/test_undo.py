import torch

from lungseg_ray.numerics.undo import Undo


def tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 4, 5, generator=generator)
    return [
        image.contiguous(memory_format=torch.channels_last),
        torch.rand(3, 4, generator=generator).t(),
        torch.tensor(7),
        torch.rand((), generator=generator),
        torch.rand(6, dtype=torch.float64, generator=generator),
    ]


def change(given: list[torch.Tensor]) -> None:
    for tensor in given:
        tensor.mul_(3)
        if tensor.is_floating_point():
            tensor[(0,) * tensor.ndim] = float("nan")


def test_back_to_what_was_kept() -> None:
    given, before = tensors(), tensors()
    undo = Undo(given)
    undo.keep()
    change(given)
    undo.unless(torch.tensor(False))
    for one, other in zip(given, before, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


def test_what_is_to_stay_stays() -> None:
    given, expected = tensors(), tensors()
    undo = Undo(given)
    undo.keep()
    change(given)
    change(expected)
    undo.unless(torch.tensor(True))
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_what_is_kept_is_the_last() -> None:
    given = [torch.zeros(2)]
    undo = Undo(given)
    for value in (1.0, 2.0):
        given[0].fill_(value)
        undo.keep()
    given[0].fill_(3.0)
    undo.unless(torch.tensor(False))
    assert given[0].tolist() == [2.0, 2.0]
