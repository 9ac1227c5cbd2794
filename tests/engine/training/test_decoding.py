"""How an evaluation is made: the decoder, its draws and its cost, normalization, variants, and their conflicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import AthanorError, RecipeError
from engine.parts import Batch, Decoder, decoder, procedure
from engine.recipe import Recipe, merge
from engine.training import checkpoint
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer, train
from engine.training.recorder import Memory, Recorder
from engine.training.run import Run

BASE: dict[str, Any] = {
    "task": {"use": "digits", "train_limit": 200},
    "model": {"use": "cnn", "widths": [8], "dropout": 0.3},
    "optimizer": {"use": "sgd", "lr": 0.1},
    "training": {"batch_size": 25, "evaluate_every": 0, "evaluation_batch": 50},
    "budget": {"steps": 8},
}


def document(**patch: Any) -> dict[str, Any]:
    return filled(Recipe.of(merge(BASE, patch)))


def ready(**patch: Any) -> Run:
    return assemble(document(**patch), Recorder(Memory()))


def trained(**patch: Any) -> Run:
    run = ready(**patch)
    Trainer(run).train()
    return run


@decoder(id="of-a-test")
class Listening(Decoder):
    """Counts what it is asked, moves the weights with every batch, and answers by the first draw and the count."""

    ordered = True
    adapts = True

    def __init__(self) -> None:
        self.log: list[str] = []

    def setup(self, run: Run) -> None:
        self.log.append("setup")

    def reset(self, run: Run, rng: torch.Generator) -> None:
        self.log.append("reset")
        self._first = torch.rand((), generator=rng)

    def predict(self, run: Run, batch: Batch, rng: torch.Generator) -> Tensor:
        assert not torch.is_grad_enabled() and not any(m.training for m in run.model.modules())
        self.log.append(f"predict {len(batch)}")
        answer = run.answer(batch) + self._first
        for parameter in run.model.parameters():
            parameter.add_(0.01)
        return answer


def test_an_evaluation_begins_anew_goes_on_in_order_and_puts_the_model_back() -> None:
    run = trained()
    plain = run.evaluate("test")
    own = run.decoder = Listening()
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    first = run.evaluate("test", limit=120)
    assert own.log == ["reset", "predict 50", "predict 50", "predict 20"]
    assert run.evaluate("test", limit=120) == first, "the same draws, the same weights"
    assert all(torch.equal(before[name], tensor) for name, tensor in run.model.state_dict().items())
    assert run.evaluate("test")["loss"] != plain["loss"], "weights did move within"
    own.log.clear()
    run.predict(next(run.batches("test")))
    assert own.log == ["reset", "predict 50"]


def test_calls_are_counted_and_logged() -> None:
    sink = Memory()
    outcome = train(document(decoder={"use": "mc-dropout", "samples": 7}), sink)
    assert outcome.metrics["decoder/calls"] == 7
    assert set(sink.points["decoder/calls"][1]) == {7.0}
    assert "decoder/calls" not in train(document()).metrics


def test_normalization_by_the_batch_depends_on_the_batch_alone() -> None:
    run = trained(training={"normalization": "batch"})
    batch = next(run.batches("test"))
    half = next(run.batches("test", 25))
    whole = run.predict(batch)
    assert not torch.allclose(whole[:25], run.predict(half), atol=1e-3)
    run.normalization = "running"
    assert torch.allclose(run.predict(batch)[:25], run.predict(half), atol=1e-6)
    assert not torch.allclose(run.predict(batch), whole, atol=1e-3)


def test_recalibration_uses_the_weights_of_the_variant_that_is_measured() -> None:
    run = trained(training={"normalization": "recalibrated", "calibration_batches": 3})
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    plain = run.predict(next(run.batches("test")))

    @contextmanager
    def scaled() -> Iterator[None]:
        """The stem's filters ten times as large: with statistics of its own, batch normalization takes that out."""
        weight = run.model.stem[0].weight  # type: ignore[index,union-attr]
        with torch.no_grad():
            weight.mul_(10)
            yield
            weight.div_(10)

    run.procedure.variants = lambda run: {"scaled": scaled}  # type: ignore[method-assign]
    assert torch.allclose(run.predict(next(run.batches("test")), "scaled"), plain, atol=1e-3)
    run.normalization = "running"
    assert not torch.allclose(run.predict(next(run.batches("test")), "scaled"), plain, atol=0.1)
    del before["stem.0.weight"]
    assert all(torch.equal(run.model.state_dict()[name], tensor) for name, tensor in before.items())


def test_the_training_is_the_same_whatever_evaluates() -> None:
    weights = {
        train(document(training=training, decoder=decoder)).weights
        for training in ({}, {"normalization": "batch", "evaluate_every": 1}, {"normalization": "recalibrated"})
        for decoder in ({"use": "mc-dropout"}, {"use": "shifted-copies"})
    }
    assert len(weights) == 1


def test_procedures_offer_variants_too() -> None:
    from engine.parts import Procedure

    @procedure(id="of-this-test")
    class Off(Procedure):
        def variants(self, run: Run) -> dict[str, Callable[[], AbstractContextManager[None]]]:
            @contextmanager
            def silent() -> Iterator[None]:
                head: Any = run.model.head
                kept = head.weight.clone()
                with torch.no_grad():
                    head.weight.zero_()
                    yield
                    head.weight.copy_(kept)

            return {"silent": silent}

    run = ready(techniques=[{"use": "switch-ema"}])
    run.procedure = Off()
    assert list(run.variants()) == ["silent", "ema"]
    measured = Trainer(run).measure("test")
    assert measured["test@silent/loss"] != measured["test/loss"] and "test@ema/loss" in measured
    batch = next(run.batches("test"))
    answer = run.predict(batch, "silent")
    assert torch.allclose(answer, answer[:1].expand_as(answer)) and not torch.allclose(run.predict(batch), answer)


def refused(**patch: Any) -> str:
    with pytest.raises(RecipeError) as error:
        ready(**patch)
    return str(error.value)


def test_a_decoder_that_does_not_fit_the_task_is_refused() -> None:
    moons = {"use": "two-moons"}
    sentence = refused(task=moons, model={"use": "mlp", "hidden": [8]}, decoder={"use": "shifted-copies"})
    assert "takes image, but the task offers vector" in sentence
    assert ready(decoder={"use": "shifted-copies"}).evaluate("test")["accuracy"] >= 0
    sentence = refused(model={"use": "cnn", "dropout": 0.0}, decoder={"use": "mc-dropout"})
    assert "set a dropout above 0" in sentence
    text = {"use": "python-text"}
    moved = refused(task=text, model={"use": "transformer"}, decoder={"use": "shifted-copies"})
    assert "takes image, but the task offers tokens" in moved


@pytest.mark.parametrize("mode", ["batch", "recalibrated"])
def test_normalization_without_statistics_is_refused(mode: str) -> None:
    sentence = refused(model={"use": "cnn", "norm": "layer"}, training={"normalization": mode})
    assert "training.normalization" in sentence and "no layer with running statistics" in sentence
    assert ready(model={"use": "cnn"}, training={"normalization": mode}).evaluate("val")["accuracy"] >= 0


def test_normalization_of_a_model_that_a_technique_changes_is_judged_after_it() -> None:
    swap = {"use": "replace", "sites": "norm", "layer": {"use": "layer-norm"}}
    sentence = refused(techniques=[swap], training={"normalization": "batch"})
    assert "no layer with running statistics" in sentence


def test_one_sample_has_no_statistics() -> None:
    changes: dict[str, Any] = {"training": {"normalization": "batch", "evaluation_batch": 1}}
    run = ready(model={"use": "mlp", "hidden": [8], "norm": "batch"}, **changes)
    with pytest.raises(AthanorError, match=r"one sample has no statistics.*evaluation_batch"):
        run.evaluate("test")


def test_a_saved_run_takes_another_decoder(tmp_path: Any) -> None:
    outcome = train(document(), folder=tmp_path)
    saved = checkpoint.newest(tmp_path)
    assert saved is not None
    fresh = train(document(decoder={"use": "mc-dropout", "samples": 4}))
    trainer = Trainer(ready(decoder={"use": "mc-dropout", "samples": 4}))
    trainer.load(saved)
    found = trainer.measure("test")
    assert found == {name: value for name, value in fresh.metrics.items() if name in found}
    assert found["test/loss"] != outcome.metrics["test/loss"]
