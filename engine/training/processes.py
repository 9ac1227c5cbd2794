"""One run in several processes: each holds some of the workers, trains on their parts of every batch, steps alike.

`train_together(document, 2)` starts the others and takes part as the first, which alone logs. A run also takes part
where it finds itself in a process group that was begun elsewhere (torchrun): see `workers.from_group`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

from engine.errors import AthanorError
from engine.training.loop import Outcome, train
from engine.training.recorder import Memory, Sink

PATIENCE = timedelta(minutes=5)  # how long a process waits for the others before it gives up


def train_together(document: Mapping[str, Any], processes: int, sink: Sink | None = None) -> Outcome:
    """Trains a filled recipe in several processes of this machine, connected by gloo. No checkpoints are kept.

    Raises AthanorError for a budget in seconds (their clocks differ), and where the weights have come apart.
    """
    if document["budget"]["seconds"]:
        raise AthanorError("Several processes cannot end by the clock; set budget.steps or budget.epochs.")
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        context = mp.get_context("spawn")
        others = [
            context.Process(target=_take_part, args=(document, rank, processes, store), daemon=True)
            for rank in range(1, processes)
        ]
        for process in others:
            process.start()
        try:
            outcome = _take_part(document, 0, processes, store, sink)
            for process in others:
                process.join(PATIENCE.total_seconds())
        finally:
            for process in others:
                process.kill()
    return outcome


def _take_part(document: Mapping[str, Any], rank: int, processes: int, store: str, sink: Sink | None = None) -> Outcome:
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=processes, timeout=PATIENCE)
    try:
        outcome = train(document, sink or Memory())
        weights: list[Any] = [None] * processes
        dist.all_gather_object(weights, outcome.weights)
    finally:
        dist.destroy_process_group()
    if len(set(weights)) > 1:  # some part steps by what one process alone has
        raise AthanorError(
            "The weights of the processes have come apart: some part does not step alike in all of them."
        )
    return outcome
