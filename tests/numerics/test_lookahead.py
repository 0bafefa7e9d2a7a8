import copy

import pytest
import timm.optim
import torch
from torch import nn
from torch.optim import RAdam

from lungseg_ray.numerics import lookahead
from lungseg_ray.numerics.lookahead import Lookahead
from lungseg_ray.numerics.optim import create_state
from lungseg_ray.numerics.undo import Undo


def with_gradient(model: nn.Linear, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def networks(count: int) -> list[nn.Linear]:
    torch.manual_seed(0)
    first = nn.Linear(3, 2)
    return [first, *(copy.deepcopy(first) for _ in range(count - 1))]


@pytest.fixture(params=[True, False], ids=["known", "on a device"])
def _known(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether Python knows values at once, as on CPUs, or goes on without them."""
    monkeypatch.setattr(lookahead, "is_known", lambda _: request.param)


@pytest.mark.usefixtures("_known")
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_same_weights_as_with_timm(k: int) -> None:
    ours, theirs = networks(2)
    one = Lookahead(RAdam(ours.parameters(), lr=0.1), k=k, alpha=0.3)
    other = timm.optim.Lookahead(RAdam(theirs.parameters(), lr=0.1), k=k, alpha=0.3)
    for step in range(8):
        with_gradient(ours, step)
        with_gradient(theirs, step)
        one.step()
        other.step()
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("_known")
@pytest.mark.parametrize("left_out", [0, 2, 3])
def test_a_step_that_is_taken_back_does_not_count(left_out: int) -> None:
    straight, with_a_gap = networks(2)
    one = Lookahead(RAdam(straight.parameters(), lr=0.1), k=3, alpha=0.3)
    other = Lookahead(RAdam(with_a_gap.parameters(), lr=0.1), k=3, alpha=0.3)
    undo = Undo([*create_state(other), *with_a_gap.parameters()])
    for step in range(8):
        if step == left_out:
            undo.keep()
            for parameter in with_a_gap.parameters():
                parameter.grad = torch.full_like(parameter, float("nan"))
            other.step()
            undo.unless(torch.tensor(False))
        with_gradient(straight, step)
        with_gradient(with_a_gap, step)
        one.step()
        other.step()
        assert torch.equal(straight.weight, with_a_gap.weight)
        assert torch.equal(straight.bias, with_a_gap.bias)
