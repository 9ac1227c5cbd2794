"""The chunk codec, the summaries and thinning, against what they are defined to be."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import LogError
from engine.log.points import Points, decode, encode, extremes, spread, summarize, thin

STEPS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=60, unique=True).map(sorted)
BITS = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])
VALUES = st.one_of(st.floats(width=32), st.floats(), BITS)


def points_of(steps: list[int], values: list[float], times: list[float] | None = None) -> Points:
    return Points(
        np.array(steps, np.int64), np.array(values, np.float64), np.array(times or [0.0] * len(steps), np.float64)
    )


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_steps_and_values_come_back_bit_for_bit(data: st.DataObject) -> None:
    steps = data.draw(STEPS)
    values = data.draw(st.lists(VALUES, min_size=len(steps), max_size=len(steps)))
    times = data.draw(st.lists(st.floats(0, 4e9), min_size=len(steps), max_size=len(steps)))
    points = points_of(steps, values, times)
    back = decode(encode(points))
    assert back.steps.tolist() == steps
    assert back.values.tobytes() == points.values.tobytes()
    span = points.times.max() - points.times.min()
    assert np.abs(back.times - points.times).max() <= span * 2.0**-32 + 1e-6


@pytest.mark.parametrize("stride", [1, 7, 2**40])
def test_evenly_spaced_steps_and_times_on_a_line_cost_nothing(stride: int) -> None:
    points = Points(np.arange(1000) * stride, np.random.default_rng(0).normal(size=1000), spread(5.0, 6.0, 1000))
    blob = encode(points, (5.0, 6.0))
    assert len(blob) == 40 + 8 * 1000
    back = decode(blob)
    assert (back.steps == points.steps).all()
    assert (back.times == points.times).all()
    assert back.times[-1] == 6.0
    assert back.times[0] > 5.0


def test_single_precision_values_take_four_bytes() -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32).astype(np.float64)
    blob = encode(Points(np.arange(1000), values, spread(0.0, 1.0, 1000)), (0.0, 1.0))
    assert len(blob) == 40 + 4 * 1000
    assert (decode(blob).values == values).all()


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_damaged_bytes_are_an_error_with_words(blob: bytes) -> None:
    try:
        decode(b"\x01" + blob)
    except LogError as error:
        assert "damaged" in str(error)


@given(st.integers(2, 40).flatmap(lambda count: st.lists(VALUES, min_size=count, max_size=count)), st.integers(1, 9))
@settings(deadline=None)
def test_summaries_keep_the_extremes_of_each_block(values: list[float], block: int) -> None:
    points = points_of(list(range(0, 3 * len(values), 3)), values, [float(at) for at in range(len(values))])
    blob = summarize(points, block)
    if blob is None:
        assert len(values) < 2 * block
        return
    kept = extremes(blob)
    expected: set[int] = set()
    for at in range(0, len(values), block):
        part = [index for index in range(at, min(at + block, len(values))) if values[index] == values[index]] or [at]
        expected.add(min(part, key=lambda index: (values[index], index)))
        expected.add(min(part, key=lambda index: (-values[index], index)))
    assert [step // 3 for step in kept.steps.tolist()] == sorted(expected)
    assert kept.values.tobytes() == points.values[kept.steps // 3].tobytes()
    assert (kept.times == kept.steps // 3).all()


def oracle(points: Points, width: int, start: int, stop: int) -> list[int]:
    """Thinning point by point, with exact integers."""
    buckets: dict[int, list[int]] = {}
    for index, step in enumerate(points.steps.tolist()):
        buckets.setdefault((step - start) * width // (stop - start + 1), []).append(index)
    chosen = {0, len(points) - 1}
    values = points.values.tolist()
    for members in buckets.values():
        numbers = [index for index in members if values[index] == values[index]] or members[:1]
        chosen.add(min(numbers, key=lambda index: (values[index], index)))
        chosen.add(min(numbers, key=lambda index: (-values[index], index)))
    return sorted(chosen)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_thinning_equals_the_oracle(data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.integers(-(2**61), 2**61), min_size=30, max_size=60, unique=True).map(sorted))
    some = st.sampled_from([0.0, 1.0, 2.0, -1.0, float("inf"), float("-inf"), float("nan")])
    values = data.draw(st.lists(some, min_size=len(steps), max_size=len(steps)))
    width = data.draw(st.integers(1, 12))
    points = points_of(steps, values)
    low, high = steps[0] - data.draw(st.integers(0, 9)), steps[-1] + data.draw(st.integers(0, 9))
    kept = thin(points, width, low, high)
    whole = list(range(len(steps))) if len(steps) <= 2 * width + 2 else oracle(points, width, low, high)
    assert kept.steps.tolist() == [steps[index] for index in whole]
    assert len(kept) <= 2 * width + 2
