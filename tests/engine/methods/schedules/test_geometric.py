"""The geometric fall: equal ratios from one end to the other."""

from __future__ import annotations

from itertools import pairwise

import pytest

from engine.methods.schedules.geometric import Geometric
from engine.parts import Progress


def test_each_step_falls_by_the_same_share_and_the_last_one_is_at_the_end() -> None:
    schedule = Geometric(0.4)
    factors = [schedule.factor(Progress(step, 50)) for step in range(50)]
    assert factors[0] == 1 and factors[-1] == pytest.approx(0.4, rel=1e-12)
    ratios = [b / a for a, b in pairwise(factors)]
    assert ratios == pytest.approx([0.4 ** (1 / 49)] * 49, rel=1e-12)
    with pytest.raises(ValueError, match="where the run ends"):
        schedule.factor(Progress(3))
