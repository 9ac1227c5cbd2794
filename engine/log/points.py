"""The points of a series: in memory, as the stored binary chunk, as blocks for a chart, thinned to its pixels."""

from __future__ import annotations

import struct
from collections.abc import Sequence
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

    Six rows of numbers: steps, values, times of the lows, then of the highs. NaN counts only where nothing else is.
    """
    count = len(points)
    if count < 2 * block:
        return None
    whole = count // block * block
    low = _block_extremes(points.values, whole, block, np.inf, np.argmin)
    high = _block_extremes(points.values, whole, block, -np.inf, np.argmax)
    return b"".join(
        row.tobytes()
        for chosen in (low, high)
        for row in (points.steps[chosen], points.values[chosen], points.times[chosen])
    )


def _block_extremes(values: NDArray, whole: int, block: int, worst: float, pick) -> NDArray[np.intp]:
    if np.isnan(values).any():
        values = np.where(np.isnan(values), worst, values)
    inside = pick(values[:whole].reshape(-1, block), axis=1) + np.arange(0, whole, block)
    if whole == len(values):
        return inside
    return np.append(inside, whole + pick(values[whole:]))


def extremes(blob: bytes) -> Points:
    """The points that `summarize` kept, in ascending order of their steps, each once."""
    rows = np.frombuffer(blob, "<f8").reshape(6, -1)
    steps = rows[[0, 3]].view("<i8")
    swap = steps[0] > steps[1]
    order = np.where(swap, [[1], [0]], [[0], [1]])

    def interleave(pair: NDArray) -> NDArray:
        return np.take_along_axis(pair, order, axis=0).T.ravel()

    points = Points(interleave(steps), interleave(rows[[1, 4]]), interleave(rows[[2, 5]]))
    return points[np.append(True, points.steps[1:] != points.steps[:-1])]


def thin(points: Points, width: int, start: int, stop: int) -> Points:
    """The lowest and the highest point of each of `width` equal buckets of the steps start..stop, and both ends.

    A point belongs to bucket floor((step - start) * width / (stop - start + 1)). Of equal values the first is kept; NaN
    is kept only where a bucket holds nothing else. At most 2 * width + 2 points; each is a point of the series.
    """
    count = len(points)
    if count <= 2 * width + 2:
        return points
    buckets = ((points.steps - start) * (width / (stop - start + 1.0))).astype(np.int64)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(buckets)) + 1))
    lengths = np.diff(np.append(starts, count))
    nan = np.isnan(points.values)
    if nan.any():
        lows = _first_of(np.where(nan, np.inf, points.values), starts, lengths, np.minimum)
        highs = _first_of(np.where(nan, -np.inf, points.values), starts, lengths, np.maximum)
    else:
        lows = _first_of(points.values, starts, lengths, np.minimum)
        highs = _first_of(points.values, starts, lengths, np.maximum)
    return points[np.unique(np.concatenate(([0], lows, highs, [count - 1])))]


def _first_of(values: NDArray, starts: NDArray, lengths: NDArray, kind: np.ufunc) -> NDArray[np.intp]:
    """Where each group's extreme first stands."""
    best = kind.reduceat(values, starts)
    hits = np.flatnonzero(values == np.repeat(best, lengths))
    groups = np.searchsorted(starts, hits, side="right")
    return hits[np.concatenate(([True], groups[1:] != groups[:-1]))]
