"""Real short runs for the tests of parts: a recipe as a table, trained in this process, with its run and its log."""

from typing import Any

from engine.recipe import Recipe
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


def train(**changes: Any) -> tuple[Run, Memory, Outcome]:
    """A run after its last step, its log and how it ended."""
    run, memory = ready(**changes)
    return run, memory, Trainer(run).train()
