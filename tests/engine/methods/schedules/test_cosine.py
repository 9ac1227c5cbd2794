"""The cosine agrees with torch's, rises linearly before it, and says what it needs."""

import pytest
import torch

from engine.methods.schedules.cosine import Cosine
from engine.parts import Progress


def _torch(steps, base, floor):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=floor * base)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_without_warm_up_it_is_torchs_point_by_point(floor):
    ours = [Cosine(floor=floor).options(Progress(t, 50), 0.3)["lr"] for t in range(50)]
    assert ours == pytest.approx(_torch(50, 0.3, floor), abs=1e-12)


def test_the_rise_is_linear_to_one_and_the_wave_fills_the_rest():
    factors = [Cosine(warm_up=0.2, floor=0.05).factor(Progress(t, 40)) for t in range(40)]
    assert factors[:9] == pytest.approx([(t + 1) / 9 for t in range(9)], abs=1e-15)
    assert factors[8:] == pytest.approx(_torch(32, 1.0, 0.05), abs=1e-12)
    assert Cosine(floor=0.05).factor(Progress(99, 40)) == pytest.approx(0.05)


@pytest.mark.parametrize("warm_up", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_never_stand_still(steps, warm_up):
    assert all(0 < Cosine(warm_up=warm_up).factor(Progress(t, steps)) <= 1 for t in range(steps))


def test_an_open_end_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="budget of steps or epochs"):
        Cosine().factor(Progress(3))
