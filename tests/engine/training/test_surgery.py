"""Rewrites in mid-run: everything follows, the log is replayed, a resume is bit for bit; what cannot follow is refused.

The parts here are a person's own, so that the contract is seen with no method of ours behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import registry
from engine.errors import CheckpointError, RecipeError
from engine.log import Log
from engine.recipe import Recipe
from engine.training import checkpoint, sources
from engine.training.assemble import assemble, filled
from engine.training.clerk import answer
from engine.training.loop import Outcome, Trainer, train
from engine.training.recorder import Memory, Recorder
from engine.training.run import Run
from engine.training.worker import work
from engine.workspace import Workspace

PARTS = '''
import torch
from engine.fields import Sites, Whole
from engine.kit.surgery import channel_mask, own_members, places_without, cut, tensors_of
from engine.parts import Moved, Technique, technique

@technique()
class Cutter(Technique):
    """Holds the first two channels of every group at zero from a step on, and cuts them out at another."""
    rewrites = True
    def __init__(self, mask_at: Whole = 3, at: Whole = 7, end: bool = False):
        self.mask_at, self.at, self.end = mask_at, at, end
        self.done = False

    def removals(self, model):
        return [(group, torch.tensor([0, 1])) for group in model.anatomy().tied() if group.removable]

    def on_step_end(self, run):
        if run.step == self.mask_at:
            tensors = tensors_of(run.model)
            for group, channels in self.removals(run.model):
                for member in own_members(group, run.model):
                    tensor = tensors[member.name]
                    before = run.masks.mask(tensor)
                    mask = channel_mask(member, tensor, channels)
                    run.masks.hold("cutter", tensor, mask if before is None else mask * before)
        if run.step == self.at:
            self.act(run)

    def on_end(self, run):
        if self.end and not self.done:
            self.act(run)

    def act(self, run):
        self.done = True
        run.rewrite("cutter", "cut", {"kept": places_without(run.model, self.removals(run.model))})

    @classmethod
    def rewrite(cls, run, operation, arguments):
        return cut(run.model, arguments["kept"])

    @classmethod
    def claims(cls, settings, anatomy):
        return {f"{site.path}.weight": "mask" for site in anatomy.select("weight")}


@technique()
class Grower(Technique):
    """Puts a trainable gain after the head at a step, and then sets it anew at every step."""
    rewrites = True
    def __init__(self, at: Whole = 2):
        self.at = at

    def on_step_end(self, run):
        if run.step == self.at:
            run.rewrite("grower", "grow", {})
        if run.step > self.at:
            run.rewrite("grower", "set", {"rows": 1 + run.step % 3}, replaces=True)

    @classmethod
    def rewrite(cls, run, operation, arguments):
        if operation == "grow":
            run.model.head = torch.nn.Sequential(run.model.head, Gains())
            return {}
        gains = run.model.head[1]
        old, gains.gains = gains.gains, torch.nn.Parameter(torch.ones(arguments["rows"]))
        return {old: Moved(gains.gains)}


class Gains(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gains = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.gains.mean()

    def param_options(self):
        return {"gains": {"weight_decay": 0.25}}


@technique()
class Holder(Technique):
    """Holds on to parameters and cannot follow."""
    keeps_parameters = True

    def setup(self, run):
        self._held = list(run.model.parameters())


@technique()
class MaskEverything(Technique):
    """Wants to mask the layers that are selected."""
    def __init__(self, targets: Sites = "weight"):
        self.targets = targets

    @classmethod
    def claims(cls, settings, anatomy):
        return {f"{site.path}.weight": "mask" for site in anatomy.select(settings["targets"])}


@technique()
class Factors(MaskEverything):
    """Would put factors in the place of the selected weights."""
    @classmethod
    def claims(cls, settings, anatomy):
        return {f"{site.path}.weight": "factors" for site in anatomy.select(settings["targets"])}
'''

BASE: dict[str, Any] = {
    "task": {"use": "digits"},
    "model": {"use": "cnn", "widths": [4, 6]},
    "optimizer": {"use": "adamw", "lr": 3e-3},
    "schedule": {"use": "cosine"},
    "training": {"batch_size": 150, "evaluate_every": 0.5},
    "budget": {"steps": 14},
}
EMA = {"use": "switch-ema", "decay": 0.8, "unit": "step", "switch_interval": 4}


@pytest.fixture(scope="module", autouse=True)
def own_parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("parts")
    (folder / "surgeons.py").write_text(PARTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATHANOR_PARTS", str(folder))
        registry.classes.cache_clear()
        yield
    registry.classes.cache_clear()


def document(*techniques: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return filled(Recipe.of({**BASE, "techniques": list(techniques), **changes}), registry.catalog())


def cut_short(recipe: dict[str, Any], folder: Path, at: int) -> None:
    """Trains up to a step and saves there."""

    def stop(trainer: Trainer) -> None:
        whole = trainer._finished

        def finished() -> bool:
            if trainer.run.step >= at:
                trainer.sink.requested = "stop"
                trainer._obey()
            return whole()

        trainer._finished = finished  # type: ignore[method-assign]

    assert train(recipe, Memory(), folder, stop).steps == at


def resumed(recipe: dict[str, Any], folder: Path, branch: bool = False) -> tuple[Outcome, Run]:
    found: list[Run] = []

    def load(trainer: Trainer) -> None:
        state = checkpoint.newest(folder)
        assert state is not None
        trainer.load(state, branch)
        found.append(trainer.run)

    return train(recipe, Memory(), None, load), found[0]


@pytest.mark.parametrize("at", [5, 7, 11])
@pytest.mark.parametrize("technique", [{"use": "cutter"}, {"use": "grower"}, {"use": "grower", "at": 4}])
def test_a_rewritten_run_resumes_bit_for_bit(technique: dict[str, Any], at: int, tmp_path: Path) -> None:
    """Before, at and after the rewrite; with an average that follows, and one that replaces the weights."""
    recipe = document(technique, EMA)
    whole = train(recipe, Memory())
    assert whole.state == "done"
    cut_short(recipe, tmp_path, at)
    again, _ = resumed(recipe, tmp_path)
    assert (again.weights, again.metrics) == (whole.weights, whole.metrics)


def test_cutting_what_is_masked_changes_nothing_but_the_size() -> None:
    """The same run without the cut: masked channels stay zero, the others take the same steps (to rounding)."""
    runs, ends = [], []
    for at in (7, 99):
        run = assemble(document({"use": "cutter", "at": at}, {**EMA, "switch_interval": 5}), Recorder(Memory()))
        ends.append(Trainer(run).train())
        runs.append(run)
    small, wide = runs
    assert {name: value for name, value in ends[0].metrics.items() if name.endswith("/loss")} == pytest.approx(
        {name: value for name, value in ends[1].metrics.items() if name.endswith("/loss")}, rel=1e-3
    )
    assert [tuple(p.shape) for p in small.model.stem.parameters()] == [(2, 1, 3, 3), (2,), (2,)]
    stem = dict(wide.model.named_parameters())["stem.0.weight"]
    assert not stem[:2].any() and stem[2:].any(), "averaging brought no masked weight back"
    assert torch.allclose(small.model.stem[0].weight, stem[2:], atol=1e-4)
    assert not len(small.masks) and len(wide.masks)


def test_roles_schedule_averages_and_the_log_follow() -> None:
    memory = Memory()
    run = assemble(document({"use": "cutter"}, EMA), Recorder(memory))
    role, average = run.roles["main"], run.techniques[1]
    before = sum(p.numel() for p in run.model.parameters())
    outcome = Trainer(run).train()
    now = list(run.model.parameters())
    assert outcome.state == "done"
    assert [id(p) for p in role.parameters] == [id(p) for p in now]
    assert [id(p) for group in role.optimizer.param_groups for p in group["params"]] == [id(p) for p in now]
    assert all(role.optimizer.state[p]["exp_avg"].shape == p.shape for p in now)
    assert all(role.optimizer.state[p]["step"] == 14 for p in now), "the state went along"
    assert [t.shape for t in average.shadow] == [t.shape for t in average._live]
    assert memory.points["lr"][1][-1] < 1e-4, "the schedule goes on"
    (entry,) = run.structure.log
    assert (entry["part"], entry["operation"], entry["step"]) == ("cutter", "cut", 7)
    (event,) = [event for event in memory.events if event["kind"] == "surgery"]
    after = sum(p.numel() for p in now)
    assert event["text"] == f"cutter: cut. The model had {before:,} parameters, it has {after:,} now."


def test_new_parameters_get_a_group_with_their_layers_options() -> None:
    run = assemble(document({"use": "grower"}), Recorder(Memory()))
    Trainer(run).train()
    role = run.roles["main"]
    assert "head.1.gains" in role.names and run.model.head[1].gains.shape == (1 + 14 % 3,)
    assert [group["weight_decay"] for group in role.optimizer.param_groups] == [0.01, 0.25]
    assert [base["lr"] for base in role.base] == [3e-3, 3e-3]
    rates = [group["lr"] for group in role.optimizer.param_groups]
    assert rates[0] == rates[1] < 1e-3, "the schedule sets both"
    assert [entry["operation"] for entry in run.structure.log] == ["grow", "set"], "a set replaces the one before"


def test_a_run_that_ends_in_a_cut_is_there_again(tmp_path: Path) -> None:
    """A probe of it, a branch without the part, a resume of what is finished, and a run that starts from it."""
    workspace = Workspace(tmp_path)
    text = Recipe.of({**BASE, "techniques": [{"use": "cutter", "at": 99, "end": True}]}).text()
    with Log(workspace.database) as log:
        id = log.create_run(text, state="starting")
        work(workspace, id)
        row = log.run(id) or {}
        assert row["state"] == "done", row["message"]
        probe = {"use": "filter-normalized-landscape", "show": "curve", "grid": 3, "samples": 50}
        assert answer({"verb": "probe", "run": id, "probe": probe}, workspace)["scalars"]
        work(workspace, id)
        assert (log.run(id) or {})["weights"] == row["weights"]
    folder = workspace.run_folder(id)
    best = checkpoint.load(folder / "best.pt")
    assert len(best["structure"]) == (best["model"]["stem.0.weight"].shape[0] == 2)
    outcome, run = resumed(document(budget={"steps": 20}), folder, branch=True)
    assert outcome.state == "done" and outcome.steps == 20
    assert tuple(run.model.stem[0].weight.shape) == (2, 1, 3, 3)
    with sources.around(workspace=workspace):
        saved = sources.source(f"run:{id}@last").model().state_dict()
        start = {**BASE["training"], "start_from": f"run:{id}@last"}
        begun = assemble(document(training=start), Recorder(Memory()))
    assert all(torch.equal(tensor, saved[name]) for name, tensor in begun.model.state_dict().items())
    assert tuple(saved["stem.0.weight"].shape) == (2, 1, 3, 3) and len(begun.structure.log) == 1
    assert Trainer(begun).train().state == "done"


@pytest.mark.parametrize("at", [5, 9, 12])
def test_the_next_phase_takes_the_structure_over(at: int, tmp_path: Path) -> None:
    """A cut in the first phase, another part that rewrites in the second, and a resume in either."""
    phases = [
        {"name": "cut", "techniques": [{"use": "cutter", "mask_at": 1, "at": 4}], "budget": {"steps": 7}},
        {"name": "grow", "techniques": [{"use": "grower", "at": 10}], "budget": {"steps": 7}},
    ]
    recipe = document(phases=phases)
    whole = train(recipe, Memory())
    assert (whole.state, whole.steps) == ("done", 14)
    cut_short(recipe, tmp_path, at)
    again, _ = resumed(recipe, tmp_path)
    assert (again.weights, again.metrics) == (whole.weights, whole.metrics)


def test_the_compiled_pass_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def stand_in(model: torch.nn.Module) -> Any:
        compiled.append(sum(p.numel() for p in model.parameters()))
        return model

    monkeypatch.setattr(torch, "compile", stand_in)
    recipe = document({"use": "cutter"}, training={**BASE["training"], "compile": True})
    assert train(recipe, Memory()).state == "done"
    assert len(compiled) == 2 and compiled[1] < compiled[0]


def test_a_structure_of_another_start_is_refused(tmp_path: Path) -> None:
    cut_short(document({"use": "cutter"}), tmp_path, 9)
    state = checkpoint.newest(tmp_path)
    assert state is not None
    run = assemble(document({"use": "cutter"}), Recorder(Memory()))
    run.rewrite("grower", "grow", {})
    with pytest.raises(CheckpointError, match="changed in another way from the start"):
        Trainer(run).load(state)
    state["structure"][0]["part"] = "no-such-part"
    with pytest.raises(CheckpointError, match=r"changed by no-such-part, and there is no such part here\."):
        Trainer(assemble(document({"use": "cutter"}), Recorder(Memory()))).load(state)


def test_a_rewrite_that_forgets_a_parameter_is_told() -> None:
    run = assemble(document({"use": "grower"}), Recorder(Memory()))
    run.rewrite("grower", "grow", {})
    run.model.head[1].gains = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(RuntimeError, match="took 1 parameters out of main"):
        run.on_surgery({})


# -- what clashes ------------------------------------------------------------------------------------------------------


def refusal(*techniques: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        assemble(document(*techniques, **changes), Recorder(Memory()))
    (problem,) = caught.value.problems
    return problem.message


def test_what_cannot_follow_is_refused_beside_what_rewrites() -> None:
    words = refusal({"use": "holder"}, {"use": "cutter"})
    assert words == (
        "cutter exchanges the model's parameters while it trains, and holder holds on to those that it found at the "
        "start; use one without the other."
    )
    for techniques in ([{"use": "holder"}], [{"use": "cutter"}, EMA]):
        assert train(document(*techniques, budget={"steps": 8}), Memory()).state == "done"


def test_two_mask_writers_on_one_weight_are_refused() -> None:
    assert refusal({"use": "cutter"}, {"use": "mask-everything", "targets": "head"}) == (
        "cutter and mask-everything both want to mask the weight 'head.weight'. One weight has one mask: remove one "
        "of them, or select different modules."
    )
    apart = [{"use": "mask-everything", "targets": targets} for targets in ("head", "blocks")]
    assert train(document(*apart, budget={"steps": 1}), Memory()).state == "done"


def test_weight_maps_stack_in_their_one_order_and_find_no_weight_where_factors_are() -> None:
    mask = {"use": "progressive-gradient-flow-nm", "n": 1, "m": 2, "dense_fraction": 0.0, "targets": "linear, blocks"}
    norm = {"use": "replace", "layer": {"use": "weight-norm"}, "sites": "linear, blocks"}
    small: dict[str, Any] = {"model": {"use": "mlp", "hidden": [8]}, "budget": {"steps": 4}}
    one, other = (train(document(*order, **small), Memory()) for order in ([norm, mask], [mask, norm]))
    assert one.state == "done" and one.metrics == other.metrics, "geometry comes before the mask, however it is written"
    assert one.metrics != train(document(norm, **small), Memory()).metrics
    words = refusal({"use": "factors", "targets": "blocks.0, linear"}, mask, **small)
    assert words == (
        "factors puts factors in the place of the weight blocks.0.linear.weight, and nothing is left for "
        "progressive-gradient-flow-nm to act on."
    )
