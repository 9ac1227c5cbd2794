"""Every decoder answers what its task measures, at the cost that it says, and changes nothing but the answer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from engine.parts import Batch, Decoder
from engine.recipe import Recipe
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer, train
from engine.training.random import forked
from engine.training.recorder import Memory, Recorder
from engine.training.run import Run
from engine.training.transforms import leaves
from tests.contract.conftest import CATALOG


def example(id: str, decoder: bool = True) -> dict[str, Any]:
    document = CATALOG.example(id)
    if not decoder:
        del document["decoder"]
    return filled(Recipe.of(document), CATALOG)


def trained(id: str, decoder: bool = True) -> Run:
    run = assemble(example(id, decoder), Recorder(Memory()))
    Trainer(run).train()
    return run


def tensors(run: Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def same(one: Any, other: Any) -> bool:
    """Whether two answers are one, whatever holds their tensors."""
    a, b = leaves(one), leaves(other)
    return bool(a) and len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_it_answers_what_the_task_measures_and_leaves_the_model_as_it_was(decoded: str) -> None:
    run = trained(decoded)
    before, modes = tensors(run), [module.training for module in run.model.modules()]
    paths = [path for path, _ in run.model.named_modules()]
    first, again = run.evaluate("test"), run.evaluate("test")
    assert first == again and first and all(math.isfinite(value) for value in first.values())
    after = tensors(run)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert modes == [module.training for module in run.model.modules()]
    assert paths == [path for path, _ in run.model.named_modules()], "every module is back in its place"


def test_it_costs_what_it_says(decoded: str) -> None:
    run = trained(decoded)
    assert isinstance(run.decoder, Decoder)
    found = Trainer(run).measure("test")["decoder/calls"]
    assert found > 0 and (run.decoder.cost is None or found == pytest.approx(run.decoder.cost, rel=1e-12))


def test_it_trains_nothing(decoded: str) -> None:
    """So it can be exchanged on a saved run, and another run is the one that was saved."""
    documents = [example(decoded, decoder) for decoder in (True, False)]
    with_it, without = (train(document) for document in documents)
    assert with_it.weights == without.weights
    assert with_it.metrics["train/loss"] == without.metrics["train/loss"]


def test_what_a_probe_asks_does_not_change_an_evaluation(decoded: str) -> None:
    run = trained(decoded)
    before = run.evaluate("test")
    for batch in run.batches("train", 16, 48):
        run.predict(batch)
    assert run.evaluate("test") == before
    batch = next(run.batches("test", 16))
    one, two = run.predict(batch), run.predict(batch)
    assert same(one, two), "an answer alone begins anew"


def test_it_says_whether_the_order_matters(decoded: str) -> None:
    """What does not is answered alike whatever came before it, given the same draws."""
    run = trained(decoded)
    decoder = run.decoder
    assert decoder is not None
    one, two = list(run.batches("test", 24, 48))

    def answers(*batches: Batch) -> Any:
        with run.answering():
            rng = torch.Generator(run.device)
            decoder.reset(run, rng.manual_seed(1))
            for batch in batches:
                rng.manual_seed(3)
                with forked(run.device, 3):
                    last = decoder.predict(run, batch, rng)
        return last

    assert same(answers(two), answers(one, two)) != decoder.ordered
