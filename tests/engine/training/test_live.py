"""Settings of a recipe that a part learns while it trains: found by path, shared, logged, saved, owned by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import registry
from engine.errors import RecipeError
from engine.fields import Live, NonNegative, NonNegativeOverTime
from engine.parts import Batch, Layer, Procedure, Progress, Technique, Terms, Value, layer, procedure, technique
from engine.recipe import Recipe, merge
from engine.training import checkpoint
from engine.training.assemble import assemble, filled, problems
from engine.training.loop import train
from engine.training.recorder import Memory, Recorder
from engine.training.run import Run


@technique(id="priced", name="Priced")
class Priced(Technique):
    """A term whose weight can be learned."""

    live = ("price",)

    def __init__(self, price: NonNegativeOverTime = 0.5, other: NonNegative = 1.0) -> None:
        self.price, self.other = Value.of(price), other

    def on_terms(self, run: Run, terms: Terms, output: Tensor, batch: Batch) -> Terms:
        return {**terms, "penalty:priced": self.price.now(run.progress) * run.model.head.weight.square().sum()}  # type: ignore[union-attr]


@layer(id="scale", name="Scale")
class Scale(Layer):
    """Multiplies by a value that can be learned."""

    role = "activation"
    live = ("by",)

    def __init__(self, site: Any, by: NonNegativeOverTime = 1.0) -> None:
        super().__init__()
        self.by = Value.of(by)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * self.by.now(Progress(0))


@procedure(id="pusher", name="Pusher")
class Pusher(Procedure):
    """Trains the model, and lets each learned value grow by its own gradient."""

    def __init__(self, tune: Live = {}) -> None:  # noqa: B006 - the default is shown in the form; it is never changed
        self.tune = dict(tune)
        self.seen: list[float] = []

    def step(self, run: Run, batch: Batch) -> Any:
        for value in run.live.values():
            assert value.tensor is not None
            value.tensor.requires_grad_(True)
        output = run.forward(batch)
        run.update("main", run.terms(output, batch))
        for path, value in run.live.items():
            assert value.tensor is not None and value.tensor.grad is not None, f"{path} has no part in the loss"
            value.tensor = value.tensor.detach() + 0.1 * value.tensor.grad.abs()
            self.seen.append(float(value.tensor))
        return output


@technique(id="greedy", name="Greedy")
class Greedy(Technique):
    """Wants to learn a value as well."""

    def __init__(self, mine: Live = {}) -> None:  # noqa: B006
        self.mine = dict(mine)


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"priced": Priced, "scale": Scale, "pusher": Pusher, "greedy": Greedy}
    found = {**registry.classes(), **extra}
    monkeypatch.setattr(registry, "classes", lambda: found)


PRICE, BY = "techniques.1.price", "techniques.2.layer.by"
RANGE = {"low": 0.0, "high": 5.0}
BASE: dict[str, Any] = {
    "task": {"use": "two-moons"},
    "model": {"use": "mlp", "hidden": [8, 8]},
    "training": {"batch_size": 50},
    "techniques": [
        {"use": "priced", "enabled": False},
        {"use": "priced", "price": 0.25},
        {"use": "replace", "layer": {"use": "scale", "by": 2.0}},
    ],
    "procedure": {"use": "pusher", "tune": {PRICE: RANGE, BY: RANGE}},
    "budget": {"steps": 8},
}


def document(**patch: Any) -> dict[str, Any]:
    return filled(Recipe.of(merge(BASE, patch)))


def test_a_part_of_a_part_and_all_its_modules_share_the_value() -> None:
    run = assemble(document(), Recorder(Memory()))
    assert set(run.live) == {PRICE, BY} and run.live[PRICE] is run.techniques[0].price  # type: ignore[attr-defined]
    assert [float(v.tensor) for v in run.live.values()] == [0.25, 2.0]  # type: ignore[arg-type]
    scales = [m for m in run.model.modules() if isinstance(m, Scale)]
    assert len(scales) == 2 and all(scale.by is run.live[BY] for scale in scales)
    assert run.recipe["techniques"][1]["price"] == 0.25, "the recipe stays what a person wrote"


def test_they_are_logged_and_a_resumed_run_goes_on_with_them(tmp_path: Path) -> None:
    whole = Memory()
    outcome = train(document(budget={"steps": 13}), whole)
    assert whole.points[f"value/{PRICE}"][0] == [0, 10] and whole.points[f"value/{PRICE}"][1][0] == 0.25
    assert whole.points[f"value/{BY}"][1][1] > 2.0
    train(document(), None, tmp_path)
    state = checkpoint.newest(tmp_path)
    assert state is not None and state["step"] == 8 and float(state["live"][BY]) > 2.0
    again = train(document(budget={"steps": 13}), None, None, lambda trainer: trainer.load(state))
    assert again.weights == outcome.weights


def test_only_what_is_learned_is_a_tensor() -> None:
    run = assemble(document(procedure={"tune": {PRICE: RANGE}}), Recorder(Memory()))
    scale = next(m for m in run.model.modules() if isinstance(m, Scale))
    assert scale.by.now(Progress(0)) == 2.0 and isinstance(run.live[PRICE].now(Progress(0)), Tensor)
    with pytest.raises(RuntimeError, match=r"read with now\(\)"):
        run.live[PRICE].at(Progress(0))


@pytest.mark.parametrize(
    ("tune", "words"),
    [
        (
            {"techniques.1.prise": RANGE},
            "no value that can be learned while it trains. Did you mean 'techniques.1.price'",
        ),
        ({"techniques.1.other": RANGE}, "no value that can be learned while it trains"),
        ({"techniques.0.price": RANGE}, "Did you mean 'techniques.1.price'"),  # it is switched off
        ({"seed": RANGE}, "There are techniques.1.price, techniques.2.layer.by"),
        ({PRICE: {"low": 1.0, "high": 2.0}}, "starts at 0.25, which is not in its range from 1 to 2"),
        ({PRICE: [0.1, 0.2]}, "give its range"),
    ],
)
def test_what_cannot_be_learned_is_refused(tune: dict[str, Any], words: str) -> None:
    (found,) = problems(learning(tune))
    assert words in str(found) and str(found).endswith((".", "?")) and found.path == "procedure.tune"


def learning(tune: dict[str, Any], techniques: list[dict[str, Any]] = BASE["techniques"]) -> dict[str, Any]:
    """The recipe with another selection."""
    return filled(Recipe.of({**BASE, "techniques": techniques, "procedure": {"use": "pusher", "tune": tune}}))


def test_a_value_follows_a_schedule_or_is_learned() -> None:
    techniques = [*BASE["techniques"]]
    techniques[1] = {"use": "priced", "price": {"value": 0.25, "schedule": {"use": "cosine"}}}
    with pytest.raises(RecipeError, match="follows a schedule, so it cannot be learned too"):
        train(learning({PRICE: RANGE}, techniques))
    assert train(learning({BY: RANGE}, techniques)).state == "done"


def test_a_value_has_one_owner() -> None:
    greedy = [*BASE["techniques"], {"use": "greedy", "mine": {PRICE: RANGE}}]
    (found,) = problems(learning({PRICE: RANGE, BY: RANGE}, greedy))
    assert "already; a value has one owner" in str(found)
    assert {found.path, str(found).split(" is learned by ")[1].split(" already")[0]} == {
        "procedure.tune",
        "techniques.3.mine",
    }
    assert problems(learning({BY: RANGE}, greedy)) == []
