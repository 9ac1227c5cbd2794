"""The log as readers and the service use it: runs, series, events, commands, machine samples, figures."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import time as clock
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.errors import LogError
from engine.log import view
from engine.log.points import Points
from engine.log.schema import RUN_DEFAULTS, RUNS, connect, explained, transaction
from engine.log.values import dump, load

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
JSON_COLUMNS = frozenset({"metrics", "tags", "environment", "checkpoints"})
KEPT_SECONDS = 24 * 3600  # machine samples: all of the last day, then one a minute
PRUNE_EVERY = 600


@dataclass(frozen=True, slots=True)
class SeriesInfo:
    """What is known of a series without reading its points."""

    name: str
    count: int
    last_step: int | None
    last_value: float | None


def new_id() -> str:
    """Ten characters: the time in milliseconds, then chance. Later ones sort after earlier ones."""
    number = int(clock.time() * 1000)
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = DIGITS[digit] + text
    return text.rjust(8, "0")[-8:] + secrets.choice(DIGITS) + secrets.choice(DIGITS)


def encode_columns(columns: dict[str, Any]) -> dict[str, Any]:
    """A run's columns as SQLite takes them; refuses a name that there is not."""
    unknown = sorted(set(columns) - set(RUNS))
    if unknown:
        raise TypeError(f"a run has no column {', '.join(unknown)}")
    return {name: dump(value) if name in JSON_COLUMNS else _plain(name, value) for name, value in columns.items()}


def _plain(name: str, value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if value is None or isinstance(value, float | str):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return int(value)
    raise TypeError(f"a run's {name} cannot be {value!r}: it takes text, a number of 64 bits or None")


class Log:
    """One connection to a workspace's database; used from the thread that made it."""

    def __init__(self, path: str | Path, *, readonly: bool = False, patience: float = 5.0):
        """Opens the database; creates or updates it unless `readonly`. `patience`: seconds to wait for others."""
        self.path = Path(path)
        self.readonly = readonly
        self._connection = connect(self.path, readonly=readonly, patience=patience)
        self._samples = 0

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- plumbing --

    def _rows(self, sql: str, arguments: Iterable[Any] = ()) -> list[dict[str, Any]]:
        with explained(self.path):
            cursor = self._connection.execute(sql, tuple(arguments))
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def _write(self, sql: str, arguments: Iterable[Any] = (), *, full: bool = False) -> sqlite3.Cursor:
        with explained(self.path), transaction(self._connection, full=full):
            return self._connection.execute(sql, tuple(arguments))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Makes the writes inside it one: all of them or none, and one wait for the disk."""
        with explained(self.path), transaction(self._connection, full=True):
            yield

    def version(self) -> int:
        """Changes when any other connection has written."""
        with explained(self.path):
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    # -- runs --

    def create_run(
        self,
        recipe: str,
        *,
        id: str | None = None,
        name: str = "",
        kind: str = "run",
        seed: int = 0,
        state: str = "queued",
        priority: int = 0,
        device: str = "auto",
        parent: str | None = None,
        parent_step: int | None = None,
        sweep: str | None = None,
        digest: str = "",
    ) -> str:
        """Adds a run at the end of the queue and returns its id."""
        now = clock.time()
        columns = encode_columns({
            "recipe": recipe, "name": name, "kind": kind, "seed": seed, "state": state, "priority": priority,
            "device": device, "parent": parent, "parent_step": parent_step, "sweep": sweep, "digest": digest,
            "created": now, "position": now,
        })  # fmt: skip
        sql = f"INSERT INTO runs (id, {', '.join(columns)}) VALUES (?{', ?' * len(columns)}) ON CONFLICT DO NOTHING"
        for chosen in [id] if id else iter(new_id, None):
            if self._write(sql, (chosen, *columns.values()), full=True).rowcount:
                return chosen
        raise LogError(f"A run with the id {id} is already there. Choose another id, or leave it out.")

    def run(self, id: str) -> dict[str, Any] | None:
        """All columns of one run, the JSON ones decoded; None when there is no such run."""
        rows = self._rows("SELECT * FROM runs WHERE id = ?", (id,))
        return _decoded(rows[0]) if rows else None

    def runs(
        self,
        *,
        states: Iterable[str] | None = None,
        sweep: str | None = None,
        archived: bool | None = False,
        kind: str | None = None,
        limit: int | None = None,
    ) -> list[dict[str, Any]]:
        """Runs, newest first. `archived`: False without them, True only them, None both."""
        where: list[str] = []
        arguments: list[Any] = []
        if states is not None:
            chosen = [states] if isinstance(states, str) else list(states)
            where.append(f"state IN ({', '.join('?' * len(chosen))})")
            arguments += chosen
        for column, value in (("sweep", sweep), ("kind", kind)):
            if value is not None:
                where.append(f"{column} = ?")
                arguments.append(value)
        if archived is not None:
            where.append("archived <> 0" if archived else "archived = 0")
        sql = (
            "SELECT * FROM runs"
            + (f" WHERE {' AND '.join(where)}" if where else "")
            + " ORDER BY created DESC, id DESC"
        )
        if limit is not None:
            sql += " LIMIT ?"
            arguments.append(limit)
        return [_decoded(row) for row in self._rows(sql, arguments)]

    def update_run(self, id: str, **columns: Any) -> bool:
        """Sets columns of a run; False when there is no such run."""
        encoded = encode_columns(columns)
        if not encoded:
            return self.run(id) is not None
        sql = f"UPDATE runs SET {', '.join(f'{name} = ?' for name in encoded)} WHERE id = ?"
        return self._write(sql, (*encoded.values(), id), full=True).rowcount > 0

    def transition(self, id: str, from_states: str | Iterable[str], to_state: str, **columns: Any) -> bool:
        """Moves a run to `to_state` if it is in one of `from_states`; False, and nothing changed, if it is not."""
        expected = [from_states] if isinstance(from_states, str) else list(from_states)
        encoded = encode_columns({**columns, "state": to_state})
        sql = (
            f"UPDATE runs SET {', '.join(f'{name} = ?' for name in encoded)} "
            f"WHERE id = ? AND state IN ({', '.join('?' * len(expected))})"
        )
        return self._write(sql, (*encoded.values(), id, *expected), full=True).rowcount > 0

    def request(self, id: str, verb: str) -> bool:
        """Asks a run's worker for something ('pause', 'resume', 'stop', 'checkpoint'; '' takes it back)."""
        return self.update_run(id, request=verb)

    def delete_run(self, id: str) -> bool:
        """Removes a run and all that was logged of it; its folder is the caller's. False when there is no such run."""
        with explained(self.path):
            with transaction(self._connection, full=True):
                execute = self._connection.execute
                execute("DELETE FROM chunks WHERE series IN (SELECT id FROM series WHERE run = ?)", (id,))
                for table in ("series", "events", "figures", "commands", "ledger"):
                    execute(f"DELETE FROM {table} WHERE run = ?", (id,))
                found = execute("DELETE FROM runs WHERE id = ?", (id,)).rowcount > 0
            if not self._connection.in_transaction:
                self._connection.execute("PRAGMA incremental_vacuum").fetchall()
        return found

    # -- series --

    def series(self, run: str) -> list[SeriesInfo]:
        """Every series of a run, in the order in which they began."""
        with explained(self.path):
            rows = self._connection.execute(
                "SELECT name, count, last_step, last_value FROM series WHERE run = ? ORDER BY id", (run,)
            ).fetchall()
        # SQLite keeps NaN as NULL.
        return [
            SeriesInfo(name, count, step, float("nan") if value is None and count else value)
            for name, count, step, value in rows
        ]

    def points(
        self,
        run: str,
        name: str,
        *,
        start: int | None = None,
        stop: int | None = None,
        after: int | None = None,
        width: int | None = None,
    ) -> Points:
        """Points of a series with start <= step <= stop and step > after; none when there is no such series.

        With `width` at most 2 * width + 2 of them: of each of `width` equal stretches of steps the lowest and the
        highest (see `view.thinned` for how a long series is read), and both ends.
        """
        if after is not None:
            start = after + 1 if start is None else max(start, after + 1)
        with explained(self.path):
            if width is not None:
                return view.thinned(self._connection, run, name, start, stop, max(1, width))
            return view.exact(self._connection, run, name, start, stop)

    # -- events --

    def event(
        self, text: str, *, run: str | None = None, level: str = "info", kind: str = "", step: int | None = None
    ) -> int:
        """Notes that something happened; level is 'info', 'warning' or 'error'."""
        sql = "INSERT INTO events (run, time, step, level, kind, text) VALUES (?, ?, ?, ?, ?, ?)"
        return int(self._write(sql, (run, clock.time(), step, level, kind, text)).lastrowid or 0)

    def events(self, run: str | None = None, after: int = 0, limit: int = 500) -> list[dict[str, Any]]:
        """Events in the order in which they came: the next `limit` with id > `after`; without `after` the newest."""
        where = "id > ?" + (" AND run = ?" if run is not None else "")
        arguments = (after, run) if run is not None else (after,)
        order = "ASC" if after else "DESC"
        rows = self._rows(f"SELECT * FROM events WHERE {where} ORDER BY id {order} LIMIT ?", (*arguments, limit))
        return rows if after else rows[::-1]

    # -- commands --

    def command(self, verb: str, run: str | None = None, **args: Any) -> int:
        """Asks the service for something; returns the command's id, for `command_state`."""
        sql = "INSERT INTO commands (verb, run, args, created, state) VALUES (?, ?, ?, ?, 'new')"
        return int(self._write(sql, (verb, run, dump(args), clock.time()), full=True).lastrowid or 0)

    def take_commands(self) -> list[dict[str, Any]]:
        """The new commands, oldest first, each given to one caller only."""
        if not self._rows("SELECT 1 FROM commands WHERE state = 'new' LIMIT 1"):
            return []  # the usual case, asked often: no write
        with explained(self.path), transaction(self._connection, full=True):
            rows = self._rows("UPDATE commands SET state = 'taken' WHERE state = 'new' RETURNING *")
        return [_decoded_command(row) for row in sorted(rows, key=lambda row: row["id"])]

    def release_commands(self) -> int:
        """Makes taken but unanswered commands new again (a service that died held them); returns how many."""
        return self._write("UPDATE commands SET state = 'new' WHERE state = 'taken'", full=True).rowcount

    def answer(self, id: int, answer: dict[str, Any], failed: bool = False) -> None:
        """Ends a command."""
        sql = "UPDATE commands SET state = ?, answer = ?, answered = ? WHERE id = ?"
        self._write(sql, ("failed" if failed else "done", dump(answer), clock.time(), id), full=True)

    def command_state(self, id: int) -> dict[str, Any]:
        """A command with its state and, once there is one, its answer."""
        rows = self._rows("SELECT * FROM commands WHERE id = ?", (id,))
        if not rows:
            raise LogError(f"There is no command {id}. It may have belonged to a run that was deleted.")
        return _decoded_command(rows[0])

    # -- machine --

    def add_machine(self, sample: dict[str, Any], time: float | None = None) -> None:
        """Adds one sample of the machine's load. Samples older than a day are thinned to one a minute."""
        now = clock.time() if time is None else time
        with explained(self.path), transaction(self._connection):
            self._connection.execute("INSERT OR REPLACE INTO machine (time, data) VALUES (?, ?)", (now, dump(sample)))
            self._samples += 1
            if self._samples % PRUNE_EVERY == 1:
                self._connection.execute(
                    "DELETE FROM machine WHERE time < ?1 AND time NOT IN "
                    "(SELECT min(time) FROM machine WHERE time < ?1 GROUP BY CAST(time / 60 AS INTEGER))",
                    (now - KEPT_SECONDS,),
                )

    def machine(self, since: float, limit: int | None = None) -> list[dict[str, Any]]:
        """Samples with time > `since`, oldest first, each with its 'time'; of more than `limit` the newest."""
        sql = "SELECT time, data FROM machine WHERE time > ? ORDER BY time DESC LIMIT ?"
        rows = self._rows(sql, (since, -1 if limit is None else limit))
        return [{**load(row["data"]), "time": row["time"]} for row in reversed(rows)]

    # -- sweeps --

    def enter(self, run: str, kind: str, data: dict[str, Any]) -> int:
        """Adds to a sweep's ledger: what it asked for ("ask"), or was told ("tell")."""
        sql = "INSERT INTO ledger (run, time, kind, data) VALUES (?, ?, ?, ?)"
        return int(self._write(sql, (run, clock.time(), kind, dump(data)), full=True).lastrowid or 0)

    def ledger(self, run: str) -> list[dict[str, Any]]:
        """A sweep's ledger, oldest entry first."""
        rows = self._rows("SELECT * FROM ledger WHERE run = ? ORDER BY id", (run,))
        return [{**row, "data": load(row["data"])} for row in rows]

    # -- figures --

    def add_figure(self, run: str, probe: str, name: str, data: dict[str, Any], step: int | None = None) -> int:
        """Keeps a figure (as data) that a probe drew of a run."""
        sql = "INSERT INTO figures (run, probe, name, step, time, data) VALUES (?, ?, ?, ?, ?, ?)"
        return int(self._write(sql, (run, probe, name, step, clock.time(), dump(data))).lastrowid or 0)

    def figures(self, run: str) -> list[dict[str, Any]]:
        """Every figure of a run, oldest first."""
        rows = self._rows("SELECT * FROM figures WHERE run = ? ORDER BY id", (run,))
        return [{**row, "data": load(row["data"])} for row in rows]

    def figure_list(self, run: str) -> list[dict[str, Any]]:
        """Which figures a run has, oldest first: id, probe, name, step and time, without their data."""
        return self._rows("SELECT id, probe, name, step, time FROM figures WHERE run = ? ORDER BY id", (run,))

    def figure(self, id: int) -> dict[str, Any] | None:
        """One figure with its data; None when there is no such figure (any more)."""
        rows = self._rows("SELECT * FROM figures WHERE id = ?", (id,))
        return {**rows[0], "data": load(rows[0]["data"])} if rows else None

    # -- meta --

    def meta(self, key: str) -> Any:
        """What was stored under a key; None when nothing was."""
        rows = self._rows("SELECT value FROM meta WHERE key = ?", (key,))
        return load(rows[0]["value"]) if rows else None

    def set_meta(self, key: str, value: Any) -> None:
        """Stores plain data under a key; None removes it."""
        if value is None:
            self._write("DELETE FROM meta WHERE key = ?", (key,))
        else:
            self._write("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, dump(value)))


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    for name in JSON_COLUMNS:
        row[name] = load(row[name]) if row[name] is not None else load(RUN_DEFAULTS[name])
    return row


def _decoded_command(row: dict[str, Any]) -> dict[str, Any]:
    try:
        args = load(row["args"])
    except (ValueError, TypeError, RecursionError):  # another program's: it must not keep the others from being read
        args = None
    row["args"] = args if isinstance(args, dict) else None
    row["answer"] = load(row["answer"]) if row["answer"] is not None else None
    return row
