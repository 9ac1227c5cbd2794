"""The polynomial fall agrees with torch's, rises linearly before it, and says what it needs."""

import pytest
import torch

from engine.methods.schedules.polynomial import Polynomial
from engine.parts import Progress


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
def test_without_warm_up_it_is_torchs_point_by_point(power):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=40, power=power)
    for t in range(40):
        ours = Polynomial(power=power).options(Progress(t, 40), 0.3)["lr"]
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        schedule.step()


def test_the_rise_is_linear_and_the_fall_fills_the_rest_down_to_the_floor():
    factors = [Polynomial(warm_up=0.1, floor=0.2).factor(Progress(t, 40)) for t in range(40)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], abs=1e-15)
    assert factors[22] == pytest.approx(0.6, abs=1e-15)
    assert Polynomial(floor=0.2).factor(Progress(99, 40)) == pytest.approx(0.2)


def test_an_open_end_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="budget of steps or epochs"):
        Polynomial().factor(Progress(3))
