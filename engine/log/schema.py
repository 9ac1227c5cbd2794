"""The database: its tables, how it is opened, created and brought up to date, and what its failures mean."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.errors import LogError

APPLICATION = 0x41544852  # "ATHR" in the file's header: tells our databases from other programs'
SYNC_NORMAL, SYNC_FULL = 1, 2

RUNS: dict[str, type] = {
    "id": str, "kind": str, "name": str, "state": str, "message": str, "recipe": str, "digest": str, "seed": int,
    "priority": int, "position": float, "device": str, "parent": str, "parent_step": int, "sweep": str,
    "created": float, "started": float, "ended": float, "seconds": float, "step": int, "steps": int, "epoch": float,
    "epochs": float, "metrics": str, "weights": str, "request": str, "pid": int, "heartbeat": float, "archived": int,
    "favourite": int, "notes": str, "tags": str, "environment": str, "checkpoints": str,
}  # fmt: skip
RUN_DEFAULTS: dict[str, Any] = {
    "kind": "run", "name": "", "state": "queued", "message": "", "digest": "", "seed": 0, "priority": 0,
    "device": "auto", "seconds": 0.0, "step": 0, "epoch": 0.0, "metrics": "{}", "request": "", "archived": 0,
    "favourite": 0, "notes": "", "tags": "[]", "environment": "{}", "checkpoints": "[]",
}  # fmt: skip


def _first(db: Any) -> None:
    """Version 1: every table."""
    # The blobs stand last: SQLite reads a row's columns from the left and leaves the pages that it does not need.
    tables: dict[str, tuple[dict[str, type], dict[str, Any]]] = {
        "runs": (RUNS, {"pk": "id", "not_null": set(RUN_DEFAULTS) | {"recipe", "created"}, "defaults": RUN_DEFAULTS}),
        "series": (
            {"id": int, "run": str, "name": str, "count": int, "last_step": int, "last_value": float},
            {"pk": "id", "not_null": {"run", "name"}, "defaults": {"count": 0}},
        ),
        "chunks": (
            {
                "id": int, "series": int, "seq": int, "level": int, "first_step": int, "last_step": int, "count": int,
                "low": float, "high": float, "coarse": bytes, "fine": bytes, "data": bytes,
            },
            {"pk": "id", "not_null": {"series", "seq", "level", "first_step", "last_step", "count", "data"}},
        ),
        "events": (
            {"id": int, "run": str, "time": float, "step": int, "level": str, "kind": str, "text": str},
            {"pk": "id", "not_null": {"time", "level", "kind", "text"}},
        ),
        "commands": (
            {
                "id": int, "verb": str, "run": str, "args": str, "created": float, "state": str, "answer": str,
                "answered": float,
            },
            {"pk": "id", "not_null": {"verb", "args", "created", "state"}, "defaults": {"args": "{}", "state": "new"}},
        ),
        "machine": ({"time": float, "data": str}, {"pk": "time", "not_null": {"data"}}),
        "figures": (
            {"id": int, "run": str, "probe": str, "name": str, "step": int, "time": float, "data": str},
            {"pk": "id", "not_null": {"run", "probe", "name", "time", "data"}},
        ),
        "meta": ({"key": str, "value": str}, {"pk": "key", "not_null": {"value"}}),
    }  # fmt: skip
    for name, (columns, options) in tables.items():
        db.conn.execute(db.create_table_sql(name, columns, column_order=list(columns), **options))
    db["runs"].create_index(["state"])
    db["runs"].create_index(["sweep"])
    db["series"].create_index(["run", "name"], unique=True)
    db["chunks"].create_index(["series", "seq"], unique=True)
    db["events"].create_index(["run"])
    db["commands"].create_index(["state"])
    db["figures"].create_index(["run"])


def _ledgers(db: Any) -> None:
    """Version 2: what a sweep asked and was told, in order."""
    columns = {"id": int, "run": str, "time": float, "kind": str, "data": str}
    db.conn.execute(
        db.create_table_sql("ledger", columns, column_order=list(columns), pk="id", not_null=set(columns) - {"id"})
    )
    db["ledger"].create_index(["run"])


# Each brings a database from the version of its place to the next. Never change one that was released: add one.
MIGRATIONS: list[Callable[[Any], None]] = [_first, _ledgers]
SCHEMA_VERSION = len(MIGRATIONS)


def connect(
    path: str | Path, *, readonly: bool = False, create: bool = True, patience: float = 5.0
) -> sqlite3.Connection:
    """Opens the database, creates it where there is none and brings an older one up to date.

    `patience`: seconds to wait for another writer. Every failure is a LogError that says what to do.
    """
    path = Path(path)
    with explained(path):
        if not path.exists():
            if readonly or not create:
                raise LogError(f"There is no database at {path}. Name the workspace that holds your runs.")
            _make_private(path)
        uri = f"{path.resolve().as_uri()}?mode={'ro' if readonly else 'rw'}"
        try:
            return _open(uri, path, readonly, patience)
        except sqlite3.OperationalError:
            # A folder that may not be written to: SQLite could not make the files that it reads a WAL with. Without a
            # WAL all is in the one file. Anywhere else this would show one moment for ever, since such a connection
            # never looks at the file again.
            if not readonly or os.access(path.parent, os.W_OK) or _has_open_log(path):
                raise
            return _open(f"{uri}&immutable=1", path, readonly, patience)


def _open(uri: str, path: Path, readonly: bool, patience: float) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=patience, isolation_level=None, cached_statements=256)
    try:
        _prepare(connection, path, readonly)
    except BaseException:
        connection.close()
        raise
    return connection


def _has_open_log(path: Path) -> bool:
    log = path.with_name(path.name + "-wal")
    return log.exists() and log.stat().st_size > 0


def _make_private(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _prepare(connection: sqlite3.Connection, path: Path, readonly: bool) -> None:
    version = _version(connection, path)
    if not readonly:
        if version < SCHEMA_VERSION:
            _migrate(connection, path)
        # Where the file system has no shared memory (a network drive) this stays "delete": slower, and still right.
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
    elif version == 0:
        raise LogError(f"The database {path} is empty. Name the workspace that holds your runs.")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA cache_size = -16384")


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """The schema's version; 0 for a new file. Refuses what is not ours before a byte is written."""
    with _one_moment(connection):
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION and (application or version or tables):
        raise LogError(f"{path} is the database of another program. Name another workspace, or move that file away.")
    if version > SCHEMA_VERSION:
        raise LogError(
            f"The database {path} was written by a newer version (schema {version}; this one knows {SCHEMA_VERSION}). "
            "Update this program, or name another workspace."
        )
    return version


@contextlib.contextmanager
def _one_moment(connection: sqlite3.Connection) -> Iterator[None]:
    """Several reads of one state: a file that another process fills in between would look like another program's."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """All missing migrations in one transaction: another process sees the old version or the new one."""
    from sqlite_utils import Database  # only here: half the time of opening a database would be this import

    if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # has an effect only before the first table
    with transaction(connection, full=True):
        version = _version(connection, path)  # again: another process may have been faster
        for migration in MIGRATIONS[version:]:
            migration(Database(connection, execute_plugins=False))
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, *, full: bool = False) -> Iterator[None]:
    """One write transaction; inside another one it joins that. `full`: it survives a power loss from its end on."""
    if connection.in_transaction:
        yield
        return
    if full:
        connection.execute("PRAGMA synchronous = FULL")
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    finally:
        if full:
            connection.execute("PRAGMA synchronous = NORMAL")


@contextlib.contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Turns what SQLite and the file system raise into a LogError that a person can act on."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # ours: a closed connection, a wrong thread
    except (sqlite3.DatabaseError, OSError) as error:
        raise explain(path, error) from error


def _write_protected(path: Path) -> bool:
    """Whether a database that is there may not be written, or not the files that SQLite makes beside it."""
    return path.exists() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))


def explain(path: str | Path, error: Exception) -> LogError:
    """The LogError for what happened to the database at `path`."""
    text = str(error)
    if isinstance(error, OSError):
        what, advice = f"cannot be opened: {error.strerror or error}", "Name a workspace that you may write to."
    elif "not a database" in text or "file is encrypted" in text:
        what = "is not a database"
        advice = "It was left as it is. Name another workspace, or move that file away."
    elif "malformed" in text or "corrupt" in text:
        what = f"is damaged ({text})"
        advice = "It was left as it is. Restore it from a backup, or name another workspace."
    elif "locked" in text or "busy" in text:
        what, advice = (
            "is locked by another program",
            "Close what else has it open (a database browser), then try again.",
        )
    elif "disk is full" in text or "full" in text:
        what, advice = "cannot grow: the disk is full", "Free some space; what is not yet written is kept until then."
    elif "readonly" in text or "read-only" in text or ("unable to open" in text and _write_protected(Path(path))):
        what, advice = "may not be written to", "Make the folder writable, or name another workspace."
    elif "unable to open" in text:
        what, advice = "cannot be opened", "Check that the folder exists and that you may write to it."
    else:
        what, advice = f"failed: {text}", "Check the disk, then try again."
    return LogError(f"The database {path} {what}. {advice}")
