"""How other tools log a scalar, make it durable and read it back. Each is measured only where it is installed."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Log = Callable[[int, dict[str, float]], None]


@contextmanager
def tensorboard(folder: Path) -> Iterator[Log]:
    """Event files by its own writer."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))  # type: ignore[no-untyped-call]

    def log(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    yield log
    writer.close()  # type: ignore[no-untyped-call]


@contextmanager
def wandb(folder: Path) -> Iterator[Log]:
    """W&B without a network."""
    import wandb as client

    os.environ["WANDB_SILENT"] = "true"
    run = client.init(mode="offline", dir=str(folder), project="bench", settings=client.Settings(console="off"))
    yield lambda step, values: run.log(values, step=step)
    run.finish()


@contextmanager
def trackio(folder: Path) -> Iterator[Log]:
    """trackio, which also keeps a SQLite file."""
    os.environ["TRACKIO_DIR"] = str(folder)
    import trackio as client

    run: Any = client.init(project=f"bench-{folder.name}", embed=False)
    yield lambda step, values: client.log(values, step=step)
    run.finish()


@contextmanager
def mlflow(folder: Path) -> Iterator[Log]:
    """MLflow on SQLite."""
    import mlflow as client

    client.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    with client.start_run():
        yield lambda step, values: client.log_metrics(values, step=step)


PEERS: dict[str, tuple[Callable[[Path], Any], int]] = {  # and how many steps of ten scalars it is given
    "tensorboard": (tensorboard, 4000),
    "wandb": (wandb, 4000),
    "trackio": (trackio, 2000),
    "mlflow": (mlflow, 100),
}


def installed() -> dict[str, tuple[Callable[[Path], Any], int]]:
    """The peers that are here."""
    return {name: peer for name, peer in PEERS.items() if importlib.util.find_spec(name) is not None}


def read_tensorboard(folder: Path, name: str) -> int:
    """Points of one series, read back as its own dashboard does."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # type: ignore[no-untyped-call]
    events.Reload()  # type: ignore[no-untyped-call]
    return len(events.Scalars(name))  # type: ignore[no-untyped-call]


def read_trackio(folder: Path) -> int:
    """Rows of a run, read from its database."""
    path = next(folder.rglob("*.db"))
    with sqlite3.connect(path) as database:
        return len(database.execute("SELECT timestamp, step, metrics FROM metrics").fetchall())
