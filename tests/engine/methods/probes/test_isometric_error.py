"""The watch over an embedding: what it logs is what the batches were, and its flags are what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.errors import RecipeError
from engine.kit.embedding import distances, pairs_of, worst_violation
from engine.methods.probes.isometric_error import IsometricError
from engine.recipe import Recipe
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer
from engine.training.recorder import Memory, Recorder

RECIPE: dict[str, Any] = {
    "task": {"use": "digit-retrieval", "dimensions": 3, "train_limit": 200},
    "model": {"use": "mlp", "hidden": [16]},
    "optimizer": {"use": "adamw", "lr": 0.01},
    "loss": {"use": "hard-negative-isometric"},
    "sampler": {"use": "p-by-k", "each": 4},
    "probes": [{"use": "isometric-error", "last": 4}],
    "training": {"batch_size": 32, "evaluate_every": 0, "threads": 1},
    "budget": {"steps": 9},
}


def test_each_step_is_measured_and_the_training_is_left_alone() -> None:
    sink = Memory()
    run = assemble(filled(Recipe.of(RECIPE)), Recorder(sink))
    seen = []
    terms = run.terms

    def spy(output: Any, batch: Any) -> Any:
        apart = torch.cdist(output.detach().double(), output.detach().double())
        violation = worst_violation(apart, *pairs_of(batch.target), 1.0)
        seen.append((float(apart.max()), float(apart.sum() / (32 * 31)), float(violation)))
        return terms(output, batch)

    run.terms = spy  # type: ignore[method-assign]
    outcome = Trainer(run).train()
    diameters = [d / seen[0][0] for d, _, _ in seen]
    assert sink.points["isometric-error/diameter"][1] == pytest.approx(diameters, rel=1e-4)
    assert sink.points["isometric-error/mean-distance"][1] == pytest.approx([m for _, m, _ in seen], rel=1e-4)
    assert sink.points["isometric-error/violation"][1] == pytest.approx([v for _, _, v in seen], rel=1e-4)
    assert outcome.metrics["probe/isometric-error/diameter"] == pytest.approx(diameters[-1], rel=1e-4)
    batch = next(run.batches("val"))
    violation = worst_violation(distances(run.predict(batch)), *pairs_of(batch.target), 1.0)
    assert outcome.metrics["probe/isometric-error/violation"] == pytest.approx(float(violation))
    bare = assemble(filled(Recipe.of({**RECIPE, "probes": []})), Recorder(Memory()))
    assert Trainer(bare).train().weights == outcome.weights


@pytest.mark.parametrize(
    ("losses", "width", "flags"),
    [
        ([5.0, 0.96, 1.04, 1.0, 1.0], 0.4, (1.0, 1.0)),
        ([5.0, 0.96, 1.04, 1.0, 1.0], 0.6, (1.0, 0.0)),
        ([1.0, 0.9, 0.9, 0.9, 0.9], 0.1, (0.0, 0.0)),
        ([1.0], 0.1, (1.0, 1.0)),
    ],
)
def test_stuck_is_near_the_margin_and_collapsed_is_stuck_and_small(
    losses: list[float], width: float, flags: tuple[float, float]
) -> None:
    run = assemble(filled(Recipe.of(RECIPE)), Recorder(Memory()))
    probe = IsometricError(last=4)
    batch = next(run.batches("train", 10))
    points = torch.randn(10, 3)
    for i, loss in enumerate(losses):
        probe.watch(run, {"task": torch.tensor(loss)}, points * (width if i else 1.0), batch)
    if len(losses) == 1:
        probe.width = torch.tensor(width)
    found = probe.look(run).scalars
    assert (found["stuck"], found["collapsed"]) == flags
    assert found["diameter"] == pytest.approx(width)


def test_what_is_no_embedding_is_refused() -> None:
    with pytest.raises(RecipeError, match="It watches the distances of an embedding"):
        assemble(filled(Recipe.of({"task": {"use": "digits"}, "model": {"use": "mlp"}, "optimizer": {"use": "sgd"},
                                   "probes": [{"use": "isometric-error"}]})), Recorder(Memory()))  # fmt: skip
