"""Opening the database: what is created, what is migrated, what is refused and left as it is."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.errors import LogError
from engine.log import SCHEMA_VERSION, Log, SeriesWriter, schema
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[3]


def test_a_new_database_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "athanor.db"
    with Log(path) as log:
        log.set_meta("a", 1)
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert log._rows("PRAGMA journal_mode")[0]["journal_mode"] == "wal"
        assert log._rows("PRAGMA user_version")[0]["user_version"] == SCHEMA_VERSION


def test_many_open_a_new_database_at_once(tmp_path: Path) -> None:
    def make(number: int) -> str:
        with Log(tmp_path / "athanor.db") as log:
            return log.create_run(f"n = {number}")

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(make, range(16)))
    with Log(tmp_path / "athanor.db") as log:
        assert {run["id"] for run in log.runs()} == set(ids)
        assert len(set(ids)) == 16


def test_a_new_database_that_fills_while_it_is_looked_at_is_ours(tmp_path: Path) -> None:
    """Another process creates the tables between two of the reads by which a file is told to be ours."""
    path = tmp_path / "athanor.db"
    path.touch()
    connection = sqlite3.connect(path, isolation_level=None)

    def interfere(statement: str) -> None:
        if "sqlite_master" in statement:
            with contextlib.suppress(LogError), contextlib.closing(schema.connect(path, patience=0)):
                pass

    connection.set_trace_callback(interfere)
    assert schema._version(connection, path) in (0, SCHEMA_VERSION)
    connection.set_trace_callback(None)
    with Log(path) as log:  # whoever was first, it is whole now
        assert log.runs() == []
    assert schema._version(connection, path) == SCHEMA_VERSION
    connection.close()


def test_an_older_database_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Log(tmp_path / "athanor.db") as log:
        run = log.create_run("old")
    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, lambda db: db["runs"].add_column("mood", str)])
    monkeypatch.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    with Log(tmp_path / "athanor.db") as log:
        row = log.run(run)
        assert row is not None
        assert (row["recipe"], row["mood"]) == ("old", None)
    with Log(tmp_path / "athanor.db") as log:
        assert log._rows("PRAGMA user_version")[0]["user_version"] == SCHEMA_VERSION + 1


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(db) -> None:
        db["runs"].add_column("mood", str)
        db.conn.execute("INSERT INTO nowhere VALUES (1)")

    with Log(tmp_path / "athanor.db") as log:
        log.create_run("")
    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, breaks])
    monkeypatch.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    with pytest.raises(LogError, match="nowhere"):
        Log(tmp_path / "athanor.db")
    monkeypatch.undo()
    with Log(tmp_path / "athanor.db") as log:
        assert "mood" not in log.runs()[0]


def refused(path: Path, words: str) -> None:
    before = path.read_bytes()
    for readonly in (False, True):
        with pytest.raises(LogError, match=words):
            Log(path, readonly=readonly)
    with pytest.raises(LogError, match=words):
        SeriesWriter(path, "run")
    assert path.read_bytes() == before


def test_what_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "athanor.db"
    path.write_bytes(b"weights of a weekend" * 1000)
    refused(path, "is not a database")


def test_another_programs_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "athanor.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE bookmarks (url)")
    other.close()
    refused(path, "another program")


def test_a_newer_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "athanor.db"
    Log(path).close()
    with sqlite3.connect(path) as other:
        other.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    other.close()
    refused(path, "newer version")


def test_a_damaged_database_says_so(tmp_path: Path) -> None:
    path = tmp_path / "athanor.db"
    with Log(path) as log:
        for number in range(200):
            with log.transaction():
                log.create_run("x" * 2000, name=str(number))
    whole = bytearray(path.read_bytes())
    whole[4096 * 2 :] = os.urandom(len(whole) - 4096 * 2)
    path.write_bytes(whole)
    with pytest.raises(LogError, match="damaged"), Log(path) as log:
        log.runs()
        log.create_run("")


def test_a_missing_or_empty_database_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no database"):
        Log(tmp_path / "athanor.db", readonly=True)
    assert not (tmp_path / "athanor.db").exists()
    (tmp_path / "empty.db").touch()
    with pytest.raises(LogError, match="empty"):
        Log(tmp_path / "empty.db", readonly=True)


def test_a_path_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogError, match="cannot be opened"):
        Log(tmp_path / "file" / "athanor.db")
    with pytest.raises(LogError, match=r"cannot be opened|may not be written"):
        Log(Path("/proc/athanor.db"))


def test_a_lock_is_waited_for_and_then_named(tmp_path: Path) -> None:
    path = tmp_path / "athanor.db"
    with Log(path) as log, Log(path, patience=0.05) as hasty:
        run = log.create_run("")
        with SeriesWriter(path, run, interval=0.02, patience=0.05) as writer:
            with log.transaction():
                log.update_run(run, notes="busy")
                with pytest.raises(LogError, match="locked"):
                    hasty.create_run("")
                writer.add(writer.series("loss"), 1, 2.0)
                until(lambda: writer.error, 5)
                assert "locked" in str(writer.error)
            until(lambda: len(log.points(run, "loss")), 5)
            until(lambda: writer.error is None, 5)


FULL = """
import resource, signal, sys
from engine.errors import LogError
from engine.log import Log, SeriesWriter
from tests.waiting import until
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, run = sys.argv[1:]
writer = SeriesWriter(path, run, interval=0.02)
handle = writer.series("loss")
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
step = 0
while writer.error is None:
    for _ in range(100):
        writer.add(handle, step, step / 7)
        step += 1
    writer.flush(wait=False)
print(writer.error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.close()
print(step)
"""


def test_a_full_disk_keeps_points_until_there_is_room(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the same failed writes, without a disk of its own."""
    path = tmp_path / "athanor.db"
    with Log(path) as log:
        run = log.create_run("")
        answer = subprocess.run(
            [sys.executable, "-c", FULL, str(path), run], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert answer.returncode == 0, answer.stderr
        message, steps = answer.stdout.strip().splitlines()
        assert "disk" in message
        points = log.points(run, "loss")
        assert points.steps.tolist() == list(range(int(steps)))
        assert points.values.tolist() == [step / 7 for step in range(int(steps))]
        assert log._rows("PRAGMA integrity_check")[0]["integrity_check"] == "ok"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "athanor.db"
    with Log(path) as log:
        log.create_run("")
    path.chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(LogError, match=r"may not be written|cannot be opened"), Log(path) as log:
            log.create_run("")
        with Log(path, readonly=True) as log:
            assert len(log.runs()) == 1
    finally:
        tmp_path.chmod(0o700)
