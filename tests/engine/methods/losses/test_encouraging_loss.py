import pytest
import torch
from torch.nn.functional import cross_entropy

from engine.methods.losses.encouraging_loss import EncouragingLoss
from engine.parts import Batch


def a_batch(target, mask=None):
    return Batch({}, target, torch.arange(len(target)), mask=mask)


def logits_for(p):
    """Two-class logits whose first class has probability p."""
    return torch.stack([torch.log(p / (1 - p)), torch.zeros_like(p)], 1)


def value(p, **settings):
    target = torch.zeros(len(p), dtype=torch.long)
    return EncouragingLoss(**settings)(logits_for(p), a_batch(target))["task"]


P = torch.linspace(0.011, 0.989, 97, dtype=torch.float64)


def test_without_the_line_the_pull_is_the_same_for_every_probability():
    logits = torch.randn(400, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    logits.requires_grad_(True)
    target = torch.arange(400) % 5
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    inside = (p > 0.01) & (p < 0.99)
    EncouragingLoss(log_end=1.0)(logits, a_batch(target))["task"].sum().backward()
    pull = logits.grad.gather(1, target[:, None])[:, 0]
    assert inside.sum() > 300
    torch.testing.assert_close(pull[inside], torch.full_like(pull[inside], -1.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("end", [0.3, 0.5, 0.75])
def test_the_line_touches_the_curve_and_keeps_its_slope(end):
    near = torch.tensor([end - 1e-9, end + 1e-9], dtype=torch.float64, requires_grad=True)
    found = value(near, log_end=end)
    (slope,) = torch.autograd.grad(found.sum(), near)
    found, slope = found.tolist(), slope.tolist()
    assert found[0] == pytest.approx(found[1], abs=1e-7)
    assert slope[0] == pytest.approx(slope[1], rel=1e-6)
    assert slope[0] == pytest.approx(-1 / end - 1 / (1 - end), rel=1e-6)


def test_below_the_end_it_is_the_closed_form_and_above_the_line():
    below, above = P[P <= 0.6], P[P > 0.6]
    torch.testing.assert_close(value(below, log_end=0.6), -torch.log(below) + torch.log(1 - below))
    line = torch.log(torch.tensor(0.4, dtype=torch.float64)) - (above - 0.6) / 0.4
    torch.testing.assert_close(value(above, log_end=0.6), -torch.log(above) + line)


def test_with_end_zero_it_is_cross_entropy_less_the_probability():
    torch.testing.assert_close(value(P, log_end=0.0), -torch.log(P) - P)


@pytest.mark.parametrize("end", [0.5, 0.75, 1.0])
def test_certain_answers_have_finite_values_and_gradients(end):
    logits = torch.tensor([[1e3, 0.0], [0.0, 1e3], [200.0, 0.0]], requires_grad=True)
    each = EncouragingLoss(log_end=end)(logits, a_batch(torch.zeros(3, dtype=torch.long)))["task"]
    each.sum().backward()
    assert each.isfinite().all() and logits.grad.isfinite().all()


def test_a_soft_target_weighs_its_classes():
    logits = torch.randn(6, 3, dtype=torch.float64)
    soft = torch.rand(6, 3, dtype=torch.float64).softmax(1)
    part = EncouragingLoss()
    by_class = [part(logits, a_batch(torch.full((6,), k)))["task"] for k in range(3)]
    expected = sum(soft[:, k] * each for k, each in enumerate(by_class))
    torch.testing.assert_close(part(logits, a_batch(soft))["task"], expected)


def test_tokens_are_a_mean_over_the_positions_that_count():
    logits, target = torch.randn(2, 4, 5, dtype=torch.float64), torch.randint(5, (2, 4))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    part = EncouragingLoss(log_end=0.0)
    each = cross_entropy(logits.transpose(1, 2), target, reduction="none")
    each = each - logits.softmax(-1).gather(-1, target[..., None])[..., 0]
    torch.testing.assert_close(part(logits, a_batch(target))["task"], each.mean(1))
    expected = torch.stack([each[0, :2].mean(), each[1].mean()])
    torch.testing.assert_close(part(logits, a_batch(target, mask))["task"], expected)
