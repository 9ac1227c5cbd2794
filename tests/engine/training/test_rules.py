"""The rules by which conflicts between parts are settled: for each, a recipe that is refused and one that works."""

from __future__ import annotations

from typing import Any

import pytest

from engine import parts
from engine.errors import RecipeError
from engine.parts import Progress, Schedule, Technique
from engine.training.roles import order_of
from tests.engine.methods.short import ready, train
from tests.engine.training.own import offer


def acting(position: str) -> Any:
    """A technique that notes when it acts."""

    def act(self: Any, run: Any, role: Any) -> None:
        run.acted.append(position)

    made = type(position.title(), (Technique,), {position: act, "__doc__": f"Acts at {position}."})
    return parts.technique(id=f"at-{position}")(made)


PLACES = ("average", "remask", "project", "noise", "clip", "shape", "mask", "privatize")


@parts.technique(id="full-precision", precision="fp32")
class FullPrecision(Technique):
    """Loses its meaning in 16 bits."""


@parts.technique(id="rewires", graph="never")
class Rewires(Technique):
    """Changes the model as it runs."""


@parts.schedule(id="halving")
class Halving(Schedule):
    """Needs the end."""

    needs_total = True

    def factor(self, at: Progress) -> float:
        return 1.0 - 0.5 * at.fraction


@parts.schedule(id="open-ended")
class OpenEnded(Schedule):
    """Needs no end."""

    needs_total = False

    def factor(self, at: Progress) -> float:
        return 0.5


@parts.technique(id="counts-down")
class CountsDown(Technique):
    """Needs the end too."""

    needs_total = True


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    own = (FullPrecision, Rewires, Halving, OpenEnded, CountsDown)
    offer(monkeypatch, *map(acting, PLACES), *own)


def problem(**changes: Any) -> Any:
    with pytest.raises(RecipeError) as caught:
        ready(**changes)
    (found,) = caught.value.problems
    assert found.message.endswith(".")
    return found


def test_the_order_shown_is_the_order_that_acts_whatever_the_recipes() -> None:
    run, _ = ready(techniques=[{"use": f"at-{place}"} for place in PLACES], budget={"steps": 1})
    run.acted = []  # type: ignore[attr-defined]
    from engine.training.loop import Trainer

    Trainer(run)._step()
    shown = [row["position"] for row in order_of(run.techniques)]
    own = ["backward", "unscale", "step"]
    assert shown == [*own[:2], "privatize", "mask", "shape", "clip", "noise", "step", "project", "remask", "average"]
    assert run.acted == [position for position in shown if position not in own]  # type: ignore[attr-defined]


def test_what_needs_full_precision_refuses_bf16() -> None:
    part = [{"use": "full-precision"}]
    for low in ("bf16", "fp16"):
        found = problem(techniques=part, training={"precision": low})
        assert found.path == "training.precision" and 'write precision = "fp32"' in found.message
    ready(techniques=part, training={"precision": "fp32"})
    ready(techniques=[{**part[0], "enabled": False}], training={"precision": "bf16"})


def test_compilation_falls_back_with_a_message_where_a_part_forbids_it() -> None:
    run, log = ready(techniques=[{"use": "rewires"}], training={"compile": True})
    (event,) = log.events
    assert event["text"] == "Not compiled: rewires changes the model as it runs." and event["level"] == "warning"
    assert run._call is run.model
    free, log = ready(techniques=[{"use": "full-precision"}], training={"compile": True})
    assert log.events == [] and free._call is not free.model


def test_a_schedule_beside_an_optimizer_that_owns_its_rate_is_ignored_with_a_message() -> None:
    own = {"optimizer": {"use": "sania"}, "budget": {"steps": 4}}
    _, log, outcome = train(**own, schedule={"use": "halving"})
    messages = [event["text"] for event in log.events]
    assert messages == ["The schedule halving is not used for main: sania sets its learning rate itself."]
    _, plain, same = train(**own)
    assert outcome.weights == same.weights and plain.events == []
    _, log, _ = train(schedule={"use": "halving"}, budget={"steps": 5})
    assert log.points["lr"][1] == pytest.approx([0.1, 0.0875, 0.075, 0.0625, 0.05]) and log.events == []


@pytest.mark.parametrize(
    "part", [{"schedule": {"use": "halving"}}, {"techniques": [{"use": "counts-down"}]}], ids=["schedule", "technique"]
)
def test_what_needs_the_end_refuses_an_open_budget(part: dict[str, Any]) -> None:
    found = problem(**part, budget={"seconds": 1.0})
    assert found.path in ("schedule", "techniques.0")
    assert "needs to know the number of steps; set budget.epochs or budget.steps" in found.message
    ready(**part, budget={"seconds": 1.0, "steps": 5})
    ready(schedule={"use": "open-ended"}, budget={"seconds": 1.0})
