"""Clipping agrees with torch's one-call forms and reports how much it kept."""

import pytest
import torch

from engine.methods.gradients.gradient_clipping import GradientClipping
from tests.engine.methods.short import ready, train


def _run():
    """A run with gradients: large in two tensors, none in the others."""
    run, memory = ready()
    role = run.roles["main"]
    generator = torch.Generator().manual_seed(3)
    for p in role.parameters[:2]:
        p.grad = torch.randn(p.shape, generator=generator) * 5
    return run, memory, role


@pytest.mark.parametrize("limit", [0.5, 2.0, 1e4])
def test_by_norm_it_is_torchs_and_logs_the_share_that_was_kept(limit):
    run, memory, role = _run()
    _, _, plain = _run()
    GradientClipping(limit).clip(run, role)
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters, limit)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(role.parameters[:2], plain.parameters[:2], strict=True))
    assert all(p.grad is None for p in role.parameters[2:])
    run.recorder.flush()
    assert memory.points["gradient-clipping/kept"][1] == pytest.approx([min(1.0, limit / norm.item())], rel=1e-5)


def test_by_value_each_number_is_cut_alone():
    run, memory, role = _run()
    _, _, plain = _run()
    role.name = "critic"
    GradientClipping(0.7, by="value").clip(run, role)
    for a, b in zip(role.parameters[:2], plain.parameters[:2], strict=True):
        assert torch.equal(a.grad, b.grad.clamp(-0.7, 0.7))
    lengths = [torch.cat([p.grad.flatten() for p in r.parameters[:2]]).norm().item() for r in (role, plain)]
    run.recorder.flush()
    kept = memory.points["critic/gradient-clipping/kept"][1]
    assert kept == pytest.approx([lengths[0] / lengths[1]], rel=1e-5)


def test_without_gradients_it_does_nothing():
    run, memory = ready()
    GradientClipping().clip(run, run.roles["main"])
    run.recorder.flush()
    assert "gradient-clipping/kept" not in memory.points


def test_in_a_run_no_plain_step_is_longer_than_the_rate_times_the_limit():
    run, _ = ready()
    start = [p.detach().clone() for p in run.model.parameters()]
    trained, _, _ = train(
        optimizer={"use": "sgd", "lr": 0.5, "momentum": 0.0},
        techniques=[{"use": "gradient-clipping", "limit": 1e-3}],
        budget={"steps": 5},
    )
    moved = torch.cat([(b - a).flatten() for a, b in zip(start, trained.model.parameters(), strict=True)]).norm()
    assert 0 < moved.item() <= 5 * 0.5 * 1e-3
