"""The curves of a chart, read and reduced on the reader's thread: a cache of series, thinning, smoothing. No Qt."""

from __future__ import annotations

import bisect
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine import axes

CACHE_POINTS = 8_000_000
FEW = 100  # a series of fewer points is not smoothed


@dataclass(frozen=True)
class Curve:
    """One line of a chart. With a run and a series it is read from the log; without, it is fed by `Chart.feed`."""

    key: str
    name: str
    colour: int = 0
    run: str = ""
    series: str = ""
    validation: bool = False
    smooth: bool = True
    points: bool = False  # marks at the points (few points)


@dataclass
class Drawn:
    """What is drawn for one curve."""

    x: np.ndarray
    y: np.ndarray
    smooth_x: np.ndarray = field(default_factory=lambda: np.empty(0))
    smooth_y: np.ndarray = field(default_factory=lambda: np.empty(0))
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    last: float | None = None
    first_x: float = math.nan
    last_x: float = math.nan


class SeriesCache:
    """Series in memory on the reader's thread: only new points are read; the least used series leave first."""

    def __init__(self, limit: int = CACHE_POINTS):
        self._limit = limit
        self._series: OrderedDict[tuple[str, str], tuple[np.ndarray, np.ndarray, np.ndarray]] = OrderedDict()

    def points(self, log: Any, run: str, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Steps, values and times of the whole series."""
        key = (run, name)
        kept = self._series.get(key)
        if kept is None or not len(kept[0]):
            new = log.points(run, name)
            kept = (np.asarray(new.steps), np.asarray(new.values), np.asarray(new.times))
        else:
            new = log.points(run, name, after=int(kept[0][-1]))
            if len(new.steps):
                kept = (
                    np.concatenate([kept[0], new.steps]),
                    np.concatenate([kept[1], new.values]),
                    np.concatenate([kept[2], new.times]),
                )
        self._series[key] = kept
        self._series.move_to_end(key)
        while len(self._series) > 1 and sum(len(entry[0]) for entry in self._series.values()) > self._limit:
            self._series.popitem(last=False)
        return kept

    def forget(self, run: str) -> None:
        """A deleted run's points leave."""
        for key in [key for key in self._series if key[0] == run]:
            del self._series[key]


def thin(x: np.ndarray, y: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """At most about two points a pixel: the lowest and the highest of each bucket, in their order."""
    count = len(x)
    if count <= 2 * width or width < 2:
        return x, y
    per = math.ceil(count / width)
    whole = count // per * per
    low_high = y[:whole].reshape(-1, per)
    if np.isnan(low_high).any():
        filled = np.where(np.isnan(low_high), np.inf, low_high)
        low = filled.argmin(axis=1)
        high = np.where(np.isnan(low_high), -np.inf, low_high).argmax(axis=1)
    else:
        low, high = low_high.argmin(axis=1), low_high.argmax(axis=1)
    base = np.arange(len(low_high)) * per
    picked = np.sort(np.stack([base + low, base + high], axis=1), axis=1).ravel()
    picked = np.concatenate([[0], picked, np.arange(whole, count), [count - 1]])
    picked = picked[np.concatenate([[True], np.diff(picked) > 0])]
    return x[picked], y[picked]


def smoothed(x: np.ndarray, y: np.ndarray, window: float, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean over a window of x, centred, weighted like a triangle; values that are not finite are left out."""
    finite = np.isfinite(y)
    if finite.sum() < 3 or window <= 0:
        return x[:0], y[:0]
    x, y = x[finite].astype(np.float64), y[finite]
    span = x[-1] - x[0]
    if span <= 0:
        return x[:0], y[:0]
    buckets = int(min(max(width, 16), len(x), 4096))
    place = np.minimum(((x - x[0]) / span * buckets).astype(np.int64), buckets - 1)
    weight = np.bincount(place, minlength=buckets).astype(np.float64)
    total = np.bincount(place, weights=y, minlength=buckets)
    at = np.bincount(place, weights=x, minlength=buckets)
    filled = weight > 0
    half = round(window / span * buckets / 2)
    for _ in range(2):
        total, weight = _boxed(total, half), _boxed(weight, half)
    filled &= weight > 0
    centre = at[filled] / np.bincount(place, minlength=buckets)[filled]
    return centre, total[filled] / weight[filled]


def _boxed(values: np.ndarray, half: int) -> np.ndarray:
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    return sums[np.minimum(index + half + 1, len(values))] - sums[np.maximum(index - half, 0)]


def read_curves(
    log: Any,
    cache: SeriesCache,
    curves: Sequence[Curve],
    *,
    clock: str,
    span: tuple[float, float] | None,
    width: int,
    smoothing: float,
) -> dict[str, Drawn]:
    """What a chart draws, read and reduced on the reader's thread. `clock` is an axis of `engine.axes`."""
    drawn: dict[str, Drawn] = {}
    for curve in curves:
        placed = read_along(log, cache, curve.run, curve.series, clock) if curve.run else None
        if placed is not None:
            drawn[curve.key] = _reduced(*placed, curve, span, width, smoothing)
    return drawn


def read_along(log: Any, cache: SeriesCache, run: str, series: str, clock: str) -> tuple[np.ndarray, np.ndarray] | None:
    """A series' places on an axis and its values; None where it has no points, or the run does not know the axis."""
    steps, values, times = cache.points(log, run, series)
    if not len(steps):
        return None
    try:
        return place(log, cache, run, clock, steps, times), values
    except ValueError:
        return None


def place(log: Any, cache: SeriesCache, run: str, clock: str, steps: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Where the points of a run lie on an axis. Raises ValueError where the run does not know it."""
    if clock in (axes.STEP, axes.TIME):
        started = float((log.run(run) or {}).get("started") or times[0]) if clock == axes.TIME else 0.0
        return axes.along(clock, steps, times, started)
    return axes.along(clock, steps, times, 0.0, cache.points(log, run, clock)[:2])


def _reduced(
    x: np.ndarray, y: np.ndarray, curve: Curve, span: tuple[float, float] | None, width: int, smoothing: float
) -> Drawn:
    first, last = float(x[0]), float(x[-1])
    window = smoothing * (last - first)
    low, high = 0, len(x)
    if span is not None:
        low = max(int(np.searchsorted(x, span[0])) - 1, 0)
        high = min(int(np.searchsorted(x, span[1], side="right")) + 1, len(x))
    raw_x, raw_y = thin(x[low:high], y[low:high], width)
    result = Drawn(raw_x, raw_y, last=float(y[-1]), first_x=first, last_x=last)
    if curve.smooth and smoothing > 0 and len(x) >= FEW and high - low > 8:
        if span is not None:  # a margin on both sides, so that the line does not depend on where the view ends
            low = max(int(np.searchsorted(x, span[0] - window)), 0)
            high = min(int(np.searchsorted(x, span[1] + window, side="right")), len(x))
        result.smooth_x, result.smooth_y = smoothed(x[low:high], y[low:high], window, width)
    return result


class MachineCache:
    """The machine's samples in memory on the reader's thread, read on from where they end."""

    LIMIT = 100_000

    def __init__(self) -> None:
        self._from = math.inf
        self._samples: list[dict[str, Any]] = []

    def since(self, log: Any, start: float) -> list[dict[str, Any]]:
        """Samples with time > start, oldest first."""
        if start < self._from:
            self._samples = log.machine(start, limit=self.LIMIT)
            self._from = start
        else:
            last = self._samples[-1]["time"] if self._samples else self._from
            self._samples += log.machine(last)
            if len(self._samples) > self.LIMIT:
                self._samples = self._samples[-self.LIMIT :]
                self._from = self._samples[0]["time"] - 1e-6
        times = [sample["time"] for sample in self._samples]
        return self._samples[bisect.bisect_right(times, start) :]


def utilization(
    log: Any, cache: SeriesCache, machine: MachineCache, run: dict[str, Any], clock: str, width: int
) -> dict[str, Drawn]:
    """The load of processor and GPUs while a run trained, along the same x axis as its series."""
    start = run.get("started")
    if not start:
        return {}
    end = run.get("ended") or math.inf
    samples = [sample for sample in machine.since(log, start - 1) if sample["time"] <= end + 1]
    if not samples:
        return {}
    times = np.array([sample["time"] for sample in samples])
    x = times - start
    if clock != axes.TIME:
        steps, at = _steps_over_time(log, cache, run["id"])
        if len(steps) < 2:
            return {}
        inside = (times >= at[0]) & (times <= at[-1])
        samples = [sample for sample, keep in zip(samples, inside, strict=True) if keep]
        try:
            x = place(log, cache, run["id"], clock, np.interp(times[inside], at, steps), times[inside])
        except ValueError:
            return {}
    columns: dict[str, list[float]] = {"cpu": [_figure(sample.get("cpu")) for sample in samples]}
    for number in range(max((len(sample.get("gpus") or []) for sample in samples), default=0)):
        columns[f"gpu{number}"] = [_gpu(sample, number) for sample in samples]
    drawn = {}
    for name, values in columns.items():
        if not values:
            continue
        thin_x, thin_y = thin(x, np.array(values, dtype=np.float64), width)
        drawn[name] = Drawn(thin_x, thin_y, last=values[-1], first_x=float(x[0]), last_x=float(x[-1]))
    return drawn


def _steps_over_time(log: Any, cache: SeriesCache, run: str) -> tuple[np.ndarray, np.ndarray]:
    """The longest series of a run says when which step was."""
    infos = log.series(run)
    if not infos:
        return np.empty(0), np.empty(0)
    longest = max(infos, key=lambda info: info.count)
    steps, _, times = cache.points(log, run, longest.name)
    stride = max(1, len(steps) // 4000)
    return steps[::stride].astype(np.float64), times[::stride]


def _gpu(sample: dict[str, Any], number: int) -> float:
    gpus = sample.get("gpus") or []
    return _figure(gpus[number].get("utilization")) if number < len(gpus) else math.nan


def _figure(value: Any) -> float:
    return math.nan if value is None else float(value)
