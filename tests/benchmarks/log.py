"""What logging costs: in the training thread, until it is on the disk, and when it is read back."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from engine.log import Log, SeriesWriter
from tests.benchmarks import peers
from tests.benchmarks.rows import Row, median, seconds

SERIES = [f"series/{i}" for i in range(10)]
READ = 20_000
LONG = 10_000_000
WRITERS = 16


def rows() -> list[Row]:
    """The whole table."""
    with tempfile.TemporaryDirectory(prefix="bench-log-") as name:
        folder = Path(name)
        others = {peer: _peer(folder / peer, peer) for peer in peers.installed()}
        costs, rates = ({peer: both[i] for peer, both in others.items()} for i in (0, 1))
        cost, durable = _own(folder / "own.db")
        return [
            Row("logging one scalar, in the training thread", cost, "us", 0.3, peers=costs),
            Row("scalars made durable", durable, "/s", 3e6, least=False, peers=rates),
            *_reading(folder / "read.db", folder),
            *_long(folder / "long.db"),
            _crowd(folder / "crowd.db"),
        ]


def _own(path: Path, steps: int = 100_000) -> tuple[float, float]:
    """Microseconds a scalar in the thread that trains, and scalars a second until they are on the disk."""
    costs, rates = [], []
    for repeat in range(5):
        run = _run(path, f"own {repeat}")
        with SeriesWriter(path, run) as writer:
            handles = [writer.series(name) for name in SERIES]
            add = writer.add
            begin = time.perf_counter()
            for step in range(steps):
                for handle in handles:
                    add(handle, step, 0.5)
            costs.append(time.perf_counter() - begin)
            writer.flush(wait=True)
        run = _run(path, f"rows {repeat}")
        with SeriesWriter(path, run) as writer:
            handles = [writer.series(name) for name in SERIES]
            block, value = np.arange(steps), np.random.default_rng(0).normal(size=steps)
            begin = time.perf_counter()
            for handle in handles:
                writer.extend(handle, block, value)
            writer.flush(wait=True)
            rates.append(len(SERIES) * steps / (time.perf_counter() - begin))
    return statistics.median(costs) / steps / len(SERIES) * 1e6, statistics.median(rates)


def _peer(folder: Path, name: str) -> tuple[float, float]:
    """The same of another tool: the whole until it has closed counts as durable."""
    costs, rates = [], []
    make, steps = peers.PEERS[name]
    for repeat in range(3):
        own = folder / str(repeat)
        own.mkdir(parents=True)
        begin = time.perf_counter()
        with make(own) as log:
            started = time.perf_counter()
            for step in range(steps):
                log(step, dict.fromkeys(SERIES, 0.5))
            costs.append(time.perf_counter() - started)
        rates.append(len(SERIES) * steps / (time.perf_counter() - begin))
    return statistics.median(costs) / steps / len(SERIES) * 1e6, statistics.median(rates)


def _reading(path: Path, folder: Path) -> list[Row]:
    """One of ten series read back."""
    run = _run(path, "read")
    steps = np.arange(READ)
    with SeriesWriter(path, run) as writer:
        for name in SERIES:
            writer.extend(writer.series(name), steps, np.sin(steps))
    size = path.stat().st_size
    with Log(path, readonly=True) as log:
        assert len(log.points(run, SERIES[3]).steps) == READ
        took = median(lambda: seconds(lambda: log.points(run, SERIES[3])), 21)
    others = {}
    if "tensorboard" in peers.installed():
        own = folder / "tensorboard-read"
        own.mkdir()
        with peers.tensorboard(own) as write:
            for step in range(READ):
                write(step, dict.fromkeys(SERIES, 0.5))
        others["tensorboard"] = median(lambda: seconds(lambda: peers.read_tensorboard(own, SERIES[3])), 3) * 1e3
    return [
        Row(f"reading {READ:,} points of one of ten series", took * 1e3, "ms", 1.0, peers=others),
        Row("the file, for each point", size / READ / len(SERIES), "bytes", 20.0),
    ]


def _long(path: Path) -> list[Row]:
    """A picture of a very long series."""
    run = _run(path, "long")
    with SeriesWriter(path, run) as writer:
        handle = writer.series("loss")
        noise = np.random.default_rng(0).normal(size=100_000)
        for start in range(0, LONG, len(noise)):
            writer.extend(handle, np.arange(start, start + len(noise)), noise)
            if start % 1_000_000 == 0:
                writer.flush(wait=True)
    with Log(path, readonly=True) as log:
        took = median(lambda: seconds(lambda: log.points(run, "loss", width=1000)), 11)
    return [Row(f"a 1,000-pixel view of {LONG:,} points", took * 1e3, "ms", 5.0)]


def _crowd(path: Path, each: int = 50_000) -> Row:
    """Many workers that write into one file: the longest that one of them waits for its last flush."""
    waits: list[float] = []
    runs = [_run(path, str(i)) for i in range(WRITERS)]

    def work(run: str) -> None:
        with SeriesWriter(path, run) as writer:
            handle = writer.series("loss")
            for step in range(each):
                writer.add(handle, step, 0.5)
            begin = time.perf_counter()
            writer.flush(wait=True)
            waits.append(time.perf_counter() - begin)

    threads = [threading.Thread(target=work, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Log(path, readonly=True) as log:
        assert all(log.series(run)[0].count == each for run in runs), "nothing is lost"
    return Row(f"the longest wait of {WRITERS} writers for a flush", max(waits) * 1e3, "ms", 250.0)


def _run(path: Path, name: str) -> str:
    with Log(path) as log:
        return log.create_run("", name=name)
