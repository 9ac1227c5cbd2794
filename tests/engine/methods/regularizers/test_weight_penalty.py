"""The penalty against weight decay and its own sum."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.methods.regularizers.weight_penalty import TERM
from engine.recipe import Recipe, merge
from engine.training.assemble import assemble, filled, problems
from engine.training.loop import train
from engine.training.recorder import Memory, Recorder
from engine.training.run import Run

BASE: dict[str, Any] = {
    "task": {"use": "two-moons"},
    "model": {"use": "mlp", "hidden": [8]},
    "optimizer": {"use": "sgd", "lr": 0.1},
    "techniques": [{"use": "weight-penalty", "strength": 0.03}],
    "budget": {"steps": 5},
}


def document(**patch: Any) -> dict[str, Any]:
    return filled(Recipe.of(merge(BASE, patch)))


def penalty(run: Run) -> torch.Tensor:
    batch = run.stream.next()  # type: ignore[union-attr]
    return run.terms(run.forward(batch), batch)[TERM]


def test_it_is_half_of_what_optimizers_call_weight_decay() -> None:
    spared = [{"use": "weight-decay-exclusions"}]
    decay = document(techniques=spared, optimizer={"weight_decay": 0.06})
    paid, decayed = Memory(), Memory()
    assert train(document(), paid).state == train(decay, decayed).state == "done"
    weights = []
    for recipe in (document(), decay):
        run = assemble(recipe, Recorder(Memory()))
        for _ in range(5):
            run.before_step()
            batch = run.stream.next()  # type: ignore[union-attr]
            run.procedure.step(run, batch)
            run.step += 1
        weights.append(torch.cat([p.detach().flatten() for p in run.model.parameters()]))
    assert torch.allclose(*weights, rtol=1e-5, atol=1e-7)


def test_the_sum_over_what_is_selected() -> None:
    run = assemble(document(), Recorder(Memory()))
    weights = [m.weight for m in run.model.modules() if isinstance(m, torch.nn.Linear)]
    assert float(penalty(run)) == pytest.approx(0.03 * sum(float(w.square().sum()) for w in weights), rel=1e-6)
    techniques = [{"use": "weight-penalty", "strength": 0.5, "kind": "l1", "sites": "head"}]
    run = assemble(document(techniques=techniques), Recorder(Memory()))
    assert float(penalty(run)) == pytest.approx(0.5 * float(run.model.head.weight.abs().sum()), rel=1e-6)  # type: ignore


def test_two_of_them_add_up() -> None:
    techniques = [
        {"use": "weight-penalty", "strength": s, "sites": where} for s, where in ((0.1, "head"), (0.2, "linear"))
    ]
    run = assemble(document(techniques=techniques), Recorder(Memory()))
    head, all_ = ([s.module.weight for s in run.anatomy.select(where)] for where in ("head", "linear"))
    expected = 0.1 * sum(w.square().sum() for w in head) + 0.2 * sum(w.square().sum() for w in all_)  # type: ignore
    assert float(penalty(run)) == pytest.approx(float(expected), rel=1e-6)


def test_a_learned_strength_has_a_gradient_and_one_a_sample_weighs_each_sample() -> None:
    recipe = document()
    run = assemble(recipe, Recorder(Memory()))
    strength = run.techniques[0].strength  # type: ignore[attr-defined]
    strength.tensor = torch.tensor(0.03, requires_grad=True)
    once = penalty(run)
    once.backward()
    assert float(strength.tensor.grad) == pytest.approx(float(once) / 0.03, rel=1e-6)
    strength.tensor = torch.linspace(0, 1, 32)
    assert torch.allclose(penalty(run), strength.tensor * once.detach() / 0.03, rtol=1e-5)


def test_what_has_no_weights_is_refused() -> None:
    for sites, words in (
        ("activation", "has no weights to pay for"),
        ("norm", "no weight would pay"),
        ("nowhere", "neither"),
    ):
        (problem,) = problems(document(techniques=[{"use": "weight-penalty", "sites": sites}]))
        assert words in str(problem)
