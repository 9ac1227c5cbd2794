"""Beam search as a part: an ensemble of itself is itself, what it costs, and who it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.errors import RecipeError
from engine.methods.adaptation.beam_search import BeamSearch
from engine.methods.adaptation.greedy_tokens import GreedyTokens
from tests.engine.methods.models.test_seq2seq_lstm import DECODERS, RECIPE
from tests.engine.methods.short import ready


def source_of(model: Any, task: Any = None) -> Any:
    return SimpleNamespace(model=lambda: model, label="run:other@best", recipe={"task": task})


def test_an_ensemble_of_itself_answers_as_it_does_and_another_one_changes_it() -> None:
    run, _ = ready(**RECIPE, decoder=DECODERS["wide"])
    other, _ = ready(**RECIPE, seed=7)
    run.model.head.weight.data.mul_(8)
    other.model.head.weight.data.mul_(8)
    batch = next(run.batches("test", 40))
    alone = run.predict(batch)
    for average in ("probabilities", "log-probabilities"):
        for model, same in ((run.model, True), (other.model, False)):
            run.decoder = BeamSearch(5, [source_of(model)], average)  # type: ignore[arg-type]
            run.decoder.setup(run)
            found = run.predict(batch)
            assert torch.allclose(found["score"], alone["score"], atol=1e-5) == same
            assert torch.equal(found["tokens"], alone["tokens"]) == same
            assert torch.allclose(found["logits"].softmax(-1), alone["logits"].softmax(-1), atol=1e-5) == same


def test_calls_count_every_beginning() -> None:
    run, _ = ready(**RECIPE, decoder=DECODERS["wide"])
    batch = next(run.batches("test", 10))
    longest = run.offer.about["longest"]
    run.predict(batch)
    assert 10 + 50 <= run.calls <= 10 + 50 * longest
    run.calls, run.decoder = 0, GreedyTokens()
    run.predict(batch)
    assert 20 <= run.calls <= 10 + 10 * longest


def test_models_that_do_not_write_are_refused() -> None:
    anatomy: Any = SimpleNamespace(module=torch.nn.Linear(2, 2))
    for part in (BeamSearch, GreedyTokens):
        assert "token by token" in (part.requires({"ensemble": []}, None, anatomy, {}) or "")  # type: ignore[arg-type]
    run, _ = ready(**RECIPE)
    anatomy.module = run.model
    recipe = {"task": {"use": "this"}}
    theirs = BeamSearch.requires({"ensemble": [source_of(None, {"use": "that"})]}, run.task, anatomy, recipe)
    assert theirs is not None and "another task" in theirs
    with pytest.raises(RecipeError, match="sequence"):
        ready(decoder={"use": "greedy-tokens"})
