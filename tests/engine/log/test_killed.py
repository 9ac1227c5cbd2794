"""A writing process is killed: the database stays whole, and nothing that was shown is lost or doubled."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.log import Log, SeriesWriter
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[3]
WRITE = """
import sys
from engine.log import SeriesWriter
writer = SeriesWriter(sys.argv[1], sys.argv[2], interval=0.01)
first, last = int(sys.argv[3]), int(sys.argv[4])
handles = [writer.series(f"series {n}") for n in range(8)]
pause = __import__("threading").Event()
for step in range(first, last):
    for number, handle in enumerate(handles):
        writer.add(handle, step, step * (number + 1) / 7)
    if step % 50 == 0:
        pause.wait(0.002)
writer.close()
"""


def start(log: Log, run: str, first: int, last: int = 10**9) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITE, str(log.path), run, str(first), str(last)], cwd=ROOT)


def check(log: Log, run: str) -> int:
    """Every series has the steps 0, 1, 2 ... and their values; returns the fewest points."""
    assert log._rows("PRAGMA integrity_check")[0]["integrity_check"] == "ok"
    infos = log.series(run)
    for info in infos:
        points = log.points(run, info.name)
        assert (info.count, info.last_step) == (len(points), len(points) - 1)
        assert (points.steps == np.arange(len(points))).all()
        assert (points.values == points.steps * (int(info.name.split()[1]) + 1) / 7).all()
    return min(info.count for info in infos)


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with Log(tmp_path / "athanor.db") as log:
        run = log.create_run("")
        shown = 0
        for _ in range(3):
            process = start(log, run, max(0, shown - 100))  # as a worker that resumes from an older checkpoint
            aim = shown + chance.randrange(200, 3000)
            until(lambda aim=aim: (log.series(run) or False) and log.series(run)[-1].count > aim, 20, 0.003)
            seen = len(log.points(run, "series 0"))
            process.kill()
            process.wait()
            shown = check(log, run)
            assert shown >= seen
        SeriesWriter(log.path, run).close()
        check(log, run)


def test_many_processes_write_at_once(tmp_path: Path) -> None:
    with Log(tmp_path / "athanor.db") as log:
        runs = [log.create_run("") for _ in range(6)]
        processes = [start(log, run, 0, 2000) for run in runs]
        for process in processes:
            assert process.wait(60) == 0
        assert [check(log, run) for run in runs] == [2000] * 6
