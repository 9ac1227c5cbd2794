"""What a training step costs beside the loop that a person would write by hand, everything logged and streamed."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from engine.log import Log, SeriesWriter
from engine.recipe import Recipe
from engine.registry import catalog
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer
from engine.training.recorder import Recorder
from tests.benchmarks.rows import Row, median

DIGITS: dict[str, Any] = {
    "task": {"use": "digits"},
    "model": {"use": "mlp", "hidden": [128, 64]},
    "optimizer": {"use": "adamw"},
    "training": {"batch_size": 32, "evaluate_every": 0},
    "budget": {"steps": 3000},
}
TEXT: dict[str, Any] = {
    "task": {"use": "python-text"},
    "model": {"use": "transformer"},
    "optimizer": {"use": "adamw"},
    "training": {"batch_size": 32, "evaluate_every": 0},
    "budget": {"steps": 30},
}
WARM = 0.1  # of the steps come before the clock starts


def rows() -> list[Row]:
    """The whole table: microseconds a step, and the ratio to the bare loop."""
    found = []
    for name, recipe, goal, repeats in (
        ("digits MLP, batch 32", DIGITS, 1.0, 5),
        ("transformer on text, batch 32", TEXT, 1.01, 3),
    ):
        document = filled(Recipe.of(recipe), catalog())
        bare = median(lambda: by_hand(document), repeats)  # noqa: B023
        ours = median(lambda: by_us(document), repeats)  # noqa: B023
        peers = {"by hand": bare}
        if importlib.util.find_spec("lightning") is not None and recipe is DIGITS:
            peers["Lightning"] = median(lambda: by_lightning(document), 3)  # noqa: B023
        found.append(Row(f"{name}: a step, every one logged", ours, "us", goal * bare, peers=peers))
    return found


def by_us(document: dict[str, Any]) -> float:
    """Our loop, into a real database."""
    with tempfile.TemporaryDirectory(prefix="bench-loop-") as name:
        path = Path(name) / "athanor.db"
        with Log(path) as log:
            run = log.create_run("")
        with SeriesWriter(path, run) as sink:
            trainer = Trainer(assemble(document, Recorder(sink)), None)
            return _timed(trainer._step, document["budget"]["steps"])


def by_hand(document: dict[str, Any]) -> float:
    """Tensors on the device, shuffled indices, torch's own AdamW, the loss kept for a plot and fetched at the end."""
    run = assemble(document, Recorder(_Nowhere()))
    model, columns = run.model, run.columns("train")
    inputs, target = next(iter(columns.values())), columns["target"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    size, losses = document["training"]["batch_size"], []
    order, at = torch.randperm(len(inputs)), 0

    def step() -> None:
        nonlocal order, at
        if at >= len(inputs):
            order, at = torch.randperm(len(inputs)), 0
        rows = order[at : at + size]
        at += size
        output = model(inputs[rows])
        loss = F.cross_entropy(output.flatten(0, -2), target[rows].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())

    return _timed(step, document["budget"]["steps"])


def by_lightning(document: dict[str, Any]) -> float:
    """The same in Lightning, with its CSV logger."""
    import lightning
    from lightning.pytorch.loggers import CSVLogger

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    run = assemble(document, Recorder(_Nowhere()))
    columns = run.columns("train")
    data = torch.utils.data.TensorDataset(next(iter(columns.values())), columns["target"])
    steps = document["budget"]["steps"]
    marks: list[float] = []

    class Module(lightning.LightningModule):
        def __init__(self, model: nn.Module):
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            if self.global_step == int(WARM * steps):
                marks.append(time.perf_counter())
            loss = F.cross_entropy(self.model(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_steps=steps, logger=CSVLogger(folder), log_every_n_steps=1, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(data, document["training"]["batch_size"], shuffle=True)
        trainer.fit(Module(run.model), loader)
    return (time.perf_counter() - marks[0]) / (steps - int(WARM * steps)) * 1e6


def _timed(step: Callable[[], Any], steps: int) -> float:
    """Microseconds a step, warm."""
    warm = int(WARM * steps)
    for _ in range(warm):
        step()
    begin = time.perf_counter()
    for _ in range(steps - warm):
        step()
    return (time.perf_counter() - begin) / (steps - warm) * 1e6


class _Nowhere:
    """A sink that keeps nothing."""

    requested = ""

    def series(self, name: str) -> int:
        return 0

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None
