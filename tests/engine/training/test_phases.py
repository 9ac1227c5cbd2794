"""Phases: what passes from one to the next and what begins anew, rewinding, resuming anywhere, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import registry
from engine.errors import RecipeError
from engine.recipe import Recipe, merge
from engine.training import checkpoint
from engine.training.assemble import assemble, filled
from engine.training.loop import Outcome, Trainer, train
from engine.training.preview import preview
from engine.training.recorder import Memory, Recorder

BASE: dict[str, Any] = {
    "task": {"use": "two-moons", "samples": 120},
    "model": {"use": "mlp", "hidden": [6], "dropout": 0.2},
    "optimizer": {"use": "sgd", "lr": 0.1, "momentum": 0.9},
    "schedule": {"use": "constant"},
    "training": {"batch_size": 16},
}
CATALOG = registry.catalog()


def recipe(*phases: dict[str, Any], **patch: Any) -> dict[str, Any]:
    return merge(BASE, {**patch, "phases": list(phases)})


def phase(name: str, steps: int, **rest: Any) -> dict[str, Any]:
    return {"name": name, "budget": {"steps": steps}, **rest}


class Seen:
    """A run and what was there at the begin of each of its phases."""

    def __init__(self, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, folder: Path | None = None):
        self.begins: list[tuple[str, int, dict[str, torch.Tensor]]] = []
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.memory = Memory()
        self.trainers: list[Trainer] = []
        take, step = Trainer._take, Trainer._step

        def took(trainer: Trainer, run: Any) -> None:
            take(trainer, run)
            self.begins.append((run.stage.label, run.step, weights(run.model)))
            self.weights[run.step] = weights(run.model)

        def stepped(trainer: Trainer) -> None:
            step(trainer)
            self.weights[trainer.run.step] = weights(trainer.run.model)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_take", took)
            patch.setattr(Trainer, "_step", stepped)
            self.outcome = train(filled(Recipe.of(document)), self.memory, folder, self.trainers.append)
        self.run = self.trainers[0].run

    def series(self, name: str) -> dict[int, float]:
        return dict(zip(*self.memory.points[name], strict=True))


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def trained(document: dict[str, Any]) -> tuple[Outcome, Memory]:
    memory = Memory()
    return train(filled(Recipe.of(document)), memory), memory


def problems(document: dict[str, Any]) -> dict[str, str]:
    answer = preview(Recipe.of(document).text())
    return {problem["path"]: problem["message"] for problem in answer["problems"]}


# -- what passes on ----------------------------------------------------------------------------------------------------


def test_phases_that_change_nothing_are_one_run_bit_for_bit() -> None:
    """Dropout, momentum, data order, evaluations and every point of the log."""
    parts = [{"name": name, "budget": {"epochs": n}, "inherit": "all"} for name, n in (("a", 1), ("b", 2), ("c", 1))]
    whole, one = trained({**BASE, "budget": {"epochs": 4}})
    split, several = trained(recipe(*parts))
    assert split.weights == whole.weights and split.metrics == whole.metrics and split.steps == whole.steps
    points = [{n: p for n, p in m.points.items() if "seconds" not in n and n != "throughput"} for m in (one, several)]
    assert points[0] == points[1]
    assert [e["text"].split(":")[0] for e in several.events if e["kind"] == "phase"] == [
        "Phase b begins",
        "Phase c begins",
    ]


def test_without_its_state_the_optimizer_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    document = recipe(phase("a", 5), phase("b", 5), model={"dropout": 0.0})
    seen = Seen(document, monkeypatch)
    first = Seen({**document, "phases": [phase("a", 5), phase("b", 5, inherit="all")]}, monkeypatch)
    assert same(seen.weights[5], first.weights[5]) and not same(seen.weights[6], first.weights[6])
    # The first step with fresh momentum is plain gradient descent on the same batch.
    lr, name = 0.1, "head.bias"
    fresh, gone_on = (each.weights[6][name] - each.weights[5][name] for each in (seen, first))
    velocity = (first.weights[5][name] - first.weights[4][name]) * 0.9
    torch.testing.assert_close(gone_on, fresh + velocity, rtol=1e-4, atol=1e-6 * lr)


def test_curves_count_from_the_begin_of_their_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    cosine = {"use": "cosine"}
    document = recipe(phase("a", 5), phase("b", 9, optimizer={"lr": 0.4}), schedule=cosine)
    seen = Seen(document, monkeypatch)
    lr = seen.series("lr")
    alone = {}
    for number, steps, rate in ((0, 5, 0.1), (1, 9, 0.4)):
        _, memory = trained(merge(BASE, {"schedule": cosine, "optimizer": {"lr": rate}, "budget": {"steps": steps}}))
        alone[number] = memory.points["lr"][1]
    assert list(lr.values()) == alone[0] + alone[1] and list(lr) == list(range(14))
    assert (seen.outcome.steps, seen.memory.columns["steps"]) == (14, 14)
    shown = preview(Recipe.of(document).text())
    assert shown["steps"] == 14 and shown["phases"] == [{"name": "a", "steps": 5}, {"name": "b", "steps": 9}]
    drawn = dict(zip(shown["schedule"]["steps"], shown["schedule"]["series"]["lr"], strict=True))
    assert drawn == pytest.approx(lr)


def test_techniques_come_change_go_and_keep_their_state(monkeypatch: pytest.MonkeyPatch) -> None:
    ema = {"use": "switch-ema", "decay": 0.5, "switch_interval": 0}
    noise = {"use": "gradient-noise"}
    document = recipe(
        phase("a", 6),
        phase("b", 6, techniques=[{"use": "switch-ema", "decay": 0.9}, noise]),
        phase("c", 6, techniques=[{"use": "switch-ema", "enabled": False}]),
        techniques=[ema],
    )
    assert Recipe.of(document).check(CATALOG) == []
    shadows: list[list[torch.Tensor]] = []
    take = Trainer._take

    def took(trainer: Trainer, run: Any) -> None:
        if hasattr(trainer, "run"):
            shadows.append([t.shadow for t in trainer.run.techniques if hasattr(t, "shadow")])
        take(trainer, run)
        shadows.append([t.shadow for t in run.techniques if hasattr(t, "shadow")])

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_take", took)
        seen = Seen(document, patch)
    uses = [[t["use"] for t in s.document["techniques"] if t.get("enabled", True)] for s in seen.run.course.stages]
    assert uses == [["switch-ema"], ["switch-ema", "gradient-noise"], []]
    assert seen.run.course.stages[1].document["techniques"][0]["decay"] == 0.9
    begin, end_a, begin_b, _, begin_c = shadows
    assert len(begin) == len(begin_b) == 1 and begin_c == []
    for before, after in zip(end_a[0], begin_b[0], strict=True):
        assert torch.equal(before, after)


def test_a_technique_that_goes_is_told_of_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mask becomes part of the weights, and the next phase may fill the gaps."""
    prune = {"use": "progressive-gradient-flow-nm", "n": 1, "m": 2, "targets": "linear"}
    document = recipe(
        phase("pruned", 6, techniques=[prune]), phase("dense", 6, optimizer={"momentum": 0.0}), model={"dropout": 0.0}
    )
    seen = Seen(document, monkeypatch)
    (_, _, _), (_, at, begun) = seen.begins
    assert at == 6 and float((begun["blocks.0.linear.weight"] == 0).float().mean()) == 0.5
    assert float((seen.run.model.state_dict()["blocks.0.linear.weight"] == 0).float().mean()) < 0.2, "it fills up"


# -- rewinding ---------------------------------------------------------------------------------------------------------


def test_a_phase_begins_with_the_weights_of_an_earlier_moment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        document = recipe(
            phase("dense", 8),
            phase("first", 4, rewind="phase:dense@3"),
            phase("second", 4, rewind="phase:dense@0"),
            phase("third", 4, rewind="phase:first@last"),
        )
        seen = Seen(document, monkeypatch, folder)
        begins = {label: begun for label, _, begun in seen.begins}
        assert same(begins["first"], seen.weights[3]) and not same(begins["first"], seen.weights[7])
        assert same(begins["second"], assembled(document))
        assert [at for _, at, _ in seen.begins] == [0, 8, 12, 16]
        assert seen.outcome.steps == 20 and list(seen.series("train/loss")) == list(range(20))
    assert same(begins["third"], checkpointed_end_of_first(seen))


def assembled(document: dict[str, Any]) -> dict[str, torch.Tensor]:
    return weights(assemble(filled(Recipe.of(document)), Recorder(Memory())).model)


def checkpointed_end_of_first(seen: Seen) -> dict[str, torch.Tensor]:
    (kept,) = (Path(seen.trainers[0].folder or "") / "phases").glob("first@last.pt")
    return checkpoint.load(kept)["model"]


def test_the_optimizers_state_can_be_rewound_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the same stretch from the same moment, on other batches; its momentum is that of the moment."""
    document = recipe(phase("a", 6), phase("b", 6, rewind="phase:a@3", inherit="all"), model={"dropout": 0.0})
    seen = Seen(document, monkeypatch)
    momentum = [momentum_after(steps) for steps in (3, 6)]
    ends = [phase("b", 1, rewind="phase:a@3", inherit=inherit) for inherit in ("all", "weights")]
    again, plain = (Seen({**document, "phases": [phase("a", 6), end]}, monkeypatch) for end in ends)
    name = next(iter(dict(seen.run.model.named_parameters())))
    moved, without = (each.weights[7][name] - each.weights[6][name] for each in (again, plain))
    torch.testing.assert_close(moved, without - 0.1 * 0.9 * momentum[0], rtol=1e-4, atol=1e-7)
    assert not torch.allclose(momentum[0], momentum[1])


def momentum_after(steps: int, dropout: float = 0.0) -> torch.Tensor:
    kept: list[Trainer] = []
    document = merge(BASE, {"model": {"dropout": dropout}, "budget": {"steps": steps}})
    train(filled(Recipe.of(document)), prepare=kept.append)
    optimizer = kept[0].run.roles["main"].optimizer
    assert optimizer is not None
    return optimizer.state_dict()["state"][0]["momentum_buffer"].clone()


def test_what_is_rewound_to_twice_is_the_same_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, where nothing but copies keep the moment from being trained on."""
    document = recipe(phase("a", 6), phase("b", 4, rewind="phase:a@3", inherit="all", repeat=2))
    seen = Seen(document, monkeypatch)
    moment = seen.run.course.state("a", 3)
    begins = {label: begun for label, _, begun in seen.begins}
    assert same(begins["b (1 of 2)"], begins["b (2 of 2)"]) and same(begins["b (1 of 2)"], seen.weights[3])
    kept = moment["roles"]["main"]["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(kept, momentum_after(3, dropout=0.2))


def test_stretches_repeat_from_where_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    document = recipe(
        phase("warm", 2),
        phase("down", 3, optimizer={"lr": 0.05}),
        phase("up", 1, repeat=3, back_to="down"),
        phase("end", 2, repeat=2),
    )
    seen = Seen(document, monkeypatch)
    labels = [label for label, _, _ in seen.begins]
    down, up = [f"down ({i} of 3)" for i in (1, 2, 3)], [f"up ({i} of 3)" for i in (1, 2, 3)]
    assert labels == ["warm", *(x for pair in zip(down, up, strict=True) for x in pair), "end (1 of 2)", "end (2 of 2)"]
    assert seen.outcome.steps == 2 + 3 * 4 + 4
    rates = list(seen.series("lr").values())
    assert rates == [0.1] * 2 + ([0.05] * 3 + [0.1]) * 3 + [0.1] * 4


def test_a_phase_that_repeats_can_rewind_to_its_own_time_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(recipe(phase("again", 4, repeat=3, rewind="phase:again@1")), monkeypatch)
    begins = [begun for _, _, begun in seen.begins]
    assert same(begins[1], seen.weights[1]) and same(begins[2], seen.weights[5])


# -- going on ----------------------------------------------------------------------------------------------------------

LONG = recipe(
    phase("dense", 11),
    phase("sparse", 7, rewind="phase:dense@3", techniques=[{"use": "switch-ema", "decay": 0.5}], repeat=2),
    phase("end", 6, optimizer={"use": "adamw", "lr": 0.01}, training={"batch_size": 24}, schedule={"use": "cosine"}),
    techniques=[{"use": "gradient-noise"}],
    training={"evaluate_every": 0.5},
)


@pytest.mark.parametrize("cut", [1, 3, 10, 11, 12, 17, 18, 20, 25, 28, 30])
def test_a_run_resumes_in_any_phase_bit_for_bit(cut: int, tmp_path: Path) -> None:
    whole = trained(LONG)
    sink = Memory()

    def stop_at(trainer: Trainer) -> None:
        step = trainer._step

        def stepped() -> None:
            step()
            if trainer.run.step == cut:
                sink.requested = "stop"
                trainer._obey()

        trainer._step = stepped  # type: ignore[method-assign]

    document = filled(Recipe.of(LONG))
    stopped = train(document, sink, tmp_path, stop_at)
    assert (stopped.state, stopped.steps) == ("stopped", cut)
    again = Memory()
    outcome = train(document, again, tmp_path, lambda trainer: trainer.load(checkpoint.newest(tmp_path) or {}))
    assert outcome.weights == whole[0].weights and outcome.metrics == whole[0].metrics
    assert outcome.steps == 31 == again.columns["steps"]
    for name, (steps, values) in again.points.items():
        if name not in ("throughput", "seconds/evaluation"):
            rest = [(s, v) for s, v in zip(*whole[1].points[name], strict=True) if s >= steps[0]]
            assert list(zip(steps, values, strict=True)) == rest, name


def test_moments_are_kept_until_no_phase_needs_them(tmp_path: Path) -> None:
    seen: list[tuple[int, list[str]]] = []
    document = recipe(
        phase("dense", 6), phase("b", 4, rewind="phase:dense@2"), phase("c", 4, rewind="phase:dense@4"), phase("d", 4)
    )

    def watch(trainer: Trainer) -> None:
        step = trainer._step

        def stepped() -> None:
            step()
            seen.append((trainer.run.step, sorted(p.stem for p in (tmp_path / "phases").glob("*"))))

        trainer._step = stepped  # type: ignore[method-assign]

    train(filled(Recipe.of(document)), Memory(), tmp_path, watch)
    kept = dict(seen)
    assert kept[1] == [] and kept[2] == ["dense@2"] and kept[5] == ["dense@2", "dense@4"]
    assert kept[7] == ["dense@2", "dense@4"], "a phase keeps what it began with: a resume in its middle asks again"
    assert kept[11] == ["dense@4"] and kept[15] == []
    assert not list(tmp_path.glob("dense*")), "they are none of the run's own checkpoints"


def test_an_early_stop_ends_its_phase_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = {"early_stop": "val/loss", "patience": 2}
    document = recipe(
        phase("a", 40, training=stop, optimizer={"lr": 1e-9}), phase("b", 5), training={"evaluate_every": 0.25}
    )
    seen = Seen(document, monkeypatch)
    assert [at for _, at, _ in seen.begins][1] < 20
    assert seen.outcome.steps == seen.begins[1][1] + 5 == seen.memory.columns["steps"]


def test_the_best_weights_are_those_of_the_last_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = recipe(phase("good", 60), phase("spoilt", 4, optimizer={"lr": 30.0}), training={"evaluate_every": 0.25})
    seen = Seen(document, monkeypatch, tmp_path)
    best = checkpoint.load(tmp_path / "best.pt")
    assert best["step"] > 60 and best["phase"]["index"] == 1
    assert seen.memory.columns["checkpoints"][0]["name"] == "best"


def test_a_share_of_the_budget_may_end_in_any_phase_and_go_on(tmp_path: Path) -> None:
    whole, memory = trained(LONG)
    document = filled(Recipe.of(LONG))
    part = train({**document, "budget": {**document["budget"], "share": 0.5}}, Memory(), tmp_path)
    assert (part.state, part.steps) == ("done", 16)  # of 31, in the second phase
    again = train(document, Memory(), tmp_path, lambda trainer: trainer.load(checkpoint.newest(tmp_path) or {}))
    assert (again.weights, again.steps) == (whole.weights, whole.steps)
    assert again.metrics == whole.metrics and memory.points


# -- what is refused, beside what works --------------------------------------------------------------------------------

WORKS = recipe(phase("dense", 5), phase("sparse", 5, rewind="phase:dense@3"))


@pytest.mark.parametrize(
    ("second", "path", "sentence"),
    [
        ({"rewind": "phase:danse@3"}, "rewind", 'there is no phase "danse" before this one. Did you mean'),
        ({"rewind": "phase:sparse@3"}, "rewind", 'there is no phase "sparse" before this one'),
        ({"rewind": "run:3f2a"}, "rewind", "is no phase of this recipe"),
        ({"rewind": "phase:dense@6"}, "rewind", "the phase dense has 5 steps: there is no step 6"),
        ({"name": "dense"}, "name", 'there is a phase "dense" already'),
        ({"name": "a:b"}, "name", "is no name"),
        ({"repeat": 0}, "repeat", "at least 1"),
        ({"repeat": 10**6}, "", "over 1000 stretches"),
        ({"back_to": "later"}, "back_to", 'there is no phase "later" before this one'),
        ({"inherit": "nothing"}, "inherit", "is not one of"),
        ({"model": {"use": "mlp"}}, "model", "the structure goes on from phase to phase"),
        ({"optimiser": {}}, "optimiser", "Did you mean 'optimizer'?"),
        ({"optimizer": {"lr": -1.0}}, "optimizer.lr", "greater than 0"),
        ({"optimizer": {"momentum": 0.5, "nesterof": True}}, "optimizer.nesterof", "Did you mean 'nesterov'?"),
        ({"techniques": [{"use": "switch-ema", "decay": 2.0}]}, "techniques.0.decay", "less than 1"),
        ({"training": {"device": "cpu"}}, "training.device", "a setting of the whole run"),
        ({"budget": {"steps": 5, "share": 0.5}}, "budget.share", "a setting of the whole run"),
        ({"inherit": "all", "optimizer": {"use": "adamw"}}, "inherit", "the optimizer changes from sgd to adamw"),
        ({"task": {"use": "digits"}}, "task", "must offer what the recipe's does"),
        ({"training": {"start_from": "phase:dense"}}, "training.start_from", "a setting of the whole run"),
        (
            {"schedule": {"use": "cosine"}, "budget": {"seconds": 1.0}},
            "schedule",
            "cosine needs to know the number of steps",
        ),
    ],
)
def test_what_a_phase_cannot_be_is_told_at_its_place(second: dict[str, Any], path: str, sentence: str) -> None:
    assert problems(WORKS) == {}
    wrong = recipe(WORKS["phases"][0], {**WORKS["phases"][1], **second})
    found = problems(wrong)
    where = f"phases.1.{path}" if path else "phases"
    assert where in found and sentence in found[where], found
    with pytest.raises(RecipeError, match=r"phases"):
        trained(wrong)


def test_a_curve_with_an_end_works_beside_an_open_phase() -> None:
    """Only the phase that follows the curve must know its length."""
    open_end = phase("open", 0, budget={"seconds": 0.05}, schedule={"use": "constant"})
    document = recipe(phase("known", 5), open_end, schedule={"use": "cosine"})
    assert problems(document) == {}
    outcome, memory = trained(document)
    assert outcome.state == "done" and outcome.steps > 5 and memory.columns["steps"] is None
    shown = preview(Recipe.of(document).text())
    assert shown["steps"] is None and len(shown["schedule"]["steps"]) == 5
    del open_end["schedule"]
    found = problems(recipe(phase("known", 5), open_end, schedule={"use": "cosine"}))
    assert "cosine needs to know the number of steps" in found["schedule"]


def test_a_problem_of_the_recipe_itself_is_told_once() -> None:
    found = problems(recipe(phase("a", 5), phase("b", 5), schedule={"use": "cosin"}))
    assert list(found) == ["schedule.use"]


def test_a_series_that_a_phase_has_not_is_a_gap() -> None:
    noise = {"use": "gradient-noise", "eta": {"value": 0.1, "schedule": {"use": "cosine"}}}
    shown = preview(Recipe.of(recipe(phase("a", 5), phase("b", 5, techniques=[noise]))).text())
    series = shown["schedule"]["series"]
    assert set(series) == {"lr", "gradient-noise.eta"} and all(len(values) == 10 for values in series.values())
    assert all(math.isnan(v) for v in series["gradient-noise.eta"][:5])
    assert series["gradient-noise.eta"][5] == 0.1 and not any(math.isnan(v) for v in series["lr"])


def test_phases_survive_editing_and_text() -> None:
    document = Recipe.of(WORKS)
    document.set("phases.1.optimizer.lr", 0.3)
    document.set("seed", 4)
    again = Recipe.parse(document.text())
    assert again.get("phases.1.optimizer.lr") == 0.3 and again.check(CATALOG) == []
    assert again.filled(CATALOG)["phases"][1]["recipe"]["optimizer"] == {
        **again.filled(CATALOG)["optimizer"],
        "lr": 0.3,
    }
    plain = Recipe.of(BASE)
    plain.set("phases", [phase("only", 3)])
    assert Recipe.parse(plain.text()).document["phases"] == [phase("only", 3)]
