"""LAMB and LARS: AdamW without the ratio, exact step lengths, scaling of a layer, other implementations."""

from itertools import pairwise

import pytest
import pytorch_optimizer
import torch

from engine.methods.optimizers.lamb import Lamb, Lars
from tests.engine.methods.optimizers.trajectories import close, follow, gradients, resumes, start
from tests.engine.methods.short import train


class _Unscaled(Lamb):
    """LAMB with every ratio forced to 1."""

    def trust(self, bundle, directions, ratio):
        pass


@pytest.mark.parametrize("clip", [10.0, 0.5])
def test_the_step_of_each_adapted_tensor_is_the_rate_times_its_counted_length(clip):
    path = follow(lambda p: Lamb(p, lr=0.02, trust_clip=clip), start(), gradients(6))
    for before, after in pairwise(path):
        for a, b in zip(before, after, strict=True):
            if a.ndim > 1:
                assert (b - a).norm().item() == pytest.approx(0.02 * min(a.norm().item(), clip), rel=1e-9)


def test_without_the_ratio_it_is_adamw():
    given = gradients(20)
    ours = follow(lambda p: _Unscaled(p, lr=0.01, eps=1e-8, weight_decay=0.1, exclude_1d=False), start(), given)
    close(ours, follow(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1), start(), given), 1e-9)


def test_tensors_of_one_dimension_are_left_to_adam_unless_told_otherwise():
    given = gradients(10)
    ours = follow(lambda p: Lamb(p, lr=0.01, eps=1e-8, weight_decay=0.1), start(), given)
    adam = follow(lambda p: torch.optim.Adam(p, lr=0.01), start(), given)
    for a, b in zip(ours, adam, strict=True):
        torch.testing.assert_close(a[1], b[1], rtol=1e-9, atol=1e-9)
    adapted = follow(lambda p: Lamb(p, lr=0.01, exclude_1d=False), start(), given)
    assert (adapted[1][1] - adapted[0][1]).norm().item() == pytest.approx(0.01 * adapted[0][1].norm().item())


def test_scaling_a_layer_up_and_its_gradients_down_scales_its_step():
    given = gradients(8)
    settings = {"lr": 0.02, "eps": 0.0, "weight_decay": 0.0, "trust_clip": 0.0}
    plain = follow(lambda p: Lamb(p, **settings), start(), given)
    first = start()
    first[0] *= 16.0
    scaled = follow(lambda p: Lamb(p, **settings), first, [[s[0] / 16, *s[1:]] for s in given])
    for a, b in zip(plain, scaled, strict=True):
        torch.testing.assert_close(a[0] * 16, b[0], rtol=1e-10, atol=1e-12)


def test_without_bias_correction_twenty_steps_are_those_of_pytorch_optimizer():
    """Its trust ratio has an eps in the denominator, of the size of the tolerance, that the paper does not have."""
    given = gradients(20)
    ours = follow(lambda p: Lamb(p, lr=0.02, bias_correction=False, exclude_1d=False), start(), given)
    settings = {"lr": 0.02, "weight_decay": 0.01, "weight_decouple": False, "adam_debias": True}
    theirs = follow(lambda p: pytorch_optimizer.Lamb(p, **settings), start(), given)
    close(ours, theirs, 1e-5)


def test_zero_weights_and_zero_gradients_have_a_ratio_of_one():
    weight = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = Lamb([weight], lr=0.1, weight_decay=0.0)
    weight.grad = torch.ones(3, 2)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((3, 2), -0.1), rtol=1e-4, atol=0)
    assert optimizer.state[weight]["trust_ratio"].item() == 1.0
    still = torch.nn.Parameter(torch.ones(3, 2))
    still.grad = torch.zeros(3, 2)
    Lamb([still], lr=0.1, weight_decay=0.0).step()
    assert torch.equal(still, torch.ones(3, 2))


def test_pre_normalized_gradients_make_the_moments_of_a_gradient_of_length_one():
    weights = [torch.nn.Parameter(w) for w in start()]
    for w, g in zip(weights, gradients(1)[0], strict=True):
        w.grad = g * 50
    optimizer = Lamb(weights, betas=(0.0, 0.999), grad_pre_norm=True)
    optimizer.step()
    whole = torch.cat([optimizer.state[w]["mean"].flatten() for w in weights])
    assert whole.norm().item() == pytest.approx(1.0, rel=1e-12)


def test_limits_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="at most trust_clip"):
        Lamb([torch.zeros(1, requires_grad=True)], trust_floor=2.0, trust_clip=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [Lamb, Lars])
def test_a_saved_state_goes_on_bit_for_bit(make, dtype):
    resumes(lambda p: make(p, lr=1e-1), dtype)


def test_lars_follows_its_formula():
    settings = {"lr": 2.0, "momentum": 0.8, "weight_decay": 0.05, "trust": 0.01}
    path = follow(lambda p: Lars(p, **settings), start(), gradients(10))
    weights, memory = start(), [torch.zeros_like(w) for w in start()]
    for t, step in enumerate(gradients(10), 1):
        for w, m, g in zip(weights, memory, step, strict=True):
            ratio = 0.01 * w.norm() / (g.norm() + 0.05 * w.norm())
            u = ratio * (g + 0.05 * w) if w.ndim > 1 else g
            m.mul_(0.8).add_(2.0 * u)
            w.sub_(m)
        close([path[t]], [weights], 1e-12)


def test_the_probe_shows_a_finite_ratio_for_every_adapted_layer():
    _, memory, outcome = train(optimizer={"use": "lamb", "lr": 0.05}, probes=[{"use": "trust-ratios"}])
    (figure, *_) = [f["data"] for f in memory.figures if f["probe"] == "trust-ratios"]
    assert figure["series"][0]["x"] == ["blocks.0.linear.weight", "head.weight"]
    low, high = outcome.metrics["probe/trust-ratios/lowest"], outcome.metrics["probe/trust-ratios/highest"]
    assert 0 < low <= high < 100


def test_the_probe_refuses_an_optimizer_without_ratios():
    with pytest.raises(Exception, match="Only LAMB and LARS"):
        train(probes=[{"use": "trust-ratios"}])
