"""What the points of runs can be laid along: steps, time, epochs, or whatever the runs have counted.

Every run logs, beside its points, how far it was at some of its steps: the series `epoch`, `experience` and
`count/NAME`. Between two of them a point's place is interpolated.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP, TIME, EPOCH, EXPERIENCE = "step", "time", "epoch", "experience"
COUNTED = "count/"


def axes_of(names: Iterable[str]) -> list[str]:
    """The axes of runs with these series, in the order in which a person meets them."""
    there = set(names)
    counted = sorted(name for name in there if name.startswith(COUNTED))
    return [STEP, TIME, *(name for name in (EPOCH, EXPERIENCE) if name in there), *counted]


def measures_progress(series: str) -> bool:
    """Whether a series tells how far a run was, and nothing of how well it did."""
    return series in (EPOCH, EXPERIENCE) or series.startswith(COUNTED)


def words(axis: str, many: bool = True) -> str:
    """An axis in words: "steps", "gradient passes"; one of it: "step"."""
    if axis == TIME:
        return "time"
    name = axis.removeprefix(COUNTED).replace("-", " ")
    if axis.startswith(COUNTED):
        return name
    return f"{name}s" if many else name


def along(
    axis: str,
    steps: NDArray[Any],
    times: NDArray[Any],
    started: float,
    told: tuple[NDArray[Any], NDArray[Any]] | None = None,
) -> NDArray[np.float64]:
    """Where points lie on an axis. `told` are the steps and values of the series that the axis is named after.

    Raises ValueError where an axis needs such a series and has none.
    """
    if axis == STEP:
        return steps.astype(np.float64)
    if axis == TIME:
        return times - started
    if told is None or not len(told[0]):
        raise ValueError(f"The run has not counted its {words(axis)}.")
    at, value = (np.concatenate([[0.0], np.asarray(each, dtype=np.float64)]) for each in told)
    return np.interp(steps, at, value)
