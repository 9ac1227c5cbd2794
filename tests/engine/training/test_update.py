"""The one place that updates a role: gradients without a backward pass, those of each term, bindings and counters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from engine import parts
from engine.errors import AthanorError, RecipeError
from engine.parts import Batch, Procedure, Technique
from engine.training import checkpoint
from engine.training.loop import Trainer
from engine.training.roles import order_of
from tests.engine.methods.short import ready, train
from tests.engine.training.own import offer


@parts.procedure(id="by-hand")
class ByHand(Procedure):
    """The gradient of backpropagation, computed here and handed over."""

    offers = ("gradients", "output")

    def step(self, run: Any, batch: Batch) -> Any:
        output = run.forward(batch)
        terms = run.terms(output, batch)
        grads = torch.autograd.grad(terms["task"].mean(), run.roles["main"].parameters)
        run.update("main", {"task": terms["task"].detach()}, grads)
        return output


@parts.technique(id="two-terms")
class TwoTerms(Technique):
    """Splits off a penalty as a term of its own."""

    def on_terms(self, run: Any, terms: Any, output: Any, batch: Batch) -> Any:
        return {**terms, "penalty": 0.01 * sum(p.square().sum() for p in run.model.parameters())}


@parts.technique(id="seen-terms")
class SeenTerms(Technique):
    """Adds the gradients of the terms, with a factor for each, and remembers them."""

    per_term: ClassVar[bool] = True

    def __init__(self, task: float = 1.0, penalty: float = 1.0) -> None:
        self.factors = {"task": task, "penalty": penalty}
        self._seen: list[dict[str, list[Tensor]]] = []

    def combine(self, run: Any, role: Any, terms: dict[str, list[Tensor]]) -> list[Tensor]:
        self._seen.append(terms)
        scaled = [torch._foreach_mul(grads, self.factors[name]) for name, grads in terms.items()]
        return [torch.stack(each).sum(0) for each in zip(*scaled, strict=True)]


@parts.technique(id="plain-combine")
class PlainCombine(Technique):
    """Doubles the gradient at the same position."""

    def combine(self, run: Any, role: Any) -> None:
        torch._foreach_mul_([p.grad for p in role.parameters], 2.0)


@parts.technique(id="private")
class Private(Technique):
    """Acts on the sum before it is combined."""

    def privatize(self, run: Any, role: Any) -> None:
        pass


PARTS = (ByHand, TwoTerms, SeenTerms, PlainCombine, Private)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, *PARTS)


def weights(run: Any) -> list[Tensor]:
    return [p.detach().clone() for p in run.model.parameters()]


def assert_close(a: Any, b: Any, tolerance: float = 1e-6) -> None:
    for one, two in zip(weights(a), weights(b), strict=True):
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


CLIP = [{"use": "gradient-clipping", "limit": 0.05}]


@pytest.mark.parametrize("training", [{}, {"accumulate": 4}, {"precision": "bf16"}, {"precision": "fp16"}])
def test_gradients_that_are_handed_over_are_updated_with_like_any(training: dict[str, Any]) -> None:
    training = {"batch_size": 16, **training}
    plain, _, _ = train(techniques=CLIP, training=training)
    handed, log, _ = train(techniques=CLIP, training=training, procedure={"use": "by-hand"})
    assert_close(plain, handed)
    assert "gradient-clipping/kept" in log.points
    assert plain.counts["gradient-passes"] == 12 * training.get("accumulate", 1)  # type: ignore[operator]
    assert handed.counts["gradient-passes"] == 0


@pytest.mark.parametrize("training", [{}, {"accumulate": 3}, {"precision": "bf16"}])
def test_the_gradients_of_the_terms_add_up_to_the_plain_one(training: dict[str, Any]) -> None:
    training = {"batch_size": 16, **training}
    plain, _, _ = train(techniques=[{"use": "two-terms"}], training=training)
    both, log, _ = train(techniques=[{"use": "two-terms"}, {"use": "seen-terms"}], training=training)
    assert_close(plain, both, 1e-6 if "precision" not in training else 2e-2)
    assert both.counts["gradient-passes"] == 2 * plain.counts["gradient-passes"]
    assert {"gradient-norm", "train/term/task", "train/term/penalty"} <= set(log.points)


def test_each_term_has_its_own_gradient() -> None:
    run, _ = ready(techniques=[{"use": "two-terms"}, {"use": "seen-terms", "penalty": 0.0}])
    before = weights(run)
    Trainer(run)._step()
    (seen,) = run.techniques[1]._seen  # type: ignore[attr-defined]
    for grad, weight in zip(seen["penalty"], before, strict=True):
        torch.testing.assert_close(grad, 0.02 * weight, rtol=1e-6, atol=0)
    for now, weight, grad in zip(weights(run), before, seen["task"], strict=True):
        torch.testing.assert_close(now, weight - 0.1 * grad, rtol=1e-6, atol=1e-7)


def test_what_combines_the_terms_comes_first_in_its_position() -> None:
    recipes = (["two-terms", "plain-combine", "seen-terms"], ["two-terms", "seen-terms", "plain-combine"])
    runs = [train(techniques=[{"use": use} for use in recipe])[0] for recipe in recipes]
    assert_close(*runs)
    assert_close(runs[0], train(techniques=[{"use": "two-terms"}], optimizer={"use": "sgd", "lr": 0.2})[0])
    for run in runs:
        rows = {row["position"]: row["parts"] for row in order_of(run.techniques)}
        assert rows["combine"] == ["seen-terms", "plain-combine"]


def test_an_optimizer_that_looks_again_gets_the_terms_again() -> None:
    lbfgs = {"use": "lbfgs", "max_iter": 3}
    plain, _, _ = train(techniques=[{"use": "two-terms"}], optimizer=lbfgs, budget={"steps": 1})
    run, _, _ = train(techniques=[{"use": "two-terms"}, {"use": "seen-terms"}], optimizer=lbfgs, budget={"steps": 1})
    seen = run.techniques[1]._seen  # type: ignore[attr-defined]
    assert len(seen) > 1 and set(seen[0]) == {"task", "penalty"}
    assert run.counts["oracle-calls"] == plain.counts["oracle-calls"] == len(seen) - 1


def refused(match: str, **changes: Any) -> str:
    with pytest.raises(RecipeError, match=match) as caught:
        ready(**changes)
    (problem,) = caught.value.problems
    assert problem.message.endswith(".")
    return problem.path


def test_terms_are_refused_where_they_cannot_be_had() -> None:
    seen = [{"use": "seen-terms"}]
    assert refused("terms.*by-hand does not offer", techniques=seen, procedure={"use": "by-hand"}) == "techniques.0"
    assert refused('write precision = "bf16"', techniques=seen, training={"precision": "fp16"}) == "training.precision"
    assert refused("write workers = 1", techniques=seen, training={"workers": 2}) == "training.workers"
    path = refused("would be lost", techniques=[{"use": "private"}, *seen])
    assert path == "techniques.0"
    assert refused("which seen-terms does already", techniques=seen * 2) == "techniques.1"


def test_a_procedure_that_hands_gradients_over_after_all_is_told() -> None:
    run, _ = ready(techniques=[{"use": "seen-terms"}])
    terms = {"task": torch.zeros(3)}
    with pytest.raises(AthanorError, match="without a backward pass"):
        run.update("main", terms, [torch.zeros_like(p) for p in run.model.parameters()])


# -- bindings ----------------------------------------------------------------------------------------------------------


@parts.procedure(id="two-players")
class TwoPlayers(Procedure):
    """The model and a critic of it, each with a step."""

    makes = ("main", "critic")

    def setup(self, run: Any) -> None:
        self._critic = torch.nn.Linear(2, 1)
        run.add_role("main", run.model)
        run.add_role("critic", self._critic)

    def step(self, run: Any, batch: Batch) -> Any:
        output = run.forward(batch)
        run.update("main", run.terms(output, batch))
        run.update("critic", {"gap": (self._critic(output.detach()) - 100.0).square().mean()})
        return output


def players(monkeypatch: pytest.MonkeyPatch, **clip: Any) -> Any:
    offer(monkeypatch, *PARTS, TwoPlayers)
    techniques = [{"use": "gradient-clipping", "limit": 1e-3, **clip}]
    _, log, _ = train(procedure={"use": "two-players"}, techniques=techniques, budget={"steps": 1})
    return {name: len(log.points.get(f"{name}gradient-clipping/kept", [[]])[0]) for name in ("", "critic/")}


def test_a_technique_acts_on_the_roles_that_it_is_bound_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert players(monkeypatch) == {"": 1, "critic/": 0}, "main, where the recipe says nothing"
    assert players(monkeypatch, on=["critic"]) == {"": 0, "critic/": 1}
    assert players(monkeypatch, on=["critic", "main"]) == {"": 1, "critic/": 1}
    assert players(monkeypatch, on=["*"]) == {"": 1, "critic/": 1}


def test_group_options_follow_the_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, *PARTS, TwoPlayers)
    spare = {"use": "weight-decay-exclusions", "on": ["critic"]}
    run, _ = ready(
        procedure={"use": "two-players"}, techniques=[spare], optimizer={"use": "sgd", "lr": 0.1, "weight_decay": 0.5}
    )
    groups = {n: len(role.optimizer.param_groups) for n, role in run.roles.items() if role.optimizer is not None}
    assert groups == {"main": 1, "critic": 2}


def test_roles_whose_number_depends_on_the_model_are_bound_by_pattern() -> None:
    forward = {"procedure": {"use": "collaborative-forward-forward"}, "model": {"use": "mlp", "hidden": [8, 8]}}
    clip = {"use": "gradient-clipping", "limit": 1e-3}
    _, log, _ = train(**forward, techniques=[{**clip, "on": ["layer*"]}], budget={"steps": 1})
    assert {"layer0/gradient-clipping/kept", "layer1/gradient-clipping/kept"} <= set(log.points)
    _, log, _ = train(**forward, techniques=[{**clip, "on": ["layer1"]}], budget={"steps": 1})
    assert "layer0/gradient-clipping/kept" not in log.points and "layer1/gradient-clipping/kept" in log.points
    assert refused("updates of main, which", **forward, techniques=[clip]) == "techniques.0"


def test_bindings_that_cannot_be_are_refused() -> None:
    clip = {"use": "gradient-clipping"}
    assert refused("updates of critic, which backprop does not", techniques=[{**clip, "on": ["critic"]}])
    average = {"use": "switch-ema", "on": ["critic"]}
    with pytest.raises(RecipeError, match="acts on main alone"):
        ready(techniques=[average])
    path = refused("does not act on the updates", techniques=[{"use": "label-smoothing", "on": ["main"]}])
    assert path == "techniques.0.on"
    for wrong in ("main", [], [1], {"role": "main"}):
        assert refused(r'a list of roles, such as \["main"\]', techniques=[{**clip, "on": wrong}]) == "techniques.0.on"
    assert refused("has no field 'on'", optimizer={"use": "sgd", "on": ["main"]}) == "optimizer.on"


# -- counters ----------------------------------------------------------------------------------------------------------


def test_what_a_run_costs_is_counted_logged_and_kept(tmp_path: Path) -> None:
    attack = {"use": "pgd-adversarial-training", "steps": 3}
    run, log = ready(techniques=[attack], training={"batch_size": 16, "accumulate": 2})
    trainer = Trainer(run, tmp_path)
    outcome = trainer.train()
    assert run.counts["gradient-passes"] == 24 and run.counts["oracle-calls"] == 3 * 24
    assert outcome.metrics["count/samples"] == run.counts["samples"] == 2 * 84, "two epochs"
    steps, values = log.points["count/oracle-calls"]
    assert steps == [6, 10, 12] and values == [36, 60, 72]
    assert "count/bytes-sent" not in log.points, "what is never used makes no series"
    again, _ = ready(techniques=[attack], training={"batch_size": 16, "accumulate": 2})
    state = checkpoint.newest(tmp_path)
    assert state is not None
    Trainer(again).load(state)
    assert again.counts == run.counts
