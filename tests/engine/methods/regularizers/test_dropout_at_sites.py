"""Dropout at any place against torch's layer in the model, and with one rate for each sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.methods.regularizers.dropout_at_sites import dropped
from engine.recipe import Recipe, merge
from engine.training.assemble import assemble, filled, problems
from engine.training.loop import train
from engine.training.recorder import Memory, Recorder

BASE: dict[str, Any] = {
    "task": {"use": "two-moons"},
    "model": {"use": "mlp", "hidden": [8, 8]},
    "techniques": [{"use": "dropout-at-sites", "rate": 0.3}],
    "budget": {"steps": 8},
}


def document(**patch: Any) -> dict[str, Any]:
    return filled(Recipe.of(merge(BASE, patch)))


def test_it_is_the_models_own_dropout() -> None:
    by_hooks, by_layers = train(document()), train(document(techniques=[], model={"dropout": 0.3}))
    assert by_hooks.weights == by_layers.weights
    assert by_hooks.weights != train(document(techniques=[])).weights


def test_nothing_drops_in_evaluation() -> None:
    run = assemble(
        document(techniques=[{"use": "dropout-at-sites", "rate": 0.9, "sites": "stem, blocks"}]), Recorder(Memory())
    )
    batch = run.stream.next()  # type: ignore[union-attr]
    assert torch.equal(run.predict(batch), run.predict(batch))
    assert not torch.equal(run.forward(batch), run.forward(batch))


def test_a_rate_over_time() -> None:
    rate = {"value": 1.0, "schedule": {"use": "cosine"}}
    run = assemble(document(techniques=[{"use": "dropout-at-sites", "rate": rate}]), Recorder(Memory()))
    batch = run.stream.next()  # type: ignore[union-attr]
    constant = run.forward(batch)
    assert torch.equal(constant, constant[:1].expand_as(constant)), "all units are silent at first"
    run.step = run.steps or 0
    assert torch.equal(run.forward(batch), run.predict(batch)), "and none at the end"


def test_one_rate_for_each_sample() -> None:
    torch.manual_seed(0)
    rates = torch.tensor([0.0, 0.25, 0.9, 1.0])
    x = torch.full((4, 20000), 2.0)
    out = dropped(x, rates)
    assert torch.equal(out[0], x[0]) and not out[3].any()
    assert (out == 0).float().mean(1).tolist() == pytest.approx(rates.tolist(), abs=0.01)
    assert out[:3].mean(1).tolist() == pytest.approx([2.0] * 3, rel=0.05), "the mean is kept"
    assert out[1].unique().tolist() == pytest.approx([0.0, 2 / 0.75])
    images = dropped(torch.ones(4, 3, 5, 5), rates)
    assert torch.equal(images[0], torch.ones(3, 5, 5)) and not images[3].any()


def test_a_learned_rate_acts() -> None:
    run = assemble(document(), Recorder(Memory()))
    run.techniques[0].rate.tensor = torch.tensor(1.0)  # type: ignore[attr-defined]
    batch = run.stream.next()  # type: ignore[union-attr]
    out = run.forward(batch)
    assert torch.equal(out, out[:1].expand_as(out))


def test_a_selection_of_nothing_is_refused() -> None:
    (problem,) = problems(document(techniques=[{"use": "dropout-at-sites", "sites": "conv"}]))
    assert "nothing would drop" in str(problem)
