"""Clipping agrees with torch's one-call forms and reports the length before the cut."""

from types import SimpleNamespace

import pytest
import torch

from engine.methods.gradients.gradient_clipping import GradientClipping


def _parameters():
    generator = torch.Generator().manual_seed(3)
    parameters = [torch.nn.Parameter(torch.randn(*s, generator=generator)) for s in [(4, 3), (4,), (2, 4)]]
    for p in parameters[:2]:
        p.grad = torch.randn(p.shape, generator=generator) * 5
    return parameters


def _clip(part, parameters, role="main"):
    logged = {}
    part.clip(SimpleNamespace(log=logged.__setitem__), SimpleNamespace(name=role, parameters=parameters))
    return logged


@pytest.mark.parametrize("limit", [0.5, 2.0, 1e4])
def test_by_norm_it_is_torchs_and_logs_the_length_before_the_cut(limit):
    ours, theirs = _parameters(), _parameters()
    logged = _clip(GradientClipping(limit), ours)
    norm = torch.nn.utils.clip_grad_norm_(theirs, limit)
    assert torch.equal(logged["gradient-norm"], norm)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours[:2], theirs[:2], strict=True))
    after = torch.cat([p.grad.flatten() for p in ours[:2]]).norm()
    assert after == pytest.approx(min(limit, norm.item()), rel=1e-5)
    assert ours[2].grad is None


def test_by_value_each_number_is_cut_alone():
    ours, plain = _parameters(), _parameters()
    logged = _clip(GradientClipping(0.7, by="value"), ours, role="critic")
    for a, b in zip(ours[:2], plain[:2], strict=True):
        assert torch.equal(a.grad, b.grad.clamp(-0.7, 0.7))
    expected = torch.cat([p.grad.flatten() for p in plain[:2]]).norm()
    assert logged["critic/gradient-norm"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_without_gradients_it_does_nothing():
    assert _clip(GradientClipping(), [torch.nn.Parameter(torch.ones(2))]) == {}
