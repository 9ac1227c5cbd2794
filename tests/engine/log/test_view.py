"""Reading a series by range and by pixel width, with and without stored summaries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.log import Log, Points, SeriesWriter
from engine.log.points import COARSE, FINE, thin


def stored(path: Path, steps: np.ndarray, values: np.ndarray, flushes: int) -> tuple[Log, str]:
    log = Log(path / "athanor.db")
    run = log.create_run("")
    with SeriesWriter(log.path, run, interval=10) as writer:
        handle = writer.series("curve")
        for part in np.array_split(np.arange(len(steps)), flushes):
            writer.extend(handle, steps[part], values[part])
            writer.flush()
    return log, run


@pytest.mark.parametrize("flushes", [1, 30])
def test_ranges_have_both_ends_and_after_has_not_its_own(tmp_path: Path, flushes: int) -> None:
    steps = np.cumsum(np.random.default_rng(1).integers(1, 9, 500))
    log, run = stored(tmp_path, steps, steps / 3, flushes)
    with log:
        for start, stop in (
            (None, None),
            (steps[10], steps[20]),
            (steps[10] + 1, None),
            (None, steps[20]),
            (10**9, None),
        ):
            low, high = -1 if start is None else start, 10**9 if stop is None else stop
            expected = steps[(steps >= low) & (steps <= high)]
            start, stop = (None if end is None else int(end) for end in (start, stop))
            assert log.points(run, "curve", start=start, stop=stop).steps.tolist() == expected.tolist()
        assert log.points(run, "curve", after=int(steps[100])).steps.tolist() == steps[101:].tolist()
        assert len(log.points(run, "curve", after=int(steps[-1]))) == 0
        assert len(log.points(run, "nothing", width=10)) == len(log.points("nowhere", "curve")) == 0


def test_a_view_of_a_short_series_is_exact(tmp_path: Path) -> None:
    steps = np.cumsum(np.random.default_rng(2).integers(1, 9, 5000))
    values = np.random.default_rng(3).normal(size=5000)
    log, run = stored(tmp_path, steps, values, 20)
    with log:
        kept = log.points(run, "curve", width=100)
        expected = thin(Points(steps, values, np.zeros(5000)), 100, int(steps[0]), int(steps[-1]))
        assert kept.steps.tolist() == expected.steps.tolist()
        assert kept.values.tolist() == expected.values.tolist()


@pytest.mark.parametrize(("count", "width", "block"), [(300_000, 400, FINE), (1_000_000, 60, COARSE)])
def test_a_view_of_a_long_series_is_exact_but_for_a_blocks_width(
    tmp_path: Path, count: int, width: int, block: int
) -> None:
    steps = 7 + 3 * np.arange(count)
    values = np.cumsum(np.random.default_rng(4).normal(size=count))
    values[count // 3] = np.nan
    log, run = stored(tmp_path, steps, values, 11)
    with log:
        kept = log.points(run, "curve", width=width)
        whole = log.points(run, "curve")
    assert whole.values.tobytes() == values.tobytes()
    assert len(kept) <= 2 * width + 2
    at = (kept.steps - 7) // 3
    assert (kept.values == values[at]).all()  # every one is a point of the series
    assert kept.values.min() == np.nanmin(values)
    assert kept.values.max() == np.nanmax(values)
    span = int(steps[-1]) - 7 + 1
    pixel = (kept.steps - 7) * width // span
    truth = (steps - 7) * width // span
    for number in range(width):
        mine = kept.values[pixel == number]
        inside = np.flatnonzero(truth == number)
        inner = values[inside[block:-block]]  # what no block shares with a neighbour
        assert np.nanmin(values[inside]) <= mine.min() <= np.nanmin(inner)
        assert np.nanmax(values[inside]) >= mine.max() >= np.nanmax(inner)


def test_a_long_series_takes_few_bytes(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    steps = np.cumsum(random.integers(1, 9, 300_000))  # uneven steps, full precision: the costliest there is
    log, _ = stored(tmp_path, steps, random.normal(size=300_000), 40)
    with log:
        log._rows("PRAGMA wal_checkpoint(TRUNCATE)")
        pages = log._rows("SELECT page_count - freelist_count AS n FROM pragma_page_count, pragma_freelist_count")[0][
            "n"
        ]
        assert pages * log._rows("PRAGMA page_size")[0]["page_size"] <= 20 * 300_000
