"""Several roles in one run: each with its own parameters, optimizer and schedule, none leaving gradients behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from engine import registry
from engine.fields import OptimizerPart
from engine.parts import Batch, Procedure, procedure
from engine.recipe import Recipe
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer, train
from engine.training.recorder import Memory, Recorder
from engine.training.run import Run


@procedure(id="duet", name="Duet")
class Duet(Procedure):
    """Body and head move in turn, each by an optimizer of its own, on a loss that both take part in."""

    makes = ("main", "second")

    def __init__(self, second_optimizer: OptimizerPart | None = None) -> None:
        self._second_optimizer = second_optimizer

    def setup(self, run: Run) -> None:
        head: Any = run.model.head
        run.add_role("main", run.model, but=list(head.parameters()))
        optimizer = self._second_optimizer or (lambda groups: torch.optim.SGD(groups, lr=0.5))
        run.add_role("second", head, optimizer=optimizer, schedule=False)

    def step(self, run: Run, batch: Batch) -> None:
        run.update("main", run.terms(run.forward(batch), batch), alone=True)
        run.update("second", run.terms(run.forward(batch), batch), alone=True)

    def found(self, run: Run) -> dict[str, Any]:
        return {"optimizer.lr": 0.25, "model.hidden": [4, 4]}


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {**registry.classes(), "duet": Duet}
    monkeypatch.setattr(registry, "classes", lambda: found)


def document(**settings: Any) -> dict[str, Any]:
    recipe = {
        "task": {"use": "two-moons"},
        "model": {"use": "mlp", "hidden": [4]},
        "optimizer": {"use": "sgd", "lr": 0.1, "momentum": 0.0},
        "schedule": {"use": "cosine"},
        "procedure": {"use": "duet", **settings},
        "budget": {"steps": 6},
    }
    return filled(Recipe.of(recipe))


def test_a_step_of_one_leaves_no_gradient_with_the_other() -> None:
    """Body by the schedule's rate, then head at its own, on the new body: by hand."""
    run = assemble(document(), Recorder(Memory()))
    by_hand = assemble(document(), Recorder(Memory())).model
    body = [p for n, p in by_hand.named_parameters() if not n.startswith("head")]
    head: list[nn.Parameter] = [p for n, p in by_hand.named_parameters() if n.startswith("head")]
    trainer, schedule = Trainer(run), registry.build({"use": "cosine"})
    order = assemble(document(), Recorder(Memory())).stream
    for _ in range(6):
        batch, rate = order.next(), 0.1 * schedule.factor(run.progress)  # type: ignore[union-attr]
        trainer._step()
        for some, lr in ((body, rate), (head, 0.5)):
            loss = nn.functional.cross_entropy(by_hand(batch.x), batch.target)
            with torch.no_grad():
                for parameter, grad in zip(some, torch.autograd.grad(loss, some), strict=True):
                    parameter -= lr * grad
    for mine, theirs in zip(run.model.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6) and mine.grad is None


def test_each_has_its_own_parameters_optimizer_and_rate() -> None:
    run = assemble(document(second_optimizer={"use": "lion", "lr": 0.01}), Recorder(Memory()))
    main, second = run.roles["main"], run.roles["second"]
    assert not {id(p) for p in main.parameters} & {id(p) for p in second.parameters}
    assert [type(role.optimizer).__name__ for role in (main, second)] == ["SGD", "Lion"]
    assert main.schedule is not None and second.schedule is None
    sink = Memory()
    train(document(), sink)
    assert sink.points["second/lr"][1] == [0.5] * 6 and sink.points["lr"][1][-1] < 0.1


def test_what_is_found_reaches_the_log_as_changes_to_a_recipe() -> None:
    sink = Memory()
    outcome = train(document(), sink)
    assert outcome.found == {"optimizer.lr": 0.25, "model.hidden": [4, 4]}
    (event,) = [event for event in sink.events if event["kind"] == "found"]
    assert event["text"] == "Found, to be written into a recipe: optimizer.lr = 0.25, model.hidden = [4, 4]."
    recipe = Recipe.of({"model": {"use": "mlp"}})
    for path, value in outcome.found.items():
        recipe.set(path, value)
    assert recipe.get("model.hidden") == [4, 4]
