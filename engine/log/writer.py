"""What a worker logs with: numbers are taken in a fraction of a microsecond and made durable by a thread of its own."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import threading
import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import LogError
from engine.log.log import encode_columns
from engine.log.points import COARSE, FINE, Points, decode, encode, spread, summarize
from engine.log.schema import connect, explain, explained, transaction
from engine.log.values import dump

FAN = 16  # so many chunks of one level become one of the next
FULL = 32768  # a chunk of so many points is never merged again
LARGEST = 131072  # no chunk is made larger than this by a flush
PAIR = np.dtype([("step", "<i8"), ("value", "<f8")])  # one logged number as it waits in its series' buffer
PACK = struct.Struct("<qd").pack
HEARTBEAT = 1.0
LAST_TRY = 15.0  # seconds that close() keeps trying when the database cannot be written


class Clock:
    """Wall time that never runs backwards: a clock set back is followed from where it was."""

    def __init__(self) -> None:
        self._offset = 0.0
        self._wall, self._steady = clock.time(), clock.monotonic()

    def now(self) -> float:
        wall, steady = clock.time() + self._offset, clock.monotonic()
        if wall < self._wall:
            expected = self._wall + (steady - self._steady)
            self._offset += expected - wall
            wall = expected
        self._wall, self._steady = wall, steady
        return wall


class Syncer:
    """Brings what was committed to the disk itself, so that a power loss takes at most one interval.

    This is done outside of the transaction: while the disk works no other writer waits for the database, as it would
    with SQLite's own synchronous = FULL. A slow disk is asked less often, so that it works for us a tenth of the time;
    at once where someone waits for the points to be safe, as before a checkpoint: one that outlived the points before
    it would leave a gap.
    """

    def __init__(self, path: Path):
        self._wal = path.with_name(path.name + "-wal")
        self._file = -1
        self._next = 0.0
        self.pending = False  # whether something was committed since the disk was last asked

    def sync(self, at_once: bool) -> None:
        began = clock.monotonic()
        if not self.pending or (began < self._next and not at_once):
            return
        self.pending = False
        with contextlib.suppress(OSError):  # no write-ahead log on this file system: each commit was synced
            if self._file < 0:
                self._file = os.open(self._wal, os.O_RDWR)
            getattr(os, "fdatasync", os.fsync)(self._file)
        self._next = clock.monotonic() + 10 * (clock.monotonic() - began) - 0.2

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)


@dataclass(eq=False)
class Stored:
    """One chunk of a series that may still be merged."""

    seq: int
    level: int
    count: int
    points: Points | None = None  # kept in memory only at level 0, so that the first merge reads nothing


@dataclass
class Batch:
    """Points of one flush interval: their steps, their values, and when the interval began and ended."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    start: float
    end: float


@dataclass(eq=False)
class Series:
    """What the writer's thread knows of one series."""

    name: str
    place: int = 0
    id: int = 0
    count: int = 0
    last_step: int | None = None
    next_seq: int = 0
    tail: list[Stored] = field(default_factory=list)
    waiting: list[Batch] = field(default_factory=list)  # taken from the training thread, not yet in the database


class Overtaken(Exception):
    """Another writer has written to one of our series; what we know of it is out of date."""


class RunDeleted(Exception):
    """The run is no longer in the database."""


class SeriesWriter:
    """Logs one run. `add` may be called from any thread; a thread of the writer's own talks to the database.

    Every point is durable within `interval` seconds, in the order of its series' steps: a point at or before the last
    stored step of its series is dropped, so that a resumed run neither doubles nor loses what was there.
    `requested` is what was last asked of the run. When the database cannot be written, points wait in memory,
    `error` says why, and training goes on.
    """

    def __init__(self, path: str | Path, run: str, *, interval: float = 0.25, patience: float = 5.0):
        """`interval`: seconds until a point is durable; `patience`: seconds that one flush waits for other writers."""
        self.path = Path(path)
        self.run_id = run
        self.interval = interval
        self.patience = patience
        self.requested = ""
        self.error: LogError | None = None
        self._handles: dict[str, int] = {}
        self._buffers: list[bytearray] = []
        self._extend: list[Callable[[bytes], None]] = []
        self._series: list[Series] = []
        self._columns: dict[str, Any] = {}
        self._events: list[tuple[Any, ...]] = []
        self._figures: list[tuple[Any, ...]] = []
        self._answered: list[str] = []
        self._condition = threading.Condition()
        self._asked = self._served = 0
        self._closing = self._finished = False
        self._deadline = 0.0
        opened = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(opened,), name=f"log {run}", daemon=True)
        self._thread.start()
        opened.wait()
        if self._finished and self.error:
            raise self.error

    def __enter__(self) -> SeriesWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the training thread --

    def series(self, name: str) -> int:
        """The handle of a series, for `add`; the same for the same name."""
        handle = self._handles.get(name)
        if handle is None:
            with self._condition:
                handle = self._handles.get(name)
                if handle is None:
                    handle = len(self._buffers)
                    buffer = bytearray()
                    self._series.append(Series(name, handle))
                    self._extend.append(buffer.extend)
                    self._buffers.append(buffer)  # last: the thread goes through the buffers
                    self._handles[name] = handle
        return handle

    def add(self, handle: int, step: int, value: float) -> None:
        """Logs one number; one that is none is left out and noted as an event.

        The pair goes in with one operation of the interpreter, so that the thread that takes it away meanwhile can
        neither lose it nor tear it apart, and no lock is needed.
        """
        try:
            self._extend[handle](PACK(step, value))
        except (struct.error, TypeError, ValueError):
            self._left_out(handle, step, value)

    def extend(self, handle: int, steps: Sequence[int] | NDArray, values: Sequence[float] | NDArray) -> None:
        """Logs many numbers of one series; what is passed may be changed afterwards."""
        if len(steps) != len(values):
            raise ValueError(f"{len(steps)} steps and {len(values)} values: there must be as many of both")
        pairs = np.empty(len(steps), PAIR)
        pairs["step"], pairs["value"] = steps, values
        self._extend[handle](pairs.tobytes())

    def _left_out(self, handle: int, step: Any, value: Any) -> None:
        try:
            self._extend[handle](PACK(int(step), float(value)))  # a whole number as a float, an array of no dimension
        except (struct.error, TypeError, ValueError, OverflowError):
            name = self._series[handle].name
            self.event(f"A point of {name} was left out: step {step!r}, value {value!r}.", level="error", kind="log")

    def run(self, **columns: Any) -> None:
        """Sets columns of the run with the next flush; a later value of the same column wins."""
        encoded = encode_columns(columns)
        with self._condition:
            self._columns.update(encoded)

    def event(self, text: str, *, level: str = "info", kind: str = "", step: int | None = None) -> None:
        """Notes that something happened, with the next flush."""
        with self._condition:
            self._events.append((self.run_id, clock.time(), step, level, kind, text))

    def figure(self, probe: str, name: str, data: dict[str, Any], step: int | None = None) -> None:
        """Keeps a figure (as data), with the next flush."""
        text = dump(data)
        with self._condition:
            self._figures.append((self.run_id, probe, name, step, clock.time(), text))

    def answered(self, verb: str) -> None:
        """Takes a request back once it was obeyed, unless another one came meanwhile."""
        with self._condition:
            if self.requested == verb:
                self.requested = ""
            self._answered.append(verb)

    def flush(self, wait: bool = True) -> None:
        """Makes everything logged so far durable; with `wait` returns when it is, or raises why it cannot be."""
        with self._condition:
            if self._finished:
                if self.error:
                    raise self.error
                return
            self._asked += 1
            ticket = self._asked
            self._condition.notify_all()
            if not wait:
                return
            while self._served < ticket and not self._finished:
                self._condition.wait()
        if self.error:
            raise self.error

    def close(self) -> None:
        """Flushes, merges the small chunks that are left and ends the thread; raises if something was not written."""
        with self._condition:
            if not self._closing:
                self._closing = True
                self._deadline = clock.monotonic() + LAST_TRY
                self._asked += 1
            self._condition.notify_all()
        self._thread.join()
        if self.error:
            raise self.error

    # -- the writer's thread --

    def _work(self, opened: threading.Event) -> None:
        try:
            connection = connect(self.path, create=False, patience=self.patience)
        except LogError as error:
            self.error, self._finished = error, True
            opened.set()
            return
        try:
            self._syncer = Syncer(self.path)
            self._time = Clock()
            self._taken = self._time.now()
            self._beat = 0.0
            with explained(self.path):
                self._known = self._load(connection)
                request = connection.execute("SELECT request FROM runs WHERE id = ?", (self.run_id,)).fetchone()
            if request is None:
                raise LogError(f"There is no run {self.run_id} in {self.path}. It may have been deleted.")
            self.requested = request[0]
            opened.set()
            self._loop(connection)
        except Exception as error:  # the training thread must learn of it rather than wait for ever
            self.error = error if isinstance(error, LogError) else explain(self.path, error)
        finally:
            self._syncer.close()
            with contextlib.suppress(sqlite3.Error):
                connection.close()
            with self._condition:
                self._finished = True
                self._condition.notify_all()
            opened.set()

    def _loop(self, connection: sqlite3.Connection) -> None:
        took = 0.0
        while True:
            with self._condition:
                if self._asked == self._served and not self._closing:
                    # Early by what a flush takes, so that it has ended within the interval.
                    self._condition.wait(max(self.interval * 0.5, self.interval * 0.95 - took))
                asked, closing = self._asked, self._closing
                waited_for = asked != self._served
            began = clock.monotonic()
            done = self._flush_once(connection)
            if done:
                self._syncer.sync(at_once=waited_for)
                self._compact(connection, everything=closing)
            took = 0.8 * took + 0.2 * (clock.monotonic() - began)
            with self._condition:
                self._served = asked
                self._condition.notify_all()
                if closing and (done or clock.monotonic() > self._deadline):
                    return
                if closing:
                    self._condition.wait(self.interval)

    def _flush_once(self, connection: sqlite3.Connection) -> bool:
        """One transaction with all that waits; False, with `error` set, when the database could not be written."""
        self._take()
        for _ in range(3):
            try:
                self._write(connection)
            except Overtaken:
                with explained(self.path):
                    self._reload(connection)
                continue
            except RunDeleted:
                self._drop_everything()
                return True
            except LogError as error:
                self.error = error
                return False
            except (sqlite3.DatabaseError, OSError) as error:
                self.error = explain(self.path, error)
                return False
            self.error = None
            return True
        self.error = LogError(f"Another process keeps writing to run {self.run_id}. Stop one of the two.")
        return False

    def _take(self) -> None:
        """Moves what the training thread logged into arrays. Each operation on a buffer is one for the interpreter."""
        now = self._time.now()
        for series, buffer in zip(self._series, self._buffers, strict=False):
            size = len(buffer)
            if size:
                pairs = np.frombuffer(buffer[:size], PAIR)
                del buffer[:size]
                steps, values = pairs["step"].copy(), pairs["value"].copy()
                series.waiting.append(Batch(steps, values, self._taken, now))
        self._taken = now

    def _drop_everything(self) -> None:
        """The run was deleted under us: nothing is left to log to."""
        for series in self._series:
            series.waiting.clear()
        with self._condition:
            self._columns.clear()
            self._events.clear()
            self._figures.clear()
            self._answered.clear()
        self.requested = "stop"

    # -- the transaction --

    def _write(self, connection: sqlite3.Connection) -> None:
        with self._condition:
            columns, events, figures = dict(self._columns), list(self._events), list(self._figures)
            answered = list(self._answered)
        due = [series for series in self._series if series.waiting]
        for series in due:
            if not series.id:
                self._adopt(series)
        now = clock.time()
        if not (due or columns or events or figures or answered) and now - self._beat < HEARTBEAT and now >= self._beat:
            request = connection.execute("SELECT request FROM runs WHERE id = ?", (self.run_id,)).fetchone()
            self._heed(request)
            return
        changes = [(series, change) for series in due if (change := plan(series))]
        ids: list[int] = []
        with transaction(connection, full="state" in columns):
            request = self._write_run(connection, {**columns, "heartbeat": now}, answered)
            if changes:
                ids = self._write_series(connection, changes)
            if events:
                sql = "INSERT INTO events (run, time, step, level, kind, text) VALUES (?, ?, ?, ?, ?, ?)"
                connection.executemany(sql, events)
            if figures:
                sql = "INSERT INTO figures (run, probe, name, step, time, data) VALUES (?, ?, ?, ?, ?, ?)"
                connection.executemany(sql, figures)
        if changes or events or figures:
            self._syncer.pending = True
        self._beat = now
        for series in due:
            series.waiting.clear()
        for id, (series, change) in zip(ids, changes, strict=True):
            series.id = id
            change.apply(series)
        with self._condition:
            for name, value in columns.items():
                if self._columns.get(name) is value:
                    del self._columns[name]
            del self._events[: len(events)], self._figures[: len(figures)], self._answered[: len(answered)]
        self._heed(request)

    def _heed(self, request: tuple[str] | None) -> None:
        if request is None:
            raise RunDeleted
        with self._condition:
            if not self._answered:
                self.requested = request[0]

    def _write_run(self, connection: sqlite3.Connection, columns: dict[str, Any], answered: list[str]) -> tuple[str]:
        for verb in answered:
            connection.execute("UPDATE runs SET request = '' WHERE id = ? AND request = ?", (self.run_id, verb))
        sql = f"UPDATE runs SET {', '.join(f'{name} = ?' for name in columns)} WHERE id = ? RETURNING request"
        rows = connection.execute(sql, (*columns.values(), self.run_id)).fetchall()
        if not rows:
            raise RunDeleted
        return rows[0]

    def _write_series(self, connection: sqlite3.Connection, changes: list[tuple[Series, Change]]) -> list[int]:
        """Few statements for any number of series: after each the interpreter may be long in coming back.

        Returns the ids of the series, for them to keep once the transaction has ended well.
        """
        ids = [series.id or self._create(connection, series) for series, _ in changes]
        for series, change in changes:
            if change.replaced:
                delete_chunks(connection, series.id, change.replaced)
        rows = [(id, *row) for id, (_, change) in zip(ids, changes, strict=True) for row in change.rows]
        try:
            insert_chunks(connection, rows)
        except sqlite3.IntegrityError:
            raise Overtaken from None
        updates = [
            (id, self.run_id, series.name, series.count + change.added, change.last_step, change.last_value)
            for id, (series, change) in zip(ids, changes, strict=True)
        ]
        insert_many(
            connection,
            "INSERT INTO series (id, run, name, count, last_step, last_value) VALUES",
            updates,
            "ON CONFLICT (id) DO UPDATE SET count = excluded.count, last_step = excluded.last_step, "
            "last_value = excluded.last_value",
        )
        return ids

    def _adopt(self, series: Series) -> None:
        """Goes on with what was stored of a series by an earlier process."""
        known = self._known.get(series.name)
        if known is None:
            series.id, series.count, series.last_step, series.next_seq, series.tail = 0, 0, None, 0, []
        else:
            series.id, series.count, series.last_step = known.id, known.count, known.last_step
            series.next_seq, series.tail = known.next_seq, list(known.tail)

    def _create(self, connection: sqlite3.Connection, series: Series) -> int:
        """The row of a series that is not stored yet; another process may have been faster."""
        rows = connection.execute(
            "INSERT INTO series (run, name) VALUES (?, ?) ON CONFLICT (run, name) DO NOTHING RETURNING id",
            (self.run_id, series.name),
        ).fetchall()
        if not rows:
            raise Overtaken
        return int(rows[0][0])

    def _load(self, connection: sqlite3.Connection) -> dict[str, Series]:
        """Every stored series of the run, with its chunks that may still be merged."""
        sql = "SELECT id, name, count, last_step FROM series WHERE run = ?"
        rows = connection.execute(sql, (self.run_id,)).fetchall()
        found = {id: Series(name, 0, id, count, step) for id, name, count, step in rows}
        sql = (
            "SELECT series, seq, level, count FROM chunks "
            "WHERE series IN (SELECT id FROM series WHERE run = ?) ORDER BY series, seq"
        )
        for id, seq, level, count in connection.execute(sql, (self.run_id,)).fetchall():
            series = found[id]
            series.next_seq = seq + 1
            if count >= FULL:
                series.tail.clear()
            else:
                series.tail.append(Stored(seq, max(level, 1), count))
        return {series.name: series for series in found.values()}

    def _reload(self, connection: sqlite3.Connection) -> None:
        """Learns anew what is stored of the series that another process has written to."""
        self._known = self._load(connection)
        for series in self._series:
            known = self._known.get(series.name)
            if series.id and (known is None or (series.id, series.next_seq) != (known.id, known.next_seq)):
                self._adopt(series)

    # -- merging --

    def _compact(self, connection: sqlite3.Connection, *, everything: bool) -> None:
        """Makes one chunk of many small ones, a few series at a time; at the end of the run all that is left."""
        budget = clock.monotonic() + (LAST_TRY if everything else 0.02)
        for series in list(self._series):
            group = series.tail if everything else due_group(series.tail)
            if len(group) < 2:
                continue
            try:
                self._merge(connection, series, list(group))
            except LogError:
                series.tail.clear()  # a chunk cannot be read: leave it and its neighbours as they are
            except (Overtaken, sqlite3.DatabaseError):
                return  # it can wait; the next flush learns of it
            if clock.monotonic() > budget:
                return

    def _merge(self, connection: sqlite3.Connection, series: Series, group: list[Stored]) -> None:
        first, last = group[0].seq, group[-1].seq
        with transaction(connection):
            rows = connection.execute(
                "SELECT data FROM chunks WHERE series = ? AND seq BETWEEN ? AND ? ORDER BY seq",
                (series.id, first, last),
            ).fetchall()
            if len(rows) != len(group):
                raise Overtaken
            points = Points.join([decode(data) for (data,) in rows])
            level = max(stored.level for stored in group) + 1
            delete_chunks(connection, series.id, group)
            # The last number is kept: a writer that does not know of the merge still collides with it.
            cuts = range(0, len(points), LARGEST)
            parts = [(last - len(cuts) + 1 + n, points[at : at + LARGEST]) for n, at in enumerate(cuts)]
            insert_chunks(connection, [(series.id, *chunk_row(seq, level, part)) for seq, part in parts])
        at = series.tail.index(group[0])
        if len(points) >= FULL:
            del series.tail[: at + len(group)]
        else:
            series.tail[at : at + len(group)] = [Stored(last, level, len(points))]


@dataclass
class Change:
    """What one flush does to one series."""

    rows: list[tuple[Any, ...]]
    replaced: list[Stored]
    kept: list[Stored]
    added: int
    last_step: int
    last_value: float
    next_seq: int

    def apply(self, series: Series) -> None:
        series.count += self.added
        series.last_step = self.last_step
        series.next_seq = self.next_seq
        series.tail = self.kept


def plan(series: Series) -> Change | None:
    """The chunks to write for what waits: a small one, or one in place of all the small ones before it."""
    fresh = ascending(series.waiting, series.last_step)
    if not fresh:
        return None
    added = sum(len(batch.steps) for batch in fresh)
    points = Points.join([Points(b.steps, b.values, spread(b.start, b.end, len(b.steps))) for b in fresh])
    line = (fresh[0].start, fresh[0].end) if len(fresh) == 1 else None
    small = trailing(series.tail)
    total = added + sum(stored.count for stored in small)
    fan = FAN - series.place % (FAN // 2)  # they differ, so that a hundred series do not merge in the same flush
    kept, replaced, level = series.tail, [], 0
    if small and (len(small) + 1 >= fan or total >= FULL):
        points, line, level = Points.join([*(s.points for s in small if s.points is not None), points]), None, 1
        kept, replaced = series.tail[: -len(small)], small
    rows, stored, seq = [], list(kept), series.next_seq
    for at in range(0, len(points), LARGEST):
        part = points[at : at + LARGEST]
        rows.append(chunk_row(seq, level, part, line if len(part) == len(points) else None))
        if len(part) >= FULL:
            stored = []
        else:
            stored.append(Stored(seq, level, len(part), part if level == 0 else None))
        seq += 1
    return Change(rows, replaced, stored, added, int(points.steps[-1]), float(points.values[-1]), seq)


def trailing(tail: list[Stored]) -> list[Stored]:
    """The chunks at the end whose points are still in memory."""
    at = len(tail)
    while at and tail[at - 1].points is not None:
        at -= 1
    return tail[at:]


def ascending(batches: list[Batch], last_step: int | None) -> list[Batch]:
    """The batches without what is at or before a step that came earlier."""
    result = []
    for batch in batches:
        steps = batch.steps
        if (last_step is None or steps[0] > last_step) and (len(steps) == 1 or bool((steps[1:] > steps[:-1]).all())):
            result.append(batch)
            last_step = int(steps[-1])
            continue
        floor = np.maximum.accumulate(steps)
        keep = np.append(last_step is None, floor[:-1] < steps[1:])
        if last_step is not None:
            keep[0] = True
            keep &= steps > last_step
        if keep.any():
            result.append(Batch(steps[keep], batch.values[keep], batch.start, batch.end))
            last_step = int(result[-1].steps[-1])
    return result


def due_group(tail: list[Stored]) -> list[Stored]:
    """Neighbours of one level (not in memory) that are enough to merge; none when there are not."""
    at = 0
    while at < len(tail):
        end = at
        while end < len(tail) and tail[end].level == tail[at].level and tail[end].points is None:
            end += 1
        if end - at >= FAN or (end > at + 1 and sum(stored.count for stored in tail[at:end]) >= FULL):
            return tail[at:end]
        at = max(end, at + 1)
    return []


def chunk_row(seq: int, level: int, points: Points, line: tuple[float, float] | None = None) -> tuple[Any, ...]:
    """A row of the table of chunks, after the series' id."""
    finite = points.values[~np.isnan(points.values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (None, None)
    first, last = int(points.steps[0]), int(points.steps[-1])
    coarse, fine = summarize(points, COARSE), summarize(points, FINE)
    return seq, level, first, last, len(points), low, high, coarse, fine, encode(points, line)


def delete_chunks(connection: sqlite3.Connection, series: int, group: list[Stored]) -> None:
    """Removes neighbouring chunks; when they are not what we know of them, another writer was there."""
    sql = "DELETE FROM chunks WHERE series = ? AND seq BETWEEN ? AND ?"
    if connection.execute(sql, (series, group[0].seq, group[-1].seq)).rowcount != len(group):
        raise Overtaken


def insert_chunks(connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    columns = "series, seq, level, first_step, last_step, count, low, high, coarse, fine, data"
    insert_many(connection, f"INSERT INTO chunks ({columns}) VALUES", rows)


def insert_many(connection: sqlite3.Connection, sql: str, rows: list[tuple[Any, ...]], end: str = "") -> None:
    """Inserts rows with one statement for many: each statement gives the interpreter away and must get it back."""
    for at in range(0, len(rows), 64):
        some = rows[at : at + 64]
        marks = f"({', '.join('?' * len(some[0]))})"
        values = [value for row in some for value in row]
        connection.execute(f"{sql} {', '.join([marks] * len(some))} {end}", values)
