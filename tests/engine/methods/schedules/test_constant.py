"""A constant schedule changes nothing, whether the end is known or not."""

from engine.methods.schedules.constant import Constant
from engine.parts import Progress


def test_it_is_one_at_any_time_and_needs_no_end():
    schedule = Constant()
    assert {schedule.factor(Progress(step, steps)) for step in (0, 7, 10**9) for steps in (None, 10)} == {1.0}
    assert schedule.options(Progress(3), 0.25) == {"lr": 0.25}
    assert not Constant.needs_total
