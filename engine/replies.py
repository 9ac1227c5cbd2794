"""What language models have answered, kept so that a saved run replays offline, bit for bit. No torch, no Qt.

A reply is filed under the digest of the whole request: the address, the model, every message, every setting and the
number of the repetition, so that asking again is the same answer and asking once more is another. Which run has used it
is kept too: when the last such run is deleted, the reply goes with it. Secrets are no part of a request.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.errors import ContactError

PATIENCE = 30.0  # seconds that a writer waits for another one
TABLES = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, request TEXT NOT NULL, reply TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS uses (run TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (run, key)) WITHOUT ROWID;
"""


def key_of(request: Mapping[str, Any]) -> str:
    """The digest under which the reply to a request is filed."""
    return hashlib.sha256(_text(request).encode()).hexdigest()


class Replies:
    """The replies in one file, made when the first is put into it; in memory alone where no file is named."""

    def __init__(self, path: Path | None = None, run: str = ""):
        self.path, self.run = path, run
        self._memory: dict[str, dict[str, Any]] = {}
        self._database: sqlite3.Connection | None = None

    def get(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """The reply to a request, None where it has never been put."""
        key = key_of(request)
        found = self._memory.get(key)
        if found is None and self.path is not None and self.path.exists():
            with self._open() as database:
                row = database.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    database.execute("INSERT OR IGNORE INTO uses VALUES (?, ?)", (self.run, key))
                    found = self._memory[key] = json.loads(row[0])
        return found

    def put(self, request: Mapping[str, Any], reply: Mapping[str, Any]) -> dict[str, Any]:
        """Keeps a reply; where another process was faster, its reply stays and is returned."""
        key, kept = key_of(request), dict(reply)
        if self.path is not None:
            with self._open() as database:
                entry = (key, _text(request), _text(reply), time.time())
                database.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", entry)
                database.execute("INSERT OR IGNORE INTO uses VALUES (?, ?)", (self.run, key))
                kept = json.loads(database.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()[0])
        self._memory[key] = kept
        return kept

    def __len__(self) -> int:
        if self.path is None or not self.path.exists():
            return len(self._memory)
        with self._open() as database:
            return int(database.execute("SELECT count(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        """Lets go of the file; the next question opens it again."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def __del__(self) -> None:
        self.close()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A transaction."""
        assert self.path is not None
        try:
            if self._database is None:
                # Opened by who asks first; the threads that wait for servers never come here.
                self._database = sqlite3.connect(self.path, timeout=PATIENCE, check_same_thread=False)
                self._database.executescript(TABLES)
            with self._database:
                yield self._database
        except sqlite3.Error as error:
            self.close()
            raise ContactError(f"The replies in {self.path} cannot be read or written: {error}.") from None


def forget(path: Path, run: str) -> None:
    """Removes what only this run has used."""
    if not path.exists():
        return
    replies = Replies(path)
    with replies._open() as database:
        database.execute("DELETE FROM uses WHERE run = ?", (run,))
        database.execute("DELETE FROM replies WHERE key NOT IN (SELECT key FROM uses)")
    replies.close()


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
