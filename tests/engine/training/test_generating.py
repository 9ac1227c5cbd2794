"""What procedures need that make their own objective: hooks, a projection, further streams of whatever the task hands
out, and tasks that measure nothing by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine import registry
from engine.errors import RecipeError
from engine.parts import Batch, Decoder, Offer, Procedure, Task, Technique, decoder, procedure, task, technique
from engine.recipe import Recipe
from engine.training import checkpoint
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer, train
from engine.training.recorder import Memory, Recorder
from engine.training.roles import Role
from tests.engine.training.own import offer


@task(id="noise-to-copy")
class NoiseToCopy(Task):
    """Asks for samples of a normal distribution.

    Args:
        stored: Whether there are stored samples, or fresh ones.
    """

    offer = Offer("vector", (2,), "samples", 2)
    metric = ("off", "min")
    has_objective = False
    by_row = False
    judges = ("val",)
    epoch_steps = 4

    def __init__(self, stored: bool = False):
        self.stored = stored
        self.stream = "rows" if stored else "drawn"

    def load(self) -> None:
        self.rows = {"x": torch.randn(12, 2, generator=torch.Generator().manual_seed(0))}

    def columns(self, split: str) -> dict[str, Tensor]:
        return self.rows if split != "train" or self.stored else {}

    def draw(self, size: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {"x": torch.randn(size, 2, generator=rng, device=rng.device)}

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        raise AssertionError("nothing is measured by row")

    def judge(self, split: str, answer: Any, rng: torch.Generator) -> dict[str, float]:
        return {"off": float(answer(Batch({}, None, torch.arange(5), split)).mean().abs())}


@procedure(id="two-batches")
class TwoBatches(Procedure):
    """Looks at two batches a step, and keeps the weights within a box."""

    brings_objective = True
    makes = ("main",)

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.seen: list[float] = []

    def step(self, run: Any, batch: Batch) -> None:
        other = run.stream_of("train", "two-batches", 3).next()
        self.seen += [float(batch.x.sum()), float(other.x.sum())]
        output = run.forward(batch)
        own = {"far": (output - other.x.mean() - 5).square().mean(1)}
        run.update("main", run.terms(output, batch, own))

    def project(self, run: Any, role: Role) -> None:
        assert role.name == "main"
        self.calls.append("project")
        for parameter in role.parameters:
            parameter.data.clamp_(-0.1, 0.1)

    def on_step_end(self, run: Any) -> None:
        self.calls.append("step")

    def on_epoch_end(self, run: Any) -> None:
        self.calls.append("epoch")

    def after_evaluation(self, run: Any, metrics: dict[str, float]) -> None:
        self.calls.append(f"evaluated {'val/off' in metrics}")

    def on_end(self, run: Any) -> None:
        self.calls.append("end")


@procedure(id="from-above")
class FromAbove(Procedure):
    """Asks its model for the samples themselves, from the samples plus one."""

    brings_objective = True

    def offer(self, task: Task) -> Offer:
        return Offer("vector", (2,), "values", 2)

    def given(self, run: Any, batch: Batch) -> Batch:
        return batch if batch.target is not None else Batch({"x": batch.x + 1}, batch.x, batch.index, batch.split)

    def objective(self, run: Any, output: Any, batch: Batch) -> dict[str, Tensor]:
        return {"far": (output - batch.target).square().mean(1)}

    def step(self, run: Any, batch: Batch) -> Any:
        run.batch = seen = self.given(run, batch)
        output = run.forward(seen)
        run.update("main", run.terms(output, seen))
        return output

    def predict(self, run: Any, batch: Batch) -> Any:
        return run.model(torch.zeros(len(batch), 2))


@technique(id="doubled")
class Doubled(Technique):
    """Doubles the weights after each step, and the terms of the loss."""

    def on_terms(self, run: Any, terms: Any, output: Any, batch: Batch) -> Any:
        assert list(terms) == ["far"]
        return {"far": 2 * terms["far"], "more": terms["far"]}

    def project(self, run: Any, role: Role) -> None:
        run.procedure.calls.append("doubled")
        for parameter in role.parameters:
            parameter.data.mul_(2)


@decoder(id="thrice")
class Thrice(Decoder):
    """The mean of three answers."""

    def predict(self, run: Any, batch: Batch, rng: torch.Generator) -> Any:
        blank = Batch({"x": torch.zeros(len(batch), 2)}, None, batch.index)
        return torch.stack([run.answer(blank) for _ in range(3)]).mean(0)


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, NoiseToCopy, TwoBatches, FromAbove, Doubled, Thrice)


def document(**changes: Any) -> dict[str, Any]:
    base = {
        "task": {"use": "noise-to-copy"},
        "procedure": {"use": "two-batches"},
        "model": {"use": "mlp", "hidden": [3]},
        "optimizer": {"use": "sgd", "lr": 0.5},
        "training": {"batch_size": 4},
        "budget": {"steps": 6},
        "decoder": {"use": "thrice"},
    }
    return filled(Recipe.of({**base, **changes}), registry.catalog())


def trained(**changes: Any) -> tuple[Any, Memory]:
    memory = Memory()
    run = assemble(document(**changes), Recorder(memory))
    assert Trainer(run).train().state == "done"
    return run, memory


def test_a_procedure_has_the_hooks_of_techniques_and_projects_after_them() -> None:
    run, _ = trained(techniques=[{"use": "doubled"}])
    step = ["doubled", "project", "step"]
    assert run.procedure.calls == [*step * 4, "epoch", "evaluated True", *step * 2, "end"]
    weights: list[nn.Parameter] = list(run.model.parameters())
    assert all(p.abs().max() <= 0.1 for p in weights) and any(p.abs().max() == 0.1 for p in weights)


def test_techniques_see_the_objective_that_a_procedure_brings() -> None:
    runs = [assemble(document(techniques=t), Recorder(Memory())) for t in ([], [{"use": "doubled"}])]
    terms = []
    for run in runs:
        batch = run.stream.next()  # type: ignore[union-attr]
        output = run.forward(batch)
        terms.append(run.terms(output, batch, {"far": output.square().mean(1)}))
    assert list(terms[0]) == ["far"] and torch.equal(terms[1]["far"], 2 * terms[0]["far"])
    assert torch.equal(terms[1]["more"], terms[0]["far"])


@pytest.mark.parametrize("stored", [False, True])
def test_further_streams_go_on_as_they_would_have(stored: bool, tmp_path: Path) -> None:
    wanted = document(task={"use": "noise-to-copy", "stored": stored})
    whole, cut = Memory(), Memory()
    seen: dict[str, list[float]] = {}

    def stop(trainer: Trainer) -> None:
        finished = trainer._finished
        trainer._finished = lambda: (trainer.run.step == 3 and _ask(trainer)) or finished()  # type: ignore[method-assign]

    def load(trainer: Trainer) -> None:
        trainer.load(checkpoint.newest(tmp_path) or {})

    def keep(name: str, trainer: Trainer) -> None:
        seen[name] = trainer.run.procedure.seen  # type: ignore[attr-defined]

    one = train(wanted, whole, None, lambda t: keep("whole", t))
    train(wanted, cut, tmp_path, stop)
    two = train(wanted, cut, tmp_path, lambda t: (load(t), keep("cut", t))[0])
    assert one.weights == two.weights and seen["cut"] == seen["whole"] and len(set(seen["whole"])) == 12


def _ask(trainer: Trainer) -> bool:
    trainer.sink.requested = "stop"
    trainer._obey()
    return True


def test_rows_are_not_answered_and_a_decoders_cost_is_that_of_what_was_asked() -> None:
    run, memory = trained()
    assert set(memory.points["val/off"][0]) == {4, 6} and not [n for n in memory.points if n.startswith("train/off")]
    assert memory.points["decoder/calls"][1] == [3.0, 3.0]
    assert run.columns_of("val").size == 12


def test_a_loss_that_nobody_would_use_is_refused() -> None:
    with pytest.raises(RecipeError, match="brings its own objective and would not use it"):
        assemble(document(loss={"use": "half-squared-error"}), Recorder(Memory()))


@pytest.mark.parametrize("stored", [False, True])
def test_whoever_asks_the_model_gives_it_what_the_procedure_would(stored: bool) -> None:
    """The oracle, an optimizer with a line search, a probe and a transform, also where no sample is stored."""
    changes = {"task": {"use": "noise-to-copy", "stored": stored}, "procedure": {"use": "from-above"}}
    run = assemble(document(**changes), Recorder(Memory()))
    batch = run.training_sample(5)
    assert torch.equal(batch.x, run.training_sample(5).x) and len(batch) == 5
    expected = (run.model(batch.x + 1) - batch.x).square().mean()
    assert torch.allclose(run.oracle(batch).value(), expected)
    assert torch.allclose(run.oracle(run.procedure.given(run, batch)).value(), expected), "what is made stays as it is"
    more = {
        "optimizer": {"use": "lbfgs"},
        "probes": [{"use": "sharpness"}, {"use": "super-convergence-range-test", "steps": 5}],
        "transforms": [{"use": "fold"}],
    }
    memory = Memory()
    outcome = Trainer(assemble(document(**changes, **more), Recorder(memory))).train()
    assert outcome.state == "done" and outcome.metrics["probe/sharpness/sharpness"] > 0
    assert outcome.metrics["transform/fold/error"] < 1e-6


def test_an_objective_that_is_made_in_the_step_cannot_be_asked_for_again() -> None:
    with pytest.raises(RecipeError, match="asks for the loss of a batch again"):
        assemble(document(optimizer={"use": "lbfgs"}), Recorder(Memory()))
