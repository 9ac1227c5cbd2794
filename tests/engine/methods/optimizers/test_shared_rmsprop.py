"""Shared RMSProp: its formula with eps inside the root, and one memory for whoever brings a gradient."""

import pytest
import torch

from engine.methods.optimizers.shared_rmsprop import SharedRMSProp
from tests.engine.methods.optimizers.trajectories import close, follow, gradients, resumes, start


def by_hand(first, given, lr=0.01, alpha=0.9, eps=0.1):
    weights, memory = [w.clone() for w in first], [torch.zeros_like(w) for w in first]
    path = [[w.clone() for w in weights]]
    for step in given:
        for w, g, d in zip(weights, memory, step, strict=True):
            g.copy_(alpha * g + (1 - alpha) * d**2)
            w.sub_(lr * d / torch.sqrt(g + eps))
        path.append([w.clone() for w in weights])
    return path


@pytest.mark.parametrize("eps", [0.1, 1e-3])
def test_twenty_steps_are_the_formula(eps):
    first, given = start(), gradients(20)
    close(
        follow(lambda p: SharedRMSProp(p, lr=0.01, alpha=0.9, eps=eps), first, given),
        by_hand(first, given, eps=eps),
        1e-12,
    )


def test_eps_is_inside_the_root_unlike_torchs():
    first, given = start(), gradients(5)
    ours = follow(lambda p: SharedRMSProp(p, lr=0.01, alpha=0.9, eps=0.1), first, given)[-1]
    theirs = follow(lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9, eps=0.1), first, given)[-1]
    assert max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True)) > 1e-3
    tiny = follow(lambda p: SharedRMSProp(p, lr=0.01, alpha=0.9, eps=1e-24), first, given)[-1]
    close([tiny], [follow(lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9, eps=1e-12), first, given)[-1]], 1e-9)


def test_the_second_worker_steps_by_what_the_first_has_seen():
    """A large gradient of one worker makes the next step of another shorter."""
    weight = torch.nn.Parameter(torch.zeros(1))
    shared = SharedRMSProp([weight], lr=1.0, alpha=0.99, eps=0.1)
    for worker, gradient in enumerate((10.0, 1.0)):
        before = weight.item()
        weight.grad = torch.tensor([gradient])
        shared.step()
        seen = 0.01 * 100 if worker == 0 else 0.99 * (0.01 * 100) + 0.01
        assert before - weight.item() == pytest.approx(gradient / (seen + 0.1) ** 0.5, rel=1e-6)
    alone = torch.nn.Parameter(torch.zeros(1))
    alone.grad = torch.ones(1)
    SharedRMSProp([alone], lr=1.0).step()
    assert -alone.item() > 2.5 * (before - weight.item())


def test_it_resumes_and_refuses():
    resumes(lambda p: SharedRMSProp(p))
