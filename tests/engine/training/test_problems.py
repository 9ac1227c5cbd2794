"""Problems of other kinds than stored samples: drawn, whole and without any; tasks that judge themselves, procedures
without a model or an optimizer, budgets in what is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine import registry
from engine.errors import RecipeError
from engine.parts import Batch, Offer, Procedure, Task, procedure, task
from engine.recipe import Recipe, merge
from engine.training import checkpoint
from engine.training.assemble import assemble, batches_per_epoch, build_task, filled
from engine.training.loop import Outcome, Trainer, train
from engine.training.preview import fits, preview
from engine.training.recorder import Memory, Recorder
from tests.engine.training.own import offer


@task(id="fresh-lines")
class FreshLines(Task):
    """Learns y = 2 x from points that are drawn anew at every step.

    Args:
        steps: Steps that count as an epoch.
    """

    offer = Offer("vector", (1,), "values", 1)
    metric = ("error", "min")
    stream = "drawn"
    judges = ("test",)

    def __init__(self, steps: int = 5):
        self.epoch_steps = steps

    def load(self) -> None:
        x = torch.linspace(-1, 1, 11).unsqueeze(1)
        self.val = {"x": x, "target": 2 * x}

    def columns(self, split: str) -> dict[str, Tensor]:
        return self.val if split == "val" else {}

    def draw(self, size: int, rng: torch.Generator) -> dict[str, Tensor]:
        x = torch.rand(size, 1, generator=rng, device=rng.device)
        return {"x": x, "target": 2 * x, "mask": x > 0, "meta.row": torch.arange(size)}

    def objective(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        assert batch.mask is None or batch.mask.dtype == torch.bool
        return {"task": (output - batch.target).square().flatten(1).mean(1)}

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        return {"error": (output - batch.target).abs().mean(1)}

    def judge(self, split: str, answer: Any, rng: torch.Generator) -> dict[str, float]:
        x = torch.rand(4, 1, generator=rng)
        assert not torch.is_grad_enabled()
        return {"drawn": float(answer(Batch({"x": x}, None, torch.arange(4))).mean()), "x": float(x.mean())}

    def figures(self, answer: Any, rng: torch.Generator) -> dict[str, Any]:
        y = answer(Batch({"x": self.val["x"]}, None, torch.arange(11)))[:, 0].tolist()
        return {"line": {"kind": "curve", "series": [{"name": "y", "x": self.val["x"][:, 0].tolist(), "y": y}]}}


@task(id="whole-line")
class WholeLine(FreshLines):
    """Learns y = 2 x from all its points at every step, and the slope by the derivative of the answer."""

    stream = "whole"
    judges = ()
    input_gradients = ("x",)

    def columns(self, split: str) -> dict[str, Tensor]:
        return self.val

    def objective(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        (slope,) = torch.autograd.grad(output.sum(), batch.inputs["x"], create_graph=True)
        return {"task": (output - batch.target).square().mean(1), "slope": (slope - 2).square().mean(1)}


@task(id="square-root")
class SquareRoot(Task):
    """Asks for the root of a number.

    Args:
        of: The number.
    """

    offer = Offer("none", (), "solution", 1)
    metric = ("error", "min")
    stream = "none"
    has_objective = False
    judges = ("val", "test")

    def __init__(self, of: float = 2.0):
        self.of = of

    def load(self) -> None:
        pass

    def judge(self, split: str, answer: Any, rng: torch.Generator) -> dict[str, float]:
        return {"error": abs(float(answer(Batch({}, None, torch.zeros(1)))) ** 2 - self.of)}


class Root(nn.Module):
    """The solution."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("x", torch.ones((), dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.x  # type: ignore[return-value]


@procedure(id="heron")
class Heron(Procedure):
    """Halves the sum of x and of / x until nothing changes.

    Args:
        tolerance: The change below which it ends.
    """

    uses = ()
    offers = ()
    makes = ()
    outputs = ("solution",)
    brings_objective = True

    def __init__(self, tolerance: float = 1e-12):
        self.tolerance = tolerance

    def make_model(self, task: Task) -> nn.Module:
        return Root()

    def pace(self) -> dict[str, float]:
        return {"divisions": 1.0}

    def step(self, run: Any, batch: Batch) -> None:
        assert len(batch) == 1 and not batch.inputs
        before = run.model.x.clone()
        run.model.x.copy_((before + run.task.of / before) / 2)
        run.count("divisions")
        change = (run.model.x - before).abs()
        run.tell(change)
        if float(change) < self.tolerance:
            run.finish(f"It changed by less than {self.tolerance:g}.")


@procedure(id="autoencoding")
class Autoencoding(Procedure):
    """Trains a model that takes three numbers, whatever the task offers."""

    brings_objective = True

    def offer(self, task: Task) -> Offer:
        return Offer("vector", (3,), "values", 3)

    def step(self, run: Any, batch: Batch) -> Any:
        x = torch.randn(4, 3, generator=run.rng("autoencoding"))
        output = run.model(x)
        run.update("main", {"task": (output - x).square().mean(1)})

    def predict(self, run: Any, batch: Batch) -> Any:
        return run.model(torch.zeros(len(batch), 3))[:, :1]


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, FreshLines, WholeLine, SquareRoot, Heron, Autoencoding)


BASE: dict[str, Any] = {
    "task": {"use": "fresh-lines"},
    "model": {"use": "mlp", "hidden": [4]},
    "optimizer": {"use": "sgd", "lr": 0.1},
    "schedule": {"use": "constant"},
    "training": {"batch_size": 6},
    "budget": {"steps": 12},
}
SOLVER: dict[str, Any] = {"task": {"use": "square-root"}, "procedure": {"use": "heron"}}


def document(*patches: dict[str, Any], base: dict[str, Any] = BASE) -> dict[str, Any]:
    found = base
    for patch in patches:
        found = merge(found, patch)
    return filled(Recipe.of(found), registry.catalog())


def refused(*patches: dict[str, Any], base: dict[str, Any] = BASE) -> str:
    with pytest.raises(RecipeError) as error:
        assemble(document(*patches, base=base), Recorder(Memory()))
    return str(error.value)


def cut_and_resumed(recipe: dict[str, Any], at: int, folder: Path) -> tuple[Outcome, Memory]:
    """A run that is stopped after some steps and goes on from its checkpoint."""
    first = Trainer(assemble(recipe, Recorder(Memory())), folder)
    while first.run.step < at:
        first._step()
    first.save()
    sink = Memory()
    state = checkpoint.newest(folder)
    assert state is not None
    return train(recipe, sink, folder, lambda trainer: trainer.load(state)), sink


def test_samples_are_drawn_anew_and_the_same_after_a_resume(tmp_path: Path) -> None:
    run = assemble(document(), Recorder(Memory()))
    batches = [run.stream.next() for _ in range(3)]  # type: ignore[union-attr]
    assert not torch.equal(batches[0].x, batches[1].x)
    assert batches[1].index.tolist() == list(range(6, 12)) and batches[0].mask is not None
    assert batches[2].meta["row"].tolist() == list(range(6))
    sink = Memory()
    whole = train(document(), sink)
    again, points = cut_and_resumed(document(), 7, tmp_path)
    assert again.weights == whole.weights and whole.metrics == again.metrics
    assert whole.metrics["count/samples"] == 72
    assert points.points["train/loss"][0][0] == 7


def test_an_epoch_of_drawn_samples_is_what_the_task_says() -> None:
    sink = Memory()
    train(document(), sink)
    assert sink.points["val/error"][0] == [5, 10, 12]
    recipe = document({"task": {"steps": 4}})
    assert batches_per_epoch(recipe, build_task(recipe)) == 4
    recipe["budget"]["steps"] = 0
    assert train(recipe, Memory()).steps == 40, "ten epochs where nothing is said"


def test_a_task_judges_with_the_same_draw_at_every_evaluation() -> None:
    sink = Memory()
    outcome = train(document({"training": {"evaluate_every": 1}}), sink)
    assert {"test/drawn", "test/x", "val/error"} <= set(outcome.metrics)
    run = assemble(document(), Recorder(Memory()))
    first, second = run.evaluate("test"), run.evaluate("test")
    assert first == second and first["x"] == pytest.approx(outcome.metrics["test/x"], abs=0)


def test_a_task_draws_figures_at_evaluations_and_at_the_end() -> None:
    sink = Memory()
    train(document(), sink)
    assert [(f["probe"], f["name"], f["step"]) for f in sink.figures] == [
        ("fresh-lines", "line", step) for step in (5, 10, 12)
    ]
    assert sink.figures[0]["data"] != sink.figures[-1]["data"]
    seldom = Memory()
    train(document({"task": {"steps": 1}, "budget": {"steps": 200}}), seldom)
    assert len(seldom.figures) == 21, "the first, and each twentieth of the run"


def test_the_objective_may_differentiate_the_answer_by_an_input() -> None:
    recipe = document({"task": {"use": "whole-line"}, "model": {"activation": "tanh"}, "budget": {"steps": 300}})
    sink = Memory()
    outcome = train(recipe, sink)
    assert outcome.metrics["val/slope"] < 0.05 < sink.points["val/slope"][1][0]
    run = assemble(recipe, Recorder(Memory()))
    batch = run.differentiable(run.stream.next())  # type: ignore[union-attr]
    assert len(batch) == 11 and batch.inputs["x"].requires_grad
    assert not run.columns("train")["x"].requires_grad


def test_what_is_handed_out_whole_is_not_split() -> None:
    whole = {"task": {"use": "whole-line"}}
    assert "handed out whole" in refused(whole, {"training": {"accumulate": 2}})
    assert "leave [sampler] out" in refused(whole, {"sampler": {"use": "balanced"}})
    assert "no stored rows" in refused({"training": {"outer": 0.2}})


def test_a_solver_needs_no_model_and_ends_when_it_has_converged(tmp_path: Path) -> None:
    recipe = document({"budget": {"steps": 50}}, base=SOLVER)
    assert recipe["model"] is None and recipe["optimizer"] is None and recipe["schedule"] is None
    sink = Memory()
    outcome = train(recipe, sink, tmp_path)
    assert outcome.state == "done" and outcome.steps < 10
    assert outcome.metrics["test/error"] < 1e-12 and outcome.metrics["val/error"] < 1e-12
    assert [e["text"] for e in sink.events if e["kind"] == "finished"] == ["It changed by less than 1e-12."]
    assert len(sink.points["train/loss"][1]) == outcome.steps
    assert "count/samples" not in outcome.metrics
    assert float(checkpoint.load(tmp_path / "best.pt")["model"]["x"]) == pytest.approx(2**0.5, abs=1e-12)
    other = tmp_path / "cut"
    other.mkdir()
    again, _ = cut_and_resumed(recipe, 3, other)
    assert again.weights == outcome.weights and again.steps == outcome.steps
    assert train(recipe, Memory(), other, lambda t: t.load(checkpoint.newest(other) or {})).steps == outcome.steps


def test_what_a_procedure_does_not_use_takes_no_part() -> None:
    named = {"model": {"use": "mlp"}, "optimizer": {"use": "sgd"}}
    recipe = Recipe.of(merge(SOLVER, named))
    assert recipe.unused(registry.catalog()) == ["model", "optimizer", "schedule"]
    assert document(named, base=SOLVER)["model"] is None
    assert Recipe.of(BASE).unused(registry.catalog()) == []
    shown = preview(Recipe.of(SOLVER).text())
    assert shown["problems"] == [] and shown["data"]["stream"] == "none"


def test_a_task_without_a_loss_wants_a_procedure_that_brings_one() -> None:
    text = refused({"task": {"use": "square-root"}})
    assert "square-root has no loss to descend, so backprop cannot train it" in text and "heron" in text
    assert "it answers with solution, but the task asks for values" in refused({"procedure": {"use": "heron"}})
    reasons = fits(Recipe.of({"task": {"use": "square-root"}}).text(), "procedure")
    assert "backprop" in reasons and "heron" not in reasons
    assert "heron" in fits(Recipe.of(BASE).text(), "procedure")


def test_a_procedure_says_what_the_model_must_do() -> None:
    recipe = document({"procedure": {"use": "autoencoding"}})
    run = assemble(recipe, Recorder(Memory()))
    assert next(run.model.parameters()).shape == (4, 3)
    assert train(recipe, Memory()).state == "done"
    shown = preview(Recipe.of(merge(BASE, {"procedure": {"use": "autoencoding"}})).text())
    assert shown["problems"] == [] and shown["model"]["parameters"] == 4 * 3 + 4 + 3 * 4 + 3


def test_budgets_in_what_is_counted(tmp_path: Path) -> None:
    counted = {"budget": {"steps": 0, "amount": 30, "count": "samples"}}
    assert train(document(counted), Memory()).steps == 5
    assert "needs to know the number of steps" in refused(counted, {"schedule": {"use": "cosine"}})
    solver = document({"budget": {"amount": 3, "count": "divisions"}}, base=SOLVER)
    run = assemble(solver, Recorder(Memory()))
    assert run.steps == 3, "a procedure whose steps all take the same is told how many there are"
    outcome = train(solver, Memory(), tmp_path)
    assert outcome.steps == 3 and outcome.metrics["count/divisions"] == 3


def test_a_budget_of_a_phase_counts_from_its_begin(tmp_path: Path) -> None:
    budget = {"amount": 18, "count": "samples"}
    phases = [{"name": "one", "budget": budget}, {"name": "two", "budget": budget}]
    recipe = document({"phases": phases, "budget": {"steps": 0}})
    whole = train(recipe, Memory())
    assert whole.steps == 6 and whole.metrics["count/samples"] == 36
    again, _ = cut_and_resumed(recipe, 2, tmp_path)
    assert (again.steps, again.weights) == (6, whole.weights)


def test_counts_are_series_that_lie_on_the_steps() -> None:
    sink = Memory()
    train(document({"budget": {"steps": 25}}), sink)
    steps, values = sink.points["count/samples"]
    assert values == [6.0 * step for step in steps] and steps[-1] == 25 and steps == sorted(set(steps)) and 10 in steps


def test_what_a_machine_lacks_is_greyed_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    @procedure(id="elsewhere", packages=("no_such_package",))
    class Elsewhere(Heron):
        """Needs what nobody has."""

    known = {**registry.classes(), "elsewhere": Elsewhere}
    monkeypatch.setattr(registry, "classes", lambda: known)
    reasons = fits(Recipe.of({"task": {"use": "square-root"}}).text(), "procedure")
    assert "pip install no_such_package" in reasons["elsewhere"] and "heron" not in reasons
    with pytest.raises(RecipeError, match="pip install no_such_package"):
        document({"procedure": {"use": "elsewhere"}}, base=SOLVER)
