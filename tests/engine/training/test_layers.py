"""What the engine does for layers: each member of their protocol, replaced or part of a model, at the right moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine import registry
from engine.errors import RecipeError
from engine.figures import text
from engine.kit.anatomy import Site
from engine.kit.supervised import Supervised
from engine.parts import Batch, Layer, Model, Offer, Progress, info, layer, model, task
from engine.recipe import Recipe, merge
from engine.training import checkpoint
from engine.training.assemble import assemble, filled, problems
from engine.training.loop import Trainer, train
from engine.training.oracle import Oracle
from engine.training.recorder import Memory, Recorder


@task()
class Grouped(Supervised):
    """Points whose group is told beside them, in every split or in the training split alone."""

    def __init__(self, everywhere: bool = True):
        self.everywhere = everywhere
        self.offer = Offer("vector", (2,), "classes", 2)

    def load(self) -> None:
        x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        target, group = (x[:, 0] > 0).long(), torch.arange(60) % 3
        cuts = {"train": slice(0, 40), "val": slice(40, 50), "test": slice(50, 60)}
        self.splits = {name: {"x": x[cut], "target": target[cut]} for name, cut in cuts.items()}
        for name, cut in cuts.items():
            if self.everywhere or name == "train":
                self.splits[name]["meta.group"] = group[cut]


@layer()
class Spy(Layer):
    """An activation that writes down what the engine does to it."""

    role = "activation"

    def __init__(self, site: Site | None = None, weight: float = 1.0):
        super().__init__()
        self.weight = weight
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[Any] = []
        self._loss: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self._loss = self.weight * self.scale.square() * x.square().mean() if self.training else None
        self.seen.append(("forward", self.training, x.detach().clone()))
        return torch.relu(self.scale * x)

    def tick(self, at: Progress) -> None:
        self.seen.append(("tick", at.step, at.steps))

    def aux_loss(self) -> Tensor | None:
        return self._loss

    def observe(self, batch: Batch, losses: Tensor | None) -> None:
        self.seen.append(("observe", batch, losses))

    def init_from(self, x: Tensor) -> None:
        self.seen.append(("init", self.training, x.detach().clone()))

    def measures(self) -> dict[str, Tensor]:
        return {"scale": self.scale.detach()}

    def spends(self) -> dict[str, Tensor]:
        return {"passes": torch.tensor(float(self.training or 2))}

    def figures(self) -> dict[str, Any]:
        return {"scale": text("Scale", f"{self.scale.item():g}")}

    def param_options(self) -> dict[str, dict[str, float]]:
        return {"scale": {"weight_decay": 0.25}}

    def told(self, what: str) -> list[Any]:
        return [rest for kind, *rest in self.seen if kind == what]


@layer()
class Shift(Layer):
    """An activation that moves each sample by its group."""

    role = "activation"
    needs_side = ("group",)

    def __init__(self, site: Site | None = None):
        super().__init__()
        self._group: Tensor | None = None
        self.pairs: list[Tensor] = []

    def side(self, *, group: Tensor) -> None:
        self._group = group

    def forward(self, x: Tensor) -> Tensor:
        assert self._group is not None and len(self._group) == len(x), "told of each batch before it comes"
        self.pairs.append(torch.stack([x[:, 0].detach(), self._group.to(x.dtype)], 1))
        return x + self._group.unsqueeze(1)


@layer()
class Horizon(Layer):
    """An activation that must know when the run ends."""

    role = "activation"
    needs_total = True
    precision = "fp32"

    def __init__(self, site: Site | None = None):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


@model()
class Inside(Model):
    """A model that was built with such layers, one of them used twice."""

    def __init__(self, offer: Offer):
        super().__init__()
        self.shift, self.first, self.spy, self.head = Shift(), nn.Linear(2, 2), Spy(), nn.Linear(2, offer.size)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.spy(self.first(self.spy(self.shift(x)))))


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    own = {info(cls).id: cls for cls in (Grouped, Spy, Shift, Horizon, Inside)}
    everything = {**registry.classes(), **own}
    monkeypatch.setattr(registry, "classes", lambda: everything)
    yield


BASE: dict[str, Any] = {
    "task": {"use": "grouped"},
    "model": {"use": "mlp", "hidden": [4]},
    "optimizer": {"use": "sgd", "lr": 0.1},
    "training": {"batch_size": 20, "evaluate_every": 0},
    "budget": {"steps": 4},
}
IN_MODEL = {"model": {"use": "inside"}}


def replaced(use: str, **settings: Any) -> dict[str, Any]:
    return {"techniques": [{"use": "replace", "layer": {"use": use, **settings}}]}


def document(**patch: Any) -> dict[str, Any]:
    return filled(Recipe.of(merge(BASE, patch)), registry.catalog())


def trainer(sink: Memory | None = None, **patch: Any) -> Trainer:
    return Trainer(assemble(document(**patch), Recorder(sink or Memory()), torch.device("cpu")))


def only(made: Trainer, kind: type) -> Any:
    (found,) = (module for module in made.run.model.modules() if isinstance(module, kind))
    return found


PLACES = pytest.mark.parametrize("patch", [replaced("spy"), IN_MODEL], ids=["replaced", "in the model"])


@PLACES
def test_it_starts_from_the_first_batch_once(patch: dict[str, Any]) -> None:
    spy = only(trainer(**patch), Spy)
    ((training, x),) = spy.told("init")
    assert training and torch.equal(x, spy.told("forward")[0][1]), "before it sees that batch"
    assert len(x) == 20


@PLACES
@pytest.mark.parametrize("accumulate", [1, 3])
def test_it_ticks_once_an_optimizer_step(patch: dict[str, Any], accumulate: int) -> None:
    made = trainer(**patch, training={"accumulate": accumulate})
    made.train()
    assert only(made, Spy).told("tick") == [[step, 4] for step in range(4)]


@PLACES
@pytest.mark.parametrize("accumulate", [1, 3])
def test_it_is_told_what_came_of_each_sample(patch: dict[str, Any], accumulate: int) -> None:
    made = trainer(**patch, training={"accumulate": accumulate}, optimizer={"lr": 1e-12})
    made.train()
    spy = only(made, Spy)
    told = spy.told("observe")
    assert len(told) == 4 * accumulate and sum(len(batch) for batch, _ in told) == 80
    for batch, losses in told:
        expected = made.run.task.objective(made.run.predict(batch), batch)["task"]
        assert not losses.requires_grad
        torch.testing.assert_close(losses, expected)


@PLACES
def test_after_a_load_it_is_where_the_run_was(patch: dict[str, Any]) -> None:
    made = trainer(**patch)
    for _ in range(3):
        made._step()
    again = trainer(**patch)
    again.load(made.state())
    assert only(again, Spy).told("tick") == [[2, 4]]


@PLACES
def test_its_loss_is_part_of_the_step_and_its_gradient_arrives(patch: dict[str, Any]) -> None:
    made = trainer(**patch)
    run, spy = made.run, only(made, Spy)
    assert run.stream is not None
    batch = run.stream.next()
    run.give_side(batch)
    spy.seen.clear()
    terms = run.terms(run.forward(batch), batch)
    last = spy.told("forward")[-1][1]
    (name,) = (name for name in terms if name.startswith("layer:"))
    assert terms[name].item() == pytest.approx(last.square().mean().item()), "of its last pass"
    run.batch = batch
    run.update("main", {name: terms[name]})
    with run.evaluating():
        assert list(run.terms(run.forward(batch), batch)) == ["task"], "it has none in evaluation"


@PLACES
def test_an_optimizer_that_looks_again_sees_the_same_loss(
    patch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Spy, "param_options")  # this optimizer takes no groups
    run = trainer(**patch, optimizer={"use": "lbfgs"}).run
    batch, oracle = run.stream.next(), run.roles["main"].oracle  # type: ignore[union-attr]
    assert oracle is not None
    oracle.bind(batch)
    run.give_side(batch)
    terms = run.terms(run.forward(batch), batch)
    assert any(name.startswith("layer:") for name in terms)
    assert oracle.value().item() == pytest.approx(sum(term.mean().item() for term in terms.values()), rel=1e-6)
    assert list(run.oracle(batch).terms()) == ["task"], "who asks about the task is told of the task alone"


def test_micro_batches_give_the_loss_of_the_whole_batch() -> None:
    whole, split = Memory(), Memory()
    for sink, accumulate in ((whole, 1), (split, 4)):
        train(document(**replaced("spy"), training={"accumulate": accumulate}), sink)
    assert split.points["train/loss"][1] == pytest.approx(whole.points["train/loss"][1], rel=1e-5)


@PLACES
def test_its_parameters_have_their_options(patch: dict[str, Any]) -> None:
    made = trainer(**patch)
    spy, optimizer = only(made, Spy), made.run.roles["main"].optimizer
    assert optimizer is not None
    (group,) = (g for g in optimizer.param_groups if any(p is spy.scale for p in g["params"]))
    assert group["weight_decay"] == 0.25 and len(group["params"]) == 1


@PLACES
def test_what_it_measures_is_logged_and_stands_among_the_metrics(patch: dict[str, Any]) -> None:
    sink = Memory()
    outcome = train(document(**patch, budget={"steps": 12}), sink)
    (name,) = (name for name in sink.points if name.startswith("layer/"))
    steps, values = sink.points[name]
    assert steps == [0, 10] and outcome.metrics[name] == values[-1] != values[0]


def test_what_its_passes_cost_is_a_metric_summed_over_the_modules() -> None:
    outcome = train(document(**replaced("spy"), budget={"steps": 2}))
    spies = len([m for m in trainer(**replaced("spy")).run.model.modules() if isinstance(m, Spy)])
    assert spies and outcome.metrics["test/passes"] == outcome.metrics["val/passes"] == 2.0 * spies


@PLACES
def test_what_it_draws_is_stored_at_evaluations_and_at_the_end(patch: dict[str, Any]) -> None:
    sink = Memory()
    made = trainer(sink, **patch, training={"evaluate_every": 1.0}, budget={"steps": 4})
    made.train()
    drawn = [figure for figure in sink.figures if figure["name"].endswith("/scale") or figure["name"] == "scale"]
    assert [figure["step"] for figure in drawn] == [2, 4]
    assert drawn[-1]["data"]["text"] == f"{only(made, Spy).scale.item():g}" != drawn[0]["data"]["text"]


def test_a_resumed_run_knows_what_its_layers_measured_last(tmp_path: Path) -> None:
    first = Trainer(assemble(document(**replaced("spy")), Recorder(Memory()), torch.device("cpu")), tmp_path)
    first._step()
    first.save()
    state = checkpoint.newest(tmp_path)
    assert state is not None
    again = trainer(**replaced("spy"))
    again.load(state)
    (name,) = (name for name in again.metrics if name.startswith("layer/"))
    assert again.metrics[name] == only(first, Spy).scale.item()  # after the only step that measured, the first


@pytest.mark.parametrize("patch", [replaced("shift"), IN_MODEL], ids=["replaced", "in the model"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_side_inputs_come_before_every_batch(patch: dict[str, Any], accumulate: int) -> None:
    sink = Memory()
    outcome = train(document(**patch, training={"accumulate": accumulate}, budget={"epochs": 2}), sink)
    assert outcome.state == "done" and "test/accuracy" in outcome.metrics


def test_the_side_inputs_are_those_of_the_samples() -> None:
    made = trainer(**IN_MODEL, training={"accumulate": 2})
    made.train()
    columns = {split: made.run.columns(split) for split in ("train", "val", "test")}
    known = {
        tuple(torch.stack([x[0], group.float()]).tolist())
        for split in columns.values()
        for x, group in zip(split["x"], split["meta.group"], strict=True)
    }
    seen = {tuple(row.tolist()) for pair in only(made, Shift).pairs for row in pair}
    assert seen == known


def test_an_oracle_hands_side_inputs_over_too() -> None:
    made = trainer(**IN_MODEL)
    run = made.run
    one, other = run.stream.next(), next(run.batches("val"))  # type: ignore[union-attr]
    shift = only(made, Shift)
    for batch in (one, other):
        oracle: Oracle = run.oracle(batch)
        oracle.value()
        assert torch.equal(shift.pairs[-1][:, 1], batch.meta["group"].float())
        oracle.jacobian()


def test_a_task_that_does_not_tell_is_refused_in_a_sentence() -> None:
    sentence = 'it needs "group" beside every sample, and the task\'s train split does not tell: it has none. Choose a'
    for patch in (replaced("shift"), IN_MODEL):
        with pytest.raises(RecipeError) as caught:
            trainer(**patch, task={"use": "two-moons"})
        assert sentence in str(caught.value)
    (problem,) = problems(document(**replaced("shift"), task={"use": "two-moons"}))
    assert problem.path == "techniques.0.layer" and problem.value == "shift"
    (problem,) = problems(document(**replaced("shift"), task={"use": "grouped", "everywhere": False}))
    assert "the task's val split does not tell" in problem.message


def test_what_a_nested_layer_declares_is_checked_too() -> None:
    found = problems(document(**replaced("horizon"), budget={"steps": 0, "seconds": 1.0}))
    assert [(p.path, p.value) for p in found] == [("techniques.0.layer", "horizon")]
    assert "needs to know the number of steps" in found[0].message
