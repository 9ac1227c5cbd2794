"""Real workers, in two processes, against virtual ones in one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.errors import AthanorError
from engine.recipe import Recipe
from engine.training.assemble import filled
from engine.training.loop import train
from engine.training.processes import train_together
from engine.training.recorder import Memory

RECIPE: dict[str, Any] = {
    "task": {"use": "two-moons", "samples": 120},
    "model": {"use": "mlp", "hidden": [16]},
    "optimizer": {"use": "sgd", "lr": 0.1},
    "techniques": [{"use": "l-greco", "reference": 0.3, "period_steps": 4, "acc_steps": 2}],
    "training": {"batch_size": 16, "workers": 4},
    "budget": {"steps": 12},
}


def test_two_processes_are_four_workers_as_one_process_is() -> None:
    """The same part reduces either way; that the weights of both processes are equal is checked where they end."""
    document = filled(Recipe.of(RECIPE))
    alone, together = Memory(), Memory()
    one = train(document, alone)
    two = train_together(document, 2, together)
    assert not torch.distributed.is_initialized()
    assert two.state == "done" and two.steps == 12
    assert together.points["train/loss"][1] == pytest.approx(alone.points["train/loss"][1], rel=1e-4)
    assert two.metrics["val/loss"] == pytest.approx(one.metrics["val/loss"], rel=1e-4)
    for name in ("count/bytes-sent", "count/samples"):
        assert two.metrics[name] == one.metrics[name]
    assert two.metrics["count/gradient-passes"] == one.metrics["count/gradient-passes"] / 2, "each its own"


def test_who_observes_the_losses_of_samples_must_see_them_all() -> None:
    observing = {
        "task": {"use": "signal-at-coordinates", "samples": 32},
        "model": {"use": "sape", "num_frequencies": 4, "num_blocks": 2, "hidden": [4]},
        "training": {"batch_size": 16, "workers": 2, "evaluate_every": 0},
        "budget": {"steps": 8},
    }
    document = filled(Recipe.of(observing))
    with pytest.raises(AthanorError, match="sees its own samples alone"):
        train_together(document, 2)
    assert not torch.distributed.is_initialized()
    alone = {**observing, "training": {**observing["training"], "workers": 1}}
    two, one = train(document), train(filled(Recipe.of(alone)))
    assert two.metrics["layer/mask/open"] == one.metrics["layer/mask/open"]
    assert two.metrics["test/mse"] == pytest.approx(one.metrics["test/mse"], rel=1e-4)


def test_what_clocks_would_decide_is_refused() -> None:
    with pytest.raises(AthanorError, match="cannot end by the clock"):
        train_together(filled(Recipe.of({**RECIPE, "budget": {"seconds": 1.0}})), 2)
