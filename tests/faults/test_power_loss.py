"""A power loss: the database and its write-ahead log as they may lie on the disk, the log's end gone or garbage."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.log import Log, SeriesWriter

ROOT = Path(__file__).resolve().parents[2]
WRITE = """
import os, sys
from engine.log import SeriesWriter
writer = SeriesWriter(sys.argv[1], sys.argv[2], interval=0.01)
wal = sys.argv[1] + "-wal"
handles = [writer.series(f"series {n}") for n in range(4)]
for step in range(10**9):
    for number, handle in enumerate(handles):
        writer.add(handle, step, step * (number + 1) / 7)
    if step % 100 == 99:
        writer.flush()
        print(step + 1, os.stat(wal).st_size, flush=True)
"""


def snapshot(path: Path, to: Path) -> None:
    """Both files as one state: while a reader holds its moment, no later page goes from the log into the file."""
    to.mkdir()
    reader = sqlite3.connect(path)
    try:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM chunks").fetchone()
        shutil.copy(path, to)
        shutil.copy(path.with_name(path.name + "-wal"), to)
    finally:
        reader.close()


def lose_the_end(log: Path, keep: int, chance: random.Random) -> None:
    """What was not flushed is gone, or garbage, from a random place after the first `keep` bytes on."""
    whole = log.read_bytes()
    at = chance.randint(keep, len(whole))
    garbage = chance.randbytes(chance.choice([0, 0, 100, len(whole) - at]))
    log.write_bytes(whole[:at] + garbage)


def points(log: Log, run: str) -> int:
    """Every series has the steps 0, 1, 2 ... and their values, and as many as it is said to have; the fewest."""
    assert log._rows("PRAGMA integrity_check")[0]["integrity_check"] == "ok"
    fewest = []
    for number in range(4):
        found = log.points(run, f"series {number}")
        assert (found.steps == np.arange(len(found))).all()
        assert (found.values == found.steps * (number + 1) / 7).all()
        fewest.append(len(found))
    assert [info.count for info in log.series(run)] == [n for n in fewest if n]
    return min(fewest)


def test_a_power_loss_takes_at_most_what_was_not_flushed(tmp_path: Path, times: Callable[[int], int]) -> None:
    chance = random.Random(int(os.environ.get("ATHANOR_SEED", "1")))
    tried = 0
    while tried < times(3) * 10:
        path = tmp_path / f"{tried}" / "athanor.db"
        with Log(path) as log:
            run = log.create_run("")
            started = path.with_name("athanor.db-wal").stat().st_size
            command = [sys.executable, "-c", WRITE, str(path), run]
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
                assert writer.stdout
                said = [line for _, line in zip(range(chance.randrange(2, 60)), writer.stdout, strict=False)]
                flushed, size = map(int, said[-1].split())
                snapshot(path, tmp_path / f"{tried}" / "lost")
                writer.kill()
        lost = tmp_path / f"{tried}" / "lost"
        wal = lost / "athanor.db-wal"
        assert size <= wal.stat().st_size < 4000 * 4096, "nothing has gone from the log into the file yet"
        for _ in range(10):
            copy = tmp_path / f"{tried}" / "copy"
            shutil.copytree(lost, copy)
            sure = chance.random() < 0.7
            lose_the_end(copy / wal.name, size if sure else started, chance)
            with Log(copy / path.name) as log:
                left = points(log, run)
                assert log.run(run) and (left >= flushed or not sure)
            with SeriesWriter(copy / path.name, run) as again:  # goes on as a worker that resumes: some points twice
                for number in range(4):
                    steps = np.arange(max(0, left - 50), left + 1000)
                    again.extend(again.series(f"series {number}"), steps, steps * (number + 1) / 7)
            with Log(copy / path.name) as log:
                assert points(log, run) == left + 1000
            shutil.rmtree(copy)
            tried += 1
    print(f"{tried} power losses")


def test_the_disk_is_asked_before_a_flush_returns(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """However slow it is: else a checkpoint could be safe before the points that lead to it, and leave a gap."""
    asked: list[float] = []
    real = os.fdatasync

    def slow(file: int) -> None:
        time.sleep(0.06)
        real(file)
        asked.append(1)

    monkeypatch.setattr(os, "fdatasync", slow)
    with Log(tmp_path / "athanor.db") as log:
        run = log.create_run("")
        with SeriesWriter(log.path, run, interval=0.01) as writer:
            handle = writer.series("loss")
            for step in range(10):
                before = len(asked)
                writer.add(handle, step, 1.0)
                writer.flush()
                assert len(asked) > before
