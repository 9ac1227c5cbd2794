"""The points of a series: in memory, as the stored binary chunk, as blocks for a chart, thinned to its pixels."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import LogError

# version, bytes of a step's difference (0: evenly spaced), of a value (4 or 8), of a time (0: a straight line or 4);
# count, first step, spacing, first and last time.
HEADER = struct.Struct("<BBBBIqqdd")
VERSION = 1
FINE, COARSE = 128, 2048  # points in one block of the two summaries
TICKS = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Points:
    """Some points of one series, in ascending order of their steps; times are unix seconds."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    times: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, chosen: slice | NDArray) -> Points:
        return Points(self.steps[chosen], self.values[chosen], self.times[chosen])

    @classmethod
    def empty(cls) -> Points:
        return cls(np.empty(0, np.int64), np.empty(0), np.empty(0))

    @classmethod
    def join(cls, parts: Sequence[Points]) -> Points:
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.empty()
        return cls(
            np.concatenate([part.steps for part in parts]),
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.times for part in parts]),
        )


def spread(start: float, end: float, count: int) -> NDArray[np.float64]:
    """Wall times of `count` points that came evenly after `start`, the last one at `end`."""
    return end + np.arange(1 - count, 1, dtype=np.float64) * ((end - start) / count)


def encode(points: Points, line: tuple[float, float] | None = None) -> bytes:
    """One chunk. `line` = (start, end) says that the times are `spread(start, end, count)`, which costs no bytes.

    Steps and values come back bit for bit. Times are kept to 2**-32 of the chunk's stretch of time.
    """
    steps, values = points.steps, points.values
    count = len(steps)
    spacing, step_width, differences = _encode_steps(steps)
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    exact = narrow.astype(np.float64).tobytes() == values.tobytes()
    body = [narrow.tobytes() if exact else values.tobytes()]
    if line is not None:
        time_width, (start, end) = 0, line
    else:
        time_width, start, end = 4, float(points.times.min()), float(points.times.max())
        scale = TICKS / (end - start) if end > start else 0.0
        body.append(np.rint((points.times - start) * scale).astype(np.uint32).tobytes())
    header = HEADER.pack(VERSION, step_width, 4 if exact else 8, time_width, count, steps[0], spacing, start, end)
    return b"".join((header, *body, differences))


def _encode_steps(steps: NDArray[np.int64]) -> tuple[int, int, bytes]:
    """The spacing of evenly spaced steps, or the differences in the narrowest unsigned integers that hold them."""
    if len(steps) == 1:
        return 0, 0, b""
    gaps = np.diff(steps).view(np.uint64)  # strictly ascending, so the wrapped difference is right at any distance
    least, most = int(gaps.min()), int(gaps.max())
    if least == most and most < 2**63:
        return most, 0, b""
    width = 1 if most < 2**8 else 2 if most < 2**16 else 4 if most < 2**32 else 8
    return 0, width, gaps.astype(f"<u{width}").tobytes()


def decode(blob: bytes) -> Points:
    """The points of a chunk that `encode` made."""
    try:
        version, step_width, value_width, time_width, count, first, spacing, start, end = HEADER.unpack_from(blob)
        if version != VERSION:
            raise ValueError(f"chunk format {version}")
        at = HEADER.size
        values = np.frombuffer(blob, f"<f{value_width}", count, at).astype(np.float64)
        at += count * value_width
        if time_width:
            ticks = np.frombuffer(blob, "<u4", count, at)
            times = start + ticks * ((end - start) / TICKS)
            at += count * time_width
        else:
            times = spread(start, end, count)
        if step_width:
            steps = np.empty(count, np.int64)
            steps[0] = first
            steps[1:] = np.frombuffer(blob, f"<u{step_width}", count - 1, at)
            np.cumsum(steps, out=steps)
        else:
            steps = first + spacing * np.arange(count, dtype=np.int64)
        return Points(steps, values, times)
    except (ValueError, TypeError, struct.error) as error:
        raise LogError(
            f"A part of a stored series cannot be read: {error}. The database is damaged or was written by another "
            "version; restore it from a backup or export the other runs."
        ) from None


def summarize(points: Points, block: int) -> bytes | None:
    """The lowest and the highest point of each `block` consecutive points; None where there are too few to be worth it.

    Three rows of numbers: steps, values, times, in ascending order, each point once. NaN counts only where a block
    holds nothing else.
    """
    count = len(points)
    if count < 2 * block:
        return None
    if np.isnan(points.values).any():
        chosen = _lows_and_highs(points.values, np.append(np.arange(0, count, block), count))
    else:
        whole = count // block * block
        picks = [_block_extremes(points.values, whole, block, pick) for pick in (np.argmin, np.argmax)]
        chosen = np.concatenate(picks)
    chosen = np.unique(chosen)
    return b"".join(row[chosen].tobytes() for row in (points.steps, points.values, points.times))


def _block_extremes(values: NDArray, whole: int, block: int, pick: Callable[..., NDArray[np.intp]]) -> NDArray[np.intp]:
    inside = pick(values[:whole].reshape(-1, block), axis=1) + np.arange(0, whole, block)
    if whole == len(values):
        return inside
    return np.append(inside, whole + pick(values[whole:]))


def extremes(blob: bytes) -> Points:
    """The points that `summarize` kept."""
    rows = np.frombuffer(blob, "<f8").reshape(3, -1)
    return Points(rows[0].view("<i8"), rows[1], rows[2])


def thin(points: Points, width: int, start: int, stop: int) -> Points:
    """The lowest and the highest point of each of `width` equal buckets of the steps start..stop, and both ends.

    A point belongs to bucket floor((step - start) * width / (stop - start + 1)). Of equal values the first is kept; NaN
    is kept only where a bucket holds nothing else. At most 2 * width + 2 points; each is a point of the series.
    """
    count = len(points)
    if count <= 2 * width + 2:
        return points
    span, index = stop - start + 1, np.arange(width)
    # The first step of each bucket, ceil(index * span / width), without a product that could overflow.
    edges = start + index * (span // width) + -(-(index * (span % width)) // width)
    bounds = np.unique(np.append(points.steps.searchsorted(edges), count))
    return points[np.unique(np.concatenate(([0], _lows_and_highs(points.values, bounds), [count - 1])))]


def _lows_and_highs(values: NDArray, bounds: NDArray[np.intp]) -> NDArray[np.intp]:
    """Where the lowest and the highest value of each group bounds[i]..bounds[i + 1] first stand."""
    numbers = np.flatnonzero(~np.isnan(values))
    if len(numbers) == len(values):
        return np.concatenate([_first_of(values, bounds, kind) for kind in (np.minimum, np.maximum)])
    inner = numbers.searchsorted(bounds)
    only_nan = bounds[:-1][np.diff(inner) == 0]
    if not len(numbers):
        return only_nan
    return np.concatenate((only_nan, numbers[_lows_and_highs(values[numbers], np.unique(inner))]))


def _first_of(values: NDArray, bounds: NDArray[np.intp], kind: np.ufunc) -> NDArray[np.intp]:
    """Where each group's extreme first stands."""
    starts = bounds[:-1]
    hits = np.flatnonzero(values == np.repeat(kind.reduceat(values, starts), np.diff(bounds)))
    groups = starts.searchsorted(hits, side="right")
    return hits[np.append(True, groups[1:] != groups[:-1])]
