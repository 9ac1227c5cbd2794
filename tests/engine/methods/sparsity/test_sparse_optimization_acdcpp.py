"""AC/DC++: when it is sparse, what it keeps, that the pruned stay zero and come back, and tickets by rewinding."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from engine.kit.anatomy import derive
from engine.methods.sparsity.sparse_optimization_acdcpp import (
    SparseOptimizationACDC,
    global_masks,
    kept,
    prunable,
    stretches,
)
from engine.parts import Progress
from engine.recipe import Recipe, merge
from engine.training.assemble import filled
from engine.training.loop import Trainer, train
from engine.training.preview import preview
from engine.training.recorder import Memory

ID = "sparse-optimization-acdcpp"
PART: dict[str, Any] = {
    "use": ID, "sparsity": 0.8, "warmup_share": 0.1, "final_share": 0.2, "phase_epochs": 1.0, "first_last": "pruned",
}  # fmt: skip
BASE: dict[str, Any] = {
    "task": {"use": "two-moons", "samples": 160},
    "model": {"use": "mlp", "hidden": [16, 16]},
    "optimizer": {"use": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "training": {"batch_size": 16, "evaluate_every": 0},
    "budget": {"epochs": 10},
    "techniques": [PART],
}


class Watched:
    """A run, and its prunable weights after every step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **patch: Any):
        self.weights: dict[int, list[torch.Tensor]] = {}
        self.grads: dict[int, float] = {}
        self.momentum: dict[int, bool] = {}
        step = Trainer._step

        def stepped(trainer: Trainer) -> None:
            step(trainer)
            found = prunable(trainer.run.anatomy, "weight", "pruned")
            self.weights[trainer.run.step] = [w.detach().clone() for _, w in found]

        kept: list[Trainer] = []
        with monkeypatch.context() as inner:
            inner.setattr(Trainer, "_step", stepped)
            self.outcome = train(filled(Recipe.of(merge(BASE, patch))), Memory(), None, kept.append)
        self.run = kept[0].run

    def zeros(self, step: int) -> list[torch.Tensor]:
        return [w == 0 for w in self.weights[step]]


def test_when_it_is_sparse() -> None:
    assert stretches(100, 10, 0.1, 0.15) == [
        (0, False), (10, True), (20, False), (30, True), (40, False), (50, True), (60, False), (70, True), (80, False),
        (85, True),
    ]  # fmt: skip
    # A sparse turn before the last phase goes on; no warm-up begins sparse; half and half is pruning once.
    assert stretches(100, 10, 0.1, 0.5) == [(0, False), (10, True), (20, False), (30, True), (40, False), (50, True)]
    assert stretches(100, 20, 0.1, 0.3)[-2:] == [(30, False), (50, True)]
    assert stretches(100, 10, 0.0, 1.0) == [(0, True)]
    assert stretches(100, 10, 0.5, 0.5) == [(0, False), (50, True)]
    part = SparseOptimizationACDC(phase_epochs=2.0, warmup_share=0.1, final_share=0.15)
    assert [part.at(Progress(step, 100), 5) for step in (0, 9, 10, 19, 20, 84, 85, 99)] == [
        False, False, True, True, False, False, True, True,
    ]  # fmt: skip


def test_how_many_stay_and_which() -> None:
    assert kept(10, 0.9) == 1 and kept(100, 0.95) == 5 and kept(7, 0.5) == 3 and kept(9, 0.0) == 9
    rng = torch.Generator().manual_seed(0)
    scores = [torch.rand(4, 5, generator=rng), torch.rand(3, 6, generator=rng) * 2]
    masks = global_masks(scores, 0.7)
    threshold = torch.cat([s.flatten() for s in scores]).sort(descending=True).values[kept(38, 0.7) - 1]
    for score, mask in zip(scores, masks, strict=True):
        assert torch.equal(mask, score >= threshold)
    assert sum(int(mask.sum()) for mask in masks) == 11


@pytest.mark.parametrize("optimizer", [{"use": "sgd"}, {"use": "adamw", "lr": 0.01}], ids=["sgd", "adamw"])
def test_the_pruned_are_zero_and_stay_so_and_come_back(
    monkeypatch: pytest.MonkeyPatch, optimizer: dict[str, Any]
) -> None:
    """100 steps, epochs of 7: dense to 10, then in turns of 7 steps, sparse over the last 20."""
    watched = Watched(monkeypatch, optimizer=optimizer)
    per_epoch, steps = watched.run.steps_per_epoch, watched.outcome.steps
    part: Any = watched.run.techniques[0]
    plan = stretches(steps, per_epoch, 0.1, 0.2)
    weights = sum(w.numel() for w in watched.weights[1])
    ends = [begin for begin, _ in plan[1:]] + [steps]
    for (begin, sparse), end in zip(plan, ends, strict=True):
        for step in range(begin + 1, end + 1):
            zeros = watched.zeros(step)
            alive = sum(int((~z).sum()) for z in zeros)
            if sparse:
                assert alive == kept(weights, 0.8), (step, alive)
                assert all(torch.equal(z, first) for z, first in zip(zeros, watched.zeros(begin + 1), strict=True))
    assert part.compressed and watched.run.progress.fraction == 1.0
    # In the first step of a dense phase former zeros move.
    begin = next(b for b, sparse in plan[2:] if not sparse)
    before, after = watched.zeros(begin), watched.weights[begin + 1]
    assert all(float(w[z].abs().max()) > 0 for w, z in zip(after, before, strict=True))


def test_what_is_kept_is_the_largest_of_all_layers_together(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    begin = stretches(watched.outcome.steps, watched.run.steps_per_epoch, 0.1, 0.2)[1][0]
    expected = global_masks([w.abs() for w in watched.weights[begin]], 0.8)
    assert all(torch.equal(~z, mask) for z, mask in zip(watched.zeros(begin + 1), expected, strict=True))


def test_sparsity_zero_is_the_dense_run_with_its_resets(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Watched(monkeypatch, techniques=[{**PART, "sparsity": 0.0, "reset_momentum": False}])
    dense = Watched(monkeypatch, techniques=[])
    assert nothing.outcome.weights == dense.outcome.weights
    # With resets: the same run whose optimizer forgets at the same steps.
    steps, per_epoch = dense.outcome.steps, dense.run.steps_per_epoch
    resets = {begin for begin, sparse in stretches(steps, per_epoch, 0.1, 0.2)[1:] if not sparse}
    assert resets
    step = Trainer._step

    def forgetful(trainer: Trainer) -> None:
        if trainer.run.step in resets:
            trainer.run.roles["main"].optimizer.state.clear()  # type: ignore[union-attr]
        step(trainer)

    with monkeypatch.context() as inner:
        inner.setattr(Trainer, "_step", forgetful)
        by_hand = Watched(inner, techniques=[])
    reset = Watched(monkeypatch, techniques=[{**PART, "sparsity": 0.0}])
    assert reset.outcome.weights == by_hand.outcome.weights != dense.outcome.weights


def test_first_and_last_stay_dense_where_enough_is_left() -> None:
    def names(*widths: int, how: str = "auto") -> list[str]:
        layers = [torch.nn.Linear(a, b) for a, b in pairwise(widths)]
        return [name for name, _ in prunable(derive(torch.nn.Sequential(*layers)), "weight", how)]

    assert names(4, 5, 6, 3) == ["0.weight", "1.weight", "2.weight"], "one matrix alone would be left"
    assert names(4, 5, 6, 7, 3) == ["1.weight", "2.weight"]
    assert names(4, 5, 6, 3, how="dense") == ["1.weight"]
    assert len(names(4, 5, 6, 7, 3, how="pruned")) == 4


def test_a_ticket_begins_with_early_weights_and_late_magnitudes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases with rewinding: the mask comes from the end of the dense phase, the weights from its step 5."""
    ticket = {**PART, "warmup_share": 0.0, "final_share": 1.0, "by": "phase:dense"}
    phases = [
        {"name": "dense", "budget": {"steps": 40}},
        {"name": "sparse", "budget": {"steps": 30}, "rewind": "phase:dense@5", "techniques": [ticket]},
    ]
    document = {**BASE, "phases": phases}
    document["techniques"] = []
    watched = Watched(monkeypatch, **{k: document[k] for k in ("techniques", "phases")})
    masks = global_masks([w.abs() for w in watched.weights[40]], 0.8)
    zeros = watched.zeros(41)
    assert all(torch.equal(~z, mask) for z, mask in zip(zeros, masks, strict=True))
    assert watched.outcome.steps == 70
    assert all(torch.equal(a, b) for a, b in zip(watched.zeros(70), zeros, strict=True))
    # One step from the rewound weights under the mask is closer to them than to where the dense phase ended.
    for late, early, now, mask in zip(watched.weights[40], watched.weights[5], watched.weights[41], masks, strict=True):
        assert float((now - early * mask).norm()) < 0.5 * float((now - late * mask).norm())


def test_what_it_refuses() -> None:
    def problems(**patch: Any) -> dict[str, str]:
        return {p["path"]: p["message"] for p in preview(Recipe.of(merge(BASE, patch)).text())["problems"]}

    assert problems() == {}
    found = problems(budget={"epochs": 0, "seconds": 3})
    assert "needs to know the number of steps" in found["techniques.0"]
    found = problems(techniques=[{**PART, "targets": "norm"}])
    assert "No layer that may be pruned" in found["techniques.0"]
    found = problems(techniques=[{**PART, "by": "phase:dense"}])
    assert "this recipe has none before it" in found["techniques.0.by"] or "no phase" in found["techniques.0.by"]
    with pytest.raises(ValueError, match="more than the whole run"):
        SparseOptimizationACDC(warmup_share=0.6, final_share=0.6)
