"""L-BFGS: the minimum of a quadratic, one curvature for all weights, and a real run through closures."""

import pytest
import torch

from engine.methods.optimizers.lbfgs import LBFGS
from tests.engine.methods.short import train


def test_a_few_steps_solve_linear_least_squares_like_the_normal_equations():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(40, generator=generator, dtype=torch.float64)
    w = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer = LBFGS([w], tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure():
        optimizer.zero_grad()
        loss = (x @ w - y).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    torch.testing.assert_close(w.detach(), torch.linalg.lstsq(x, y).solution, rtol=1e-8, atol=1e-8)


def test_groups_with_settings_of_their_own_are_refused_with_what_to_do():
    a, b = (torch.zeros(1, requires_grad=True) for _ in range(2))
    with pytest.raises(ValueError, match="Leave out the technique"):
        LBFGS([{"params": [a]}, {"params": [b], "lr": 0.1}])


def test_in_a_run_on_all_data_it_reaches_a_loss_that_sgd_does_not():
    full = {"training": {"batch_size": 1000}, "budget": {"steps": 8}}
    _, memory, _ = train(optimizer={"use": "lbfgs"}, **full)
    _, _, sgd = train(optimizer={"use": "sgd", "lr": 0.5}, **full)
    losses = memory.points["train/loss"][1]
    assert losses[-1] < 0.1 * losses[0]
    assert losses[-1] < 0.5 * sgd.metrics["train/loss"]
