"""Sources: runs, recipes that are trained first and once, tags; starting from one; pins; what is not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import registry
from engine.errors import AthanorError, RecipeError, ServiceError
from engine.log import Log
from engine.recipe import Recipe, merge
from engine.service import verbs
from engine.training import checkpoint, sources
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer, train
from engine.training.preview import preview
from engine.training.recorder import Memory, Recorder
from engine.training.worker import work
from engine.workspace import Workspace

BASE: dict[str, Any] = {
    "task": {"use": "two-moons", "samples": 120},
    "model": {"use": "mlp", "hidden": [6]},
    "optimizer": {"use": "sgd", "lr": 0.1},
    "budget": {"steps": 7},
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def log(workspace: Workspace) -> Iterator[Log]:
    with Log(workspace.database) as log:
        yield log


def text(**patch: Any) -> str:
    return Recipe.of(merge(BASE, patch)).text()


def write(workspace: Workspace, name: str, **patch: Any) -> Path:
    file = workspace.folder / name
    file.write_text(text(**patch), encoding="utf-8")
    return file


def worked(workspace: Workspace, log: Log, recipe: str, **columns: Any) -> dict[str, Any]:
    run = log.create_run(recipe, state="starting", **columns)
    work(workspace, run)
    row = log.run(run)
    assert row is not None and row["state"] == "done", row
    return row


def trained(**patch: Any) -> dict[str, torch.Tensor]:
    """The weights that a recipe ends with, trained here and now."""
    kept: list[Trainer] = []
    train(filled(Recipe.of(merge(BASE, patch))), prepare=kept.append)
    return kept[0].run.model.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_gives_its_model_at_every_moment(workspace: Workspace, log: Log) -> None:
    row = worked(workspace, log, text(training={"evaluate_every": 0.5}))
    with sources.around(workspace=workspace):
        last = sources.source(f"run:{row['id']}")
        assert last.label == f"run:{row['id']}" and last.recipe["model"]["hidden"] == [6]
        assert last.metrics == row["metrics"] and last.state()["step"] == 7
        model = last.model()
        assert same(model.state_dict(), trained())
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        assert last.model() is not model, "each who asks gets a model of their own"
        assert same(sources.source(f"run:{row['id']}@7").model().state_dict(), trained())
        best = sources.source(f"run:{row['id']}@best")
        kept = checkpoint.load(workspace.run_folder(row["id"]) / "best.pt")
        assert same(best.model().state_dict(), kept["model"])
        fresh = assemble(filled(Recipe.parse(text())), Recorder(Memory())).model.state_dict()
        assert same(sources.source(f"run:{row['id'][:6]}@init").model().state_dict(), fresh)


def test_making_a_sources_model_leaves_no_trace(workspace: Workspace, log: Log) -> None:
    row = worked(workspace, log, text())
    before = torch.get_rng_state()
    with sources.around(workspace=workspace):
        sources.source(f"run:{row['id']}").model()
    assert torch.equal(torch.get_rng_state(), before)
    assert sources.surroundings().workspace is None


def test_a_tag_stands_for_its_runs_in_the_order_they_were_made(workspace: Workspace, log: Log) -> None:
    rows = [log.create_run(text(), state="done") for _ in range(3)]
    for run in rows[:2]:
        log.update_run(run, tags=["zoo", "other"])
    field = {"type": "array", "items": {"type": "string", "x-source": True}}
    with sources.around(workspace=workspace):
        found = registry._argument(field, ["tag:zoo", f"run:{rows[2]}@best"])
        assert [each.label for each in found] == [f"run:{rows[0]}", f"run:{rows[1]}", f"run:{rows[2]}@best"]
        with pytest.raises(AthanorError, match='No run has the tag "empty"'):
            registry._argument(field, ["tag:empty"])
    one = registry._argument({"anyOf": [{"type": "string", "x-source": True}, {"type": "null"}]}, "run:x")
    assert one.label == "run:x" and registry._argument({"type": "string", "x-source": True}, None) is None


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ("run:nobody", "is no run of this workspace"),
        ("run:{id}@5", "of run {id} there is @0, @7, @best"),
        ("recipe:nowhere.toml", "there is no recipe file"),
        ("recipe:broken.toml", "there is no model"),
        ("phase:dense", "this recipe has none before it"),
    ],
)
def test_what_is_not_there_is_a_sentence_before_anything_is_trained(
    workspace: Workspace, log: Log, named: str, sentence: str
) -> None:
    row = worked(workspace, log, text())
    write(workspace, "broken.toml", model={"use": "no such model"})
    named, sentence = named.format(id=row["id"]), sentence.format(id=row["id"])
    with sources.around(workspace=workspace):
        answer = preview(text(training={"start_from": named}))
        assert [problem["path"] for problem in answer["problems"]] == ["training.start_from"]
        assert sentence in answer["problems"][0]["message"]
        assert not preview(text(training={"start_from": f"run:{row['id']}"}))["problems"]
    run = log.create_run(text(training={"start_from": named}), state="starting")
    work(workspace, run)
    ended = log.run(run) or {}
    assert ended["state"] == "failed" and sentence in ended["message"]


def test_runs_need_a_workspace() -> None:
    with pytest.raises(RecipeError, match="there is none here"):
        train(filled(Recipe.parse(text(training={"start_from": "run:x"}))))


# -- starting from one -------------------------------------------------------------------------------------------------


def begun(document: dict[str, Any], workspace: Workspace | None = None) -> tuple[dict[str, torch.Tensor], Memory]:
    memory = Memory()
    with sources.around(workspace=workspace):
        run = assemble(document, Recorder(memory))
    return run.model.state_dict(), memory


def test_a_recipe_starts_from_a_source_and_takes_its_model(workspace: Workspace, log: Log) -> None:
    row = worked(workspace, log, text(model={"hidden": [6, 3]}))
    document = Recipe.parse(text(training={"start_from": f"run:{row['id']}"}))
    document.remove("model")
    assert document.check(registry.catalog()) == []
    with sources.around(workspace=workspace):
        complete = filled(document)
    assert complete["model"]["hidden"] == [6, 3]
    weights, memory = begun(complete, workspace)
    assert same(weights, trained(model={"hidden": [6, 3]}))
    assert any("6 of its 6 tensors are taken" in event["text"] for event in memory.events)


def test_another_structure_is_refused_and_another_dropout_is_not(workspace: Workspace, log: Log) -> None:
    row = worked(workspace, log, text())
    start = {"start_from": f"run:{row['id']}"}
    with sources.around(workspace=workspace):
        answer = preview(text(training=start, model={"hidden": [5]}))
        (problem,) = answer["problems"]
        assert problem["path"] == "model.hidden" and problem["value"] == [5]
        assert "has hidden = [6]. Write the same, or leave [model] out." in problem["message"]
        assert preview(text(training=start, model={"dropout": 0.1}))["problems"] == []


def test_another_task_keeps_what_fits_it(workspace: Workspace, log: Log) -> None:
    """Two moons have 2 numbers in and 2 classes out, the digits 64 and 10: the middle of the network passes on."""
    row = worked(workspace, log, text(model={"hidden": [6, 5]}))
    patch = {"task": {"use": "digits"}, "training": {"start_from": f"run:{row['id']}"}}
    weights, memory = begun(filled(Recipe.parse(text(model={"hidden": [6, 5]}, **patch))), workspace)
    middle = trained(model={"hidden": [6, 5]})
    for name in ("blocks.0.linear.bias", "blocks.1.linear.weight", "blocks.1.linear.bias"):
        assert torch.equal(weights[name], middle[name])
    assert weights["blocks.0.linear.weight"].shape == (6, 64) and weights["head.weight"].shape == (10, 5)
    (words,) = [event["text"] for event in memory.events if event["kind"] == "start"]
    assert "3 of its 6 tensors" in words and "head.weight" in words and "have another shape" in words


def test_nothing_that_fits_is_refused(workspace: Workspace, log: Log) -> None:
    row = worked(workspace, log, text(model={"hidden": []}))
    patch = {"task": {"use": "digits"}, "training": {"start_from": f"run:{row['id']}"}}
    with pytest.raises(RecipeError, match="None of the model's 2 tensors"):
        begun(filled(Recipe.parse(text(model={"hidden": []}, **patch))), workspace)


def test_layers_that_start_from_data_do_so_only_where_they_are_new(workspace: Workspace, log: Log) -> None:
    norm = {"techniques": [{"use": "replace", "sites": "linear", "layer": {"use": "weight-norm"}}]}
    row = worked(workspace, log, text(**norm))
    start = {"training": {"start_from": f"run:{row['id']}"}}
    weights, _ = begun(filled(Recipe.parse(text(**norm, **start))), workspace)
    assert same(weights, trained(**norm)), "what was trained is not made anew from a batch"


# -- recipes that are trained first ------------------------------------------------------------------------------------


def test_a_recipe_is_trained_once_and_kept(workspace: Workspace, log: Log) -> None:
    write(workspace, "teacher.toml", budget={"steps": 9}, seed=5)
    start = {"training": {"start_from": "recipe:teacher.toml"}}
    first = worked(workspace, log, text(**start, seed=1))
    second = worked(workspace, log, text(**start, seed=2))
    told = [[e["text"] for e in log.events(row["id"]) if e["kind"] == "source"] for row in (first, second)]
    assert len(told[0]) == 2 and "9 steps in" in told[0][1] and "not counted in this run" in told[0][1]
    assert told[1] == [], "the second run finds it"
    assert first["environment"]["sources"][0]["source"] == "recipe:teacher.toml"
    assert first["step"] == 7 and first["steps"] == 7, "its steps are not the run's"
    with sources.around(workspace=workspace):
        weights = sources.source("recipe:teacher.toml").model().state_dict()
    assert same(weights, trained(budget={"steps": 9}, seed=5)), "with a seed of its own, whoever asks"
    assert len(list((workspace.folder / "sources").iterdir())) == 1

    write(workspace, "teacher.toml", budget={"steps": 10}, seed=5)
    third = worked(workspace, log, text(**start))
    assert any("10 steps in" in e["text"] for e in log.events(third["id"])), "another recipe is another source"


def test_without_a_workspace_it_is_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATHANOR_CACHE", str(tmp_path))
    file = tmp_path / "teacher.toml"
    file.write_text(text(), encoding="utf-8")
    outcome = train(filled(Recipe.parse(text(training={"start_from": f"recipe:{file}"}))))
    assert outcome.state == "done"
    (kept,) = (tmp_path / "sources").iterdir()
    said = json.loads((kept / "outcome.json").read_text())
    assert said["steps"] == 7 and said["metrics"].keys() >= {"test/loss"}
    again = train(filled(Recipe.parse(text(training={"start_from": f"recipe:{file}"}))))
    assert again.weights == outcome.weights


def test_its_seed_follows_only_when_asked(workspace: Workspace) -> None:
    write(workspace, "teacher.toml", seed=5)
    found = {}
    for seed in (1, 2):
        with sources.around(workspace=workspace, seed=seed):
            for end in ("", "?seed=follow"):
                found[seed, end] = sources.source(f"recipe:teacher.toml{end}").model().state_dict()
    assert same(found[1, ""], found[2, ""]) and same(found[1, ""], trained(seed=5))
    assert same(found[1, "?seed=follow"], trained(seed=1)) and same(found[2, "?seed=follow"], trained(seed=2))


def test_a_source_may_have_a_source_but_not_itself(workspace: Workspace) -> None:
    write(workspace, "a.toml")
    write(workspace, "b.toml", training={"start_from": "recipe:a.toml"}, budget={"steps": 1})
    with sources.around(workspace=workspace):
        kept: list[Trainer] = []
        document = filled(Recipe.parse(text(training={"start_from": "recipe:b.toml"}, budget={"steps": 1})))
        train(document, prepare=kept.append, workspace=workspace)
    # 7 steps, 1, and 1: with a fresh optimizer and data order each time.
    assert not same(kept[0].run.model.state_dict(), trained())
    write(workspace, "a.toml", training={"start_from": "recipe:b.toml"})
    with sources.around(workspace=workspace), pytest.raises(AthanorError, match="trained from itself"):
        train(filled(Recipe.parse(text(training={"start_from": "recipe:a.toml"}))), workspace=workspace)


def test_a_stop_reaches_the_source_and_it_goes_on_where_it_was(workspace: Workspace) -> None:
    write(workspace, "teacher.toml", budget={"steps": 400})
    document = filled(Recipe.parse(text(training={"start_from": "recipe:teacher.toml"})), registry.catalog())
    sink, look = Memory(), Trainer._look_up

    def stop_in_the_middle(trainer: Trainer) -> None:
        if trainer.run.step < 300 and isinstance(trainer.sink, sources.Inner):
            sink.requested = "stop"
        look(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.training.loop.LOOK_SECONDS", 0.0)
        patch.setattr(Trainer, "_look_up", stop_in_the_middle)
        outcome = train(document, sink, workspace=workspace)
    assert (outcome.state, outcome.steps) == ("stopped", 0) and sink.requested == ""
    assert "while a source was trained" in sink.columns["message"]
    (kept,) = (workspace.folder / "sources").iterdir()
    newest = checkpoint.newest(kept)
    assert newest is not None and 0 < newest["step"] < 300
    again = Memory()
    assert train(document, again, workspace=workspace).state == "done"
    with sources.around(workspace=workspace):
        weights = sources.source("recipe:teacher.toml").model().state_dict()
    assert same(weights, trained(budget={"steps": 400}))


def test_a_source_that_diverges_is_told(workspace: Workspace) -> None:
    write(workspace, "wild.toml", optimizer={"lr": 1e30}, budget={"steps": 60})
    with pytest.raises(AthanorError, match=r"recipe:wild\.toml could not be trained: it diverged"):
        train(filled(Recipe.parse(text(training={"start_from": "recipe:wild.toml"}))), workspace=workspace)


# -- pins --------------------------------------------------------------------------------------------------------------


def test_what_a_run_has_resolved_stays_although_its_source_goes(workspace: Workspace, log: Log) -> None:
    source = worked(workspace, log, text())
    start = f"run:{source['id']}"
    row = worked(workspace, log, text(training={"start_from": start}))
    assert verbs.delete(log, workspace, source) == "deleted"
    assert not (workspace.folder / "runs" / source["id"]).exists()
    with sources.around(workspace=workspace, folder=workspace.run_folder(row["id"])):
        assert same(sources.source(start).model().state_dict(), trained())
    # The run that took it can be resumed, and be looked at.
    log.update_run(row["id"], state="starting")
    work(workspace, row["id"])
    assert (log.run(row["id"]) or {})["state"] == "done"


def test_a_run_that_another_waits_for_is_not_deleted(workspace: Workspace, log: Log) -> None:
    source, other = worked(workspace, log, text()), worked(workspace, log, text())
    waiting = log.create_run(text(training={"start_from": f"run:{source['id'][:8]}@best"}), state="queued")
    with pytest.raises(ServiceError, match=f"Run {waiting} takes run {source['id']} as a source"):
        verbs.delete(log, workspace, source)
    assert log.run(source["id"]) is not None
    assert verbs.delete(log, workspace, other) == "deleted"
    log.update_run(waiting, state="stopped")
    assert verbs.delete(log, workspace, source) == "deleted"
