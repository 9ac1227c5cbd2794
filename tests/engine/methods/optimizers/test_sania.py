"""SANIA: exact scale invariance without the root, the jump to a quadratic's minimum, bounds of the step."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.methods.optimizers.sania import Sania
from tests.engine.methods.optimizers.trajectories import resumes
from tests.engine.methods.short import train


def _losses(preconditioner, scale, steps=25, **settings):
    """The losses of full-batch logistic regression from zero on features that are multiplied by `scale`."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(6, generator=generator, dtype=torch.float64) > 0).double()
    w = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer = Sania([w], preconditioner=preconditioner, eps=0.0, **settings)
    seen = []
    for _ in range(steps):

        def closure():
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits((x * scale) @ w, y)
            loss.backward()
            return loss

        seen.append(optimizer.step(closure).item())
    return torch.tensor(seen, dtype=torch.float64)


SCALE = torch.tensor([400.0, 0.01, 1.0, 20.0, 0.3, 3e-3], dtype=torch.float64)


@pytest.mark.parametrize("preconditioner", ["adagrad-sqr", "adam-sqr"])
@pytest.mark.parametrize("rule", ["quadratic", "linear"])
def test_without_the_root_rescaled_features_change_nothing(preconditioner, rule):
    plain = _losses(preconditioner, torch.ones(6, dtype=torch.float64), rule=rule)
    torch.testing.assert_close(_losses(preconditioner, SCALE, rule=rule), plain, rtol=1e-6, atol=0)
    assert plain.unique().numel() == 25  # and it moved at every step


@pytest.mark.parametrize("preconditioner", ["identity", "adagrad", "adam"])
def test_with_the_root_or_without_a_metric_they_do(preconditioner):
    plain, scaled = _losses(preconditioner, torch.ones(6, dtype=torch.float64)), _losses(preconditioner, SCALE)
    assert not torch.allclose(plain, scaled, rtol=1e-2)


class _Quadratic:
    """An oracle of f = 0.5 a w^2, written down."""

    def __init__(self, w, a):
        self.w, self.a = w, a

    @property
    def loss(self):
        return 0.5 * self.a * self.w.detach().square().sum()

    def hvp(self, vectors):
        return [self.a * vectors[0]]


def test_with_the_true_curvature_it_jumps_to_the_minimum_in_one_step():
    model = nn.Linear(1, 1, bias=False).double()
    w = model.weight
    w.data.fill_(3.0)
    optimizer = Sania(model.parameters(), preconditioner="hutchinson", eps=0.0, hutchinson_samples=3)
    optimizer.attach(model, _Quadratic(w, 7.0))
    w.grad = 7.0 * w.detach()
    optimizer.step()
    assert w.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("gap", [1e-12, 1e-6, 0.1, 0.49, 0.5, 3.0])
def test_the_step_is_in_zero_to_one_and_the_gap_over_n_for_small_gaps(gap):
    """With B = 1 and a gradient of length 1, n is 1 and the step's length is gam."""
    w = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    w.grad = torch.full((4,), 0.5, dtype=torch.float64)
    optimizer = Sania([w], preconditioner="identity", f_star=2.0)
    optimizer.attach(nn.Identity(), type("Told", (), {"loss": torch.tensor(2.0 + gap, dtype=torch.float64)})())
    optimizer.step()
    gam = w.detach().norm().item()
    real = (2.0 + gap) - 2.0
    assert gam == pytest.approx(1 - (1 - 2 * real) ** 0.5 if real <= 0.5 else 1.0, rel=1e-9 if gap > 1e-3 else 1e-3)
    assert 0 < gam <= 1
    if gap < 1e-5:
        assert gam == pytest.approx(real, rel=1e-5)


def test_one_step_size_holds_for_all_weights_of_all_groups():
    a, b = nn.Parameter(torch.zeros(2, dtype=torch.float64)), nn.Parameter(torch.zeros(3, dtype=torch.float64))
    a.grad, b.grad = torch.ones_like(a), 2 * torch.ones_like(b)
    optimizer = Sania([{"params": [a]}, {"params": [b], "lr": 0.5}], preconditioner="identity", rule="linear")
    optimizer.step(lambda: torch.tensor(7.0, dtype=torch.float64))
    assert a.tolist() == pytest.approx([-7 / 14] * 2) and b.tolist() == pytest.approx([-0.5 * 2 * 7 / 14] * 3)


def test_without_a_loss_it_says_what_it_needs():
    w = nn.Parameter(torch.zeros(1))
    w.grad = torch.ones(1)
    with pytest.raises(RuntimeError, match="closure that returns the loss"):
        Sania([w]).step()
    with pytest.raises(RuntimeError, match="oracle that has hvp"):
        Sania([w], preconditioner="hutchinson").step(lambda: torch.tensor(1.0))


@pytest.mark.parametrize("preconditioner", ["adam-sqr", "hutchinson"])
def test_it_trains_in_a_run_where_the_oracle_tells_the_loss(preconditioner):
    optimizer = {"use": "sania", "preconditioner": preconditioner, "eps": 0.1}
    _, memory, outcome = train(optimizer=optimizer, budget={"steps": 60})
    losses = memory.points["train/loss"][1]
    assert outcome.state == "done" and sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_saved_state_goes_on_bit_for_bit():
    class Told(Sania):
        def advance(self, loss):
            super().advance(torch.tensor(0.3))

    resumes(lambda p: Told(p))
