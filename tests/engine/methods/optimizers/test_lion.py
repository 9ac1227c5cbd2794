"""Lion: exact step lengths, its two limits, the reference implementation, and half of Adam's memory."""

from itertools import pairwise

import lion_pytorch
import pytest
import torch

from engine.methods.optimizers.lion import Lion
from tests.engine.methods.optimizers.trajectories import close, follow, gradients, resumes, start


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_twenty_steps_are_those_of_lion_pytorch(decay, dtype):
    first, given = start(dtype=dtype), gradients(20, dtype=dtype)
    ours = follow(lambda p: Lion(p, lr=1e-3, weight_decay=decay), first, given)
    theirs = follow(lambda p: lion_pytorch.Lion(p, lr=1e-3, weight_decay=decay), first, given)
    close(ours, theirs, 1e-7)


def test_every_weight_moves_by_the_rate_and_one_without_gradient_stays():
    first, given = start(), gradients(5)
    for step in given:
        step[0][0, 0] = 0.0
    path = follow(lambda p: Lion(p, lr=0.01), first, given)
    for before, after in pairwise(path):
        moved = torch.cat([(b - a).abs().flatten() for a, b in zip(before, after, strict=True)])
        assert moved[0] == 0.0  # sign(0) is 0
        torch.testing.assert_close(moved[1:], torch.full_like(moved[1:], 0.01), rtol=1e-12, atol=1e-15)


def test_equal_decays_are_sign_momentum_and_zero_decays_are_the_sign_of_the_gradient():
    first, given = start(), gradients(8)
    weights, memory = [w.clone() for w in first], [torch.zeros_like(w) for w in first]
    for step in given:
        for w, m, g in zip(weights, memory, step, strict=True):
            m.mul_(0.9).add_(g, alpha=1 - 0.9)
            w.sub_(0.01 * m.sign())
    close([follow(lambda p: Lion(p, lr=0.01, betas=(0.9, 0.9)), first, given)[-1]], [weights], 1e-12)
    signs = [w - 0.01 * sum(step[i].sign() for step in given) for i, w in enumerate(first)]
    close([follow(lambda p: Lion(p, lr=0.01, betas=(0.0, 0.0)), first, given)[-1]], [signs], 1e-12)


def test_scaling_the_loss_by_a_power_of_two_changes_not_one_bit():
    first, given = start(dtype=torch.float32), gradients(20, dtype=torch.float32)
    scaled = [[g * 1024 for g in step] for step in given]
    make = lambda p: Lion(p, lr=1e-3, weight_decay=0.1)  # noqa: E731
    for a, b in zip(follow(make, first, given)[-1], follow(make, first, scaled)[-1], strict=True):
        assert torch.equal(a, b)


def test_its_state_is_half_of_adams():
    weights = [torch.nn.Parameter(w) for w in start()]
    ours, adam = Lion(weights), torch.optim.AdamW(weights)
    for w in weights:
        w.grad = torch.ones_like(w)
    ours.step()
    adam.step()

    def numbers(optimizer):
        state = (v for s in optimizer.state.values() for k, v in s.items() if k != "step")
        return sum(v.numel() for v in state if isinstance(v, torch.Tensor))

    assert 2 * numbers(ours) == numbers(adam) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_goes_on_bit_for_bit(dtype):
    resumes(lambda p: Lion(p, lr=1e-2, weight_decay=0.1), dtype)
