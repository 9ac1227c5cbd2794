"""Reading the points of a series: all of a range, or only what a chart's pixels need."""

from __future__ import annotations

import sqlite3

from engine.log.points import COARSE, FINE, Points, decode, extremes, thin

FIRST, LAST = -(2**63), 2**63 - 1
BLOCKS_PER_BUCKET = 4  # a bucket of a summarized view is made of at least so many blocks

CHUNKS = (
    "FROM chunks WHERE series = (SELECT id FROM series WHERE run = ? AND name = ?) "
    "AND last_step >= ? AND first_step <= ? ORDER BY seq"
)


def exact(connection: sqlite3.Connection, run: str, name: str, start: int | None, stop: int | None) -> Points:
    """Every point with start <= step <= stop."""
    low, high = FIRST if start is None else start, LAST if stop is None else stop
    rows = connection.execute(f"SELECT data {CHUNKS}", (run, name, low, high)).fetchall()
    return _within(Points.join([decode(data) for (data,) in rows]), start, stop)


def thinned(
    connection: sqlite3.Connection, run: str, name: str, start: int | None, stop: int | None, width: int
) -> Points:
    """The lowest and highest point of each of `width` equal stretches of the steps.

    Up to a few hundred points a stretch all points are read and the result is exact. Of longer series only the stored
    extremes of blocks are read. Then every returned point is still a point of the series, and a stretch may lack an
    extreme only where that lies in a block shared with its neighbour, beside a more extreme point there.
    """
    low, high = FIRST if start is None else start, LAST if stop is None else stop
    arguments = (run, name, low, high)
    total, first, last = connection.execute(
        f"SELECT sum(count), min(first_step), max(last_step) FROM (SELECT count, first_step, last_step {CHUNKS})",
        arguments,
    ).fetchone()
    if not total:
        return Points.empty()
    low, high = max(low, first), min(high, last)
    inside = total * min(1.0, (high - low + 1) / (last - first + 1))  # chunks at the ends may lie partly outside
    bucket = inside / width
    if bucket >= BLOCKS_PER_BUCKET * FINE:
        column = "coarse" if bucket >= BLOCKS_PER_BUCKET * COARSE else "fine"
        sql = f"SELECT {column}, CASE WHEN {column} IS NULL THEN data END {CHUNKS}"
        rows = connection.execute(sql, arguments).fetchall()
        parts = [decode(data) if blocks is None else extremes(blocks) for blocks, data in rows]
    else:
        rows = connection.execute(f"SELECT data {CHUNKS}", arguments).fetchall()
        parts = [decode(data) for (data,) in rows]
    return thin(_within(Points.join(parts), start, stop), width, low, high)


def _within(points: Points, start: int | None, stop: int | None) -> Points:
    if start is None and stop is None:
        return points
    begin = 0 if start is None else int(points.steps.searchsorted(start, side="left"))
    end = len(points) if stop is None else int(points.steps.searchsorted(stop, side="right"))
    return points[begin:end]
