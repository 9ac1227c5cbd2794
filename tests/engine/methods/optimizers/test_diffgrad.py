"""diffGrad: half steps on steady gradients, Adam where the friction is gone, the reference implementation."""

import pytest
import pytorch_optimizer
import torch

from engine.methods.optimizers.diffgrad import DiffGrad
from tests.engine.methods.optimizers.trajectories import close, follow, gradients, resumes, start


@pytest.mark.parametrize(("decay", "decoupled"), [(0.0, False), (0.1, False), (0.1, True)])
def test_fifty_steps_are_those_of_pytorch_optimizer(decay, decoupled):
    first, given = start(), gradients(50)
    ours = follow(lambda p: DiffGrad(p, lr=0.01, weight_decay=decay, decoupled=decoupled), first, given)
    theirs = follow(
        lambda p: pytorch_optimizer.DiffGrad(p, lr=0.01, weight_decay=decay, weight_decouple=decoupled), first, given
    )
    close(ours, theirs, 1e-10)


def test_on_a_constant_gradient_every_step_after_the_first_is_half_of_adams():
    first, given = start(), [gradients(1)[0]] * 12
    ours = follow(lambda p: DiffGrad(p, lr=0.01, eps=0.0), first, given)
    adam = follow(lambda p: torch.optim.Adam(p, lr=0.01, eps=0.0), first, given)
    for t in range(1, 12):
        for a0, a1, b0, b1 in zip(ours[t], ours[t + 1], adam[t], adam[t + 1], strict=True):
            torch.testing.assert_close(a1 - a0, 0.5 * (b1 - b0), rtol=1e-7, atol=1e-14)


def test_with_gradients_that_jump_far_it_is_adam():
    """|difference| > 40 makes the friction 1 to the last bit, and hides where eps sits."""
    given = [[(100 if t % 2 else -100) + g for g in step] for t, step in enumerate(gradients(10))]
    ours = follow(lambda p: DiffGrad(p, lr=0.01), start(), given)
    close(ours, follow(lambda p: torch.optim.Adam(p, lr=0.01), start(), given), 1e-6)


def test_the_friction_lies_between_a_half_and_one_and_is_not_stuck_at_a_half():
    """An implementation that keeps the gradient itself instead of a copy sees no difference from the second step on."""
    weight = torch.nn.Parameter(torch.zeros(1000))
    optimizer = DiffGrad([weight], lr=0.01, betas=(0.0, 0.999), eps=0.0)
    generator = torch.Generator().manual_seed(0)
    weight.grad = torch.empty(1000)
    for t in range(1, 6):
        weight.grad.copy_(torch.randn(1000, generator=generator))  # the same tensor, filled anew
        before = weight.detach().clone()
        optimizer.step()
        square = optimizer.state[weight]["square"]
        adam = 0.01 * (1 - 0.999**t) ** 0.5 * weight.grad / square.sqrt()
        friction = (before - weight.detach()) / adam
        assert friction.min() >= 0.5 - 1e-4 and friction.max() <= 1 + 1e-4
        assert friction.mean() > 0.6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_goes_on_bit_for_bit(dtype):
    resumes(lambda p: DiffGrad(p, lr=1e-2, weight_decay=0.1), dtype)
