"""What carries batches: samplers in a run, features, terms that couple samples, models that tell nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine import registry
from engine.errors import AthanorError, RecipeError
from engine.parts import Batch, Finding, Loss, Model, Offer, Probe, Sampler, Technique, Terms
from engine.parts import loss as loss_part
from engine.parts import model as model_part
from engine.parts import probe as probe_part
from engine.parts import sampler as sampler_part
from engine.parts import technique as technique_part
from engine.recipe import Recipe, merge
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer
from engine.training.preview import preview
from engine.training.recorder import Memory, Recorder
from engine.training.run import Run

BASE: dict[str, Any] = {
    "task": {"use": "two-moons", "samples": 100},
    "model": {"use": "mlp", "hidden": [8]},
    "optimizer": {"use": "sgd", "lr": 0.1},
    "training": {"batch_size": 16},
    "budget": {"steps": 6},
}


@sampler_part()
class Uneven(Sampler):
    """Gives batches of 5, 0 and 3 samples, and remembers what came of them."""

    def start(self, meta: Mapping[str, Tensor], size: int, batch_size: int, rng: torch.Generator) -> None:
        self.batches, self.at, self.seen = 3, 0, {name: tuple(t.shape) for name, t in meta.items()}
        self.losses: list[Tensor] = []
        self._rng, self._size = rng, size

    def next(self) -> Tensor:
        self.at += 1
        self.experience, self.experience_ended = (self.at - 1) // 2, self.at % 2 == 0
        return torch.randint(self._size, ((5, 0, 3)[(self.at - 1) % 3],), generator=self._rng)

    def observe(self, run: Run, batch: Batch, losses: Tensor | None) -> None:
        assert losses is not None and losses.shape == batch.index.shape and not losses.requires_grad
        self.losses.append(losses)


@technique_part()
class Diary(Technique):
    """Writes down what the loop calls, and where."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_batch(self, run: Run, batch: Batch) -> Batch:
        self.calls.append(f"batch {len(batch)}")
        return batch

    def observe(self, run: Run, batch: Batch, losses: Tensor | None) -> None:
        assert losses is not None and losses.shape == batch.index.shape and not losses.requires_grad
        self.calls.append(f"observe {len(batch)}")

    def on_experience_end(self, run: Run) -> None:
        self.calls.append(f"experience {run.stream.experience} ends at {run.step}")  # type: ignore[union-attr]

    def on_epoch_end(self, run: Run) -> None:
        self.calls.append(f"epoch ends at {run.step}")

    def after_evaluation(self, run: Run, metrics: Mapping[str, float]) -> None:
        self.calls.append("evaluation")


@technique_part()
class Spread(Technique):
    """Adds a term of the features that couples the samples of a batch."""

    reads = ("features",)
    additive = False

    def on_terms(self, run: Run, terms: Terms, output: Any, batch: Batch) -> Terms:
        features = run.features
        assert torch.equal(run.model.head(features), output)  # type: ignore[operator]
        return {**terms, "penalty:spread": features.var(0).mean()}


@loss_part()
class FeatureNorm(Loss):
    """The squared length of the features."""

    reads = ("features",)

    def __call__(self, output: Any, batch: Batch, features: Tensor) -> Terms:  # type: ignore[override]
        return {"task": features.square().sum(1) + 0 * output.sum()}


@loss_part()
class Coupled(Loss):
    """A loss that is no mean over samples."""

    additive = False

    def __call__(self, output: Any, batch: Batch) -> Terms:
        return {"task": output.var()}


@probe_part()
class FeatureWidth(Probe):
    """Looks at the features under evaluation."""

    reads = ("features",)

    def look(self, run: Run) -> Finding:
        output = run.predict(next(run.batches("val")))
        head: nn.Module = run.anatomy.head
        assert torch.equal(head(run.features), output)
        return Finding({"width": float(run.features.shape[1])})


@probe_part()
class Tally(Probe):
    """Counts the steps that it watched, and the looks."""

    when = "evaluation"

    def __init__(self) -> None:
        self.steps, self.looks, self.total = 0, 0, torch.zeros(())

    def setup(self, run: Run) -> None:
        self._samples = run.samples

    def watch(self, run: Run, terms: Terms, output: Any, batch: Batch) -> None:
        assert output.shape[0] == len(batch) <= self._samples
        self.steps += 1
        self.total = self.total + sum(term.detach().mean() for term in terms.values())

    def look(self, run: Run) -> Finding:
        self.looks += 1
        return Finding({"steps": self.steps, "looks": self.looks, "total": float(self.total)})


@model_part()
class Headless(Model):
    """A matrix, and nothing that could be called a head."""

    def __init__(self, offer: Offer):
        super().__init__()
        self.w = nn.Parameter(torch.randn(offer.features, offer.size))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w


OWN = (Uneven, Diary, Spread, FeatureNorm, Coupled, FeatureWidth, Tally, Headless)


@pytest.fixture(autouse=True)
def own_parts() -> Iterator[None]:
    known = registry.classes()
    known |= {cls.__part__.id: cls for cls in OWN}  # type: ignore[attr-defined]
    yield
    for cls in OWN:
        del known[cls.__part__.id]  # type: ignore[attr-defined]


def ready(**patch: Any) -> tuple[Run, Memory]:
    sink = Memory()
    return assemble(filled(Recipe.of(merge(BASE, patch))), Recorder(sink)), sink


def trained(**patch: Any) -> tuple[Run, Memory]:
    run, sink = ready(**patch)
    assert Trainer(run).train().state == "done"
    return run, sink


def problems(**patch: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        ready(**patch)
    found = [str(problem) for problem in caught.value.problems]
    assert all(text.endswith(".") for text in found)
    return found


def test_a_step_without_samples_counts_and_updates_nothing() -> None:
    run, _ = ready(sampler={"use": "uneven"})
    trainer = Trainer(run)
    weights = []
    for _ in range(3):
        trainer._step()
        weights.append(run.model.head.weight.detach().clone())  # type: ignore[union-attr, operator]
    assert run.step == 3
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    _, sink = trained(sampler={"use": "uneven"})
    assert sink.points["train/loss"][0] == [0, 2, 3, 5]
    assert sink.points["lr"][0] == list(range(6))


def test_the_loop_tells_epochs_and_experiences_apart() -> None:
    run, _ = trained(sampler={"use": "uneven"}, techniques=[{"use": "diary"}])
    assert run.techniques[0].calls == [  # type: ignore[attr-defined]
        "batch 5", "observe 5", "experience 0 ends at 2", "evaluation",
        "batch 3", "observe 3", "epoch ends at 3", "evaluation",
        "batch 5", "observe 5", "experience 1 ends at 4", "evaluation",
        "batch 3", "observe 3", "experience 2 ends at 6", "epoch ends at 6",
    ]  # fmt: skip
    assert run.steps_per_epoch == 3


def test_a_sampler_sees_the_columns_and_what_came_of_its_batches() -> None:
    run, _ = trained(sampler={"use": "uneven"})
    sampler: Any = run.stream.sampler  # type: ignore[union-attr]
    assert sampler.seen == {"target": (run.samples,)}
    assert [len(losses) for losses in sampler.losses] == [5, 3, 5, 3]
    assert all((losses > 0).all() for losses in sampler.losses)
    split, _ = trained(sampler={"use": "uneven"}, training={"accumulate": 2})
    assert [len(x) for x in split.stream.sampler.losses] == [3, 2, 2, 1, 3, 2, 2, 1]  # type: ignore[union-attr]


def test_evaluation_keeps_the_stored_order() -> None:
    plain, _ = ready()
    balanced, _ = ready(sampler={"use": "balanced"})
    for run in (plain, balanced):
        assert torch.equal(torch.cat([b.index for b in run.batches("train")]), torch.arange(run.samples))
    assert plain.evaluate("train") == balanced.evaluate("train")


def test_a_column_that_the_task_lacks_is_refused() -> None:
    text = problems(sampler={"use": "balanced", "column": "group"})
    assert text == ["sampler: it needs the column group, which two-moons does not have; there is target."]
    trained(sampler={"use": "balanced"})


def test_what_a_sampler_refuses_is_a_problem_of_the_recipe_and_of_its_preview() -> None:
    patch = {"sampler": {"use": "p-by-k", "each": 4}}
    assert any("holds 4 classes, but target has 2" in text for text in problems(**patch))
    shown = preview(Recipe.of(merge(BASE, patch)).text())
    assert [p["path"] for p in shown["problems"]] == ["sampler"] and shown["steps"] == 6
    good = merge(BASE, {"sampler": {"use": "experiences", "column": "target"}, "budget": {"epochs": 2, "steps": 0}})
    shown = preview(Recipe.of(good).text())
    assert shown["problems"] == [] and shown["steps"] == 2 * (3 + 3) and shown["steps_per_epoch"] == 6


def test_features_are_what_the_head_takes() -> None:
    trained(techniques=[{"use": "spread"}])
    run, sink = trained(loss={"use": "feature-norm"}, probes=[{"use": "feature-width"}], optimizer={"lr": 0.01})
    losses = sink.points["train/loss"][1]
    assert losses[-1] < losses[0]
    assert sink.points["probe/feature-width/width"][1] == [8.0]
    batch = next(run.batches("train"))
    value = run.oracle(batch).value()
    assert float(value) == pytest.approx(
        float(run.model.blocks(run.model.stem(batch.x)).square().sum(1).mean().detach())
    )  # type: ignore[operator, union-attr]
    plain, _ = ready()
    with pytest.raises(AthanorError, match="no part that reads"):
        _ = plain.features


def test_a_copy_of_the_model_does_not_answer_for_its_features() -> None:
    import copy

    run, _ = ready(techniques=[{"use": "spread"}])
    batch = next(run.batches("train"))
    run.forward(batch)
    before = run.features
    other = copy.deepcopy(run.model)
    other(batch.x + 1)
    assert run.features is before


def test_features_in_half_precision_come_as_fp32() -> None:
    run, _ = ready(loss={"use": "feature-norm"}, training={"precision": "bf16"}, model={"hidden": [8, 8]})
    run.terms(run.forward(next(run.batches("train"))), next(run.batches("train")))
    assert run.features.dtype == torch.float32 and run._entered["features"].dtype == torch.bfloat16


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_features_are_there_when_the_model_is_compiled(backend: str) -> None:
    run, _ = ready(techniques=[{"use": "spread"}])
    batch = next(run.batches("train"))
    plain = run.forward(batch)
    features = run.features
    grad = torch.autograd.grad(features.sum(), run.model.blocks[0].linear.weight)[0]  # type: ignore[index, union-attr]
    run.before_step()
    compiled = torch.compile(run.model, backend=backend)(batch.x)
    torch.testing.assert_close(compiled, plain)
    torch.testing.assert_close(run.features, features)
    again = torch.autograd.grad(run.features.sum(), run.model.blocks[0].linear.weight)[0]  # type: ignore[index, union-attr]
    torch.testing.assert_close(again, grad)


def test_a_model_without_a_head_trains_and_has_no_features() -> None:
    _, sink = trained(model={"use": "headless"})
    assert sink.points["train/loss"][1][-1] < sink.points["train/loss"][1][0]
    (text,) = problems(model={"use": "headless"}, techniques=[{"use": "spread"}])
    assert "which headless does not tell: Headless has no linear or convolution module" in text
    assert preview(Recipe.of(merge(BASE, {"model": {"use": "headless"}})).text())["sites"] == {}


def test_a_procedure_without_features_is_refused_to_those_who_read_them() -> None:
    silent = {"task": {"use": "digits"}, "procedure": {"use": "collaborative-forward-forward"}}
    (text,) = problems(**silent, techniques=[{"use": "spread"}])
    assert "reads the features and output of the step" in text
    (text,) = problems(**silent, loss={"use": "feature-norm"})
    assert text.startswith("loss: it reads the features of the step")


@pytest.mark.parametrize("part", [{"loss": {"use": "coupled"}}, {"techniques": [{"use": "spread"}]}])
def test_what_couples_samples_is_not_split(part: dict[str, Any]) -> None:
    (text,) = problems(**part, training={"accumulate": 2})
    assert text.startswith("training.accumulate: ") and "couples the samples of a batch" in text
    trained(**part)
    trained(training={"accumulate": 2}, techniques=[{"use": "label-smoothing"}])


def test_metrics_of_a_whole_split_do_not_depend_on_its_batches() -> None:
    patch = {"task": {"use": "digit-retrieval", "train_limit": 64}, "loss": {"use": "hard-negative-isometric"}}
    run, _ = ready(**patch)
    whole = run.evaluate("test")
    run.evaluation_batch = 100
    assert run.evaluate("test") == whole and set(whole) == {"recall@1"}
    some = run.evaluate("test", limit=150)
    assert some["recall@1"] * 150 == pytest.approx(round(some["recall@1"] * 150)) and some != whole


def test_a_probe_watches_each_step_and_keeps_what_it_saw() -> None:
    use = {"probes": [{"use": "tally"}], "training": {"evaluate_every": 0.5}, "budget": {"steps": 10}}
    run, sink = trained(**use)
    assert sink.points["probe/tally/looks"][1][-1] == len(sink.points["probe/tally/looks"][1]) > 2
    assert sink.points["probe/tally/steps"][1][-1] == 10
    assert sink.points["probe/tally/total"][1][-1] == pytest.approx(sum(sink.points["train/loss"][1]), rel=1e-5)
    again, _ = ready(**use)
    Trainer(again).load(Trainer(run).state())
    assert (again.probes[0].steps, again.probes[0].looks) == (10, run.probes[0].looks)  # type: ignore[attr-defined]
    other, _ = ready(**{**use, "probes": [{"use": "feature-width"}]})
    Trainer(other).load(Trainer(run).state())


def test_features_follow_a_head_that_is_replaced() -> None:
    run, _ = ready(techniques=[{"use": "spread"}])
    batch = next(run.batches("train"))
    run.forward(batch)
    before = run.features
    run.model.head = nn.Linear(8, 2)
    run.make_ready()
    output = run.forward(batch)
    assert run.features is not before
    torch.testing.assert_close(run.model.head(run.features), output)
