"""Real short runs for the tests of parts: a recipe as a table, trained in this process, with its run and its log."""

from pathlib import Path
from typing import Any

from engine.recipe import Recipe
from engine.training import checkpoint
from engine.training.assemble import assemble, filled
from engine.training.loop import Outcome, Trainer
from engine.training.recorder import Memory, Recorder
from engine.training.run import Run

MOONS = {
    "task": {"use": "two-moons", "samples": 120},
    "model": {"use": "mlp", "hidden": [8]},
    "optimizer": {"use": "sgd", "lr": 0.1},
    "training": {"batch_size": 16},
    "budget": {"steps": 12},
}


def ready(**changes: Any) -> tuple[Run, Memory]:
    """A run before its first step, and its log; `changes` are whole sections of the recipe."""
    memory = Memory()
    return assemble(filled(Recipe.of({**MOONS, **changes})), Recorder(memory)), memory


def resumed(folder: Path, at: int, **changes: Any) -> tuple[Outcome, Outcome]:
    """How a run ends that was never stopped, and one that was dropped after a step and gone on with from its files."""
    whole = Trainer(ready(**changes)[0]).train()
    first = Trainer(ready(**changes)[0], folder)
    first.save()
    while first.run.step < at:
        first._step()
    first.save()
    second = Trainer(ready(**changes)[0], folder)
    state = checkpoint.newest(folder)
    assert state is not None and state["step"] == at
    second.load(state)
    return whole, second.train()


def train(**changes: Any) -> tuple[Run, Memory, Outcome]:
    """A run after its last step, its log and how it ended."""
    run, memory = ready(**changes)
    return run, memory, Trainer(run).train()
