"""What the worker makes of a row of the database, and how it says what went wrong; in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import registry
from engine.errors import AthanorError, CheckpointError
from engine.log import Log, SeriesWriter
from engine.recipe import Recipe, merge
from engine.training import checkpoint
from engine.training.assemble import filled
from engine.training.loop import train
from engine.training.worker import guarded, main, work
from engine.workspace import Workspace

BASE: dict[str, Any] = {
    "task": {"use": "two-moons", "samples": 200},
    "model": {"use": "mlp", "hidden": [8]},
    "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.9},
    "budget": {"epochs": 3},
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


def worked(workspace: Workspace, log: Log, recipe: str, **columns: Any) -> dict[str, Any]:
    run = log.create_run(recipe, state="starting", **columns)
    work(workspace, run)
    return log.run(run) or {}


def test_it_trains_the_row_that_it_is_given(workspace: Workspace, log: Log) -> None:
    row = worked(workspace, log, text())
    outcome = train(filled(Recipe.parse(text()), registry.catalog()))
    assert (row["state"], row["step"], row["weights"]) == ("done", outcome.steps, outcome.weights)
    assert row["metrics"] == outcome.metrics and row["started"] and row["ended"]
    names = [entry["name"] for entry in row["checkpoints"]]
    assert names == ["best", "step-000000000", f"step-{row['step']:09d}"]
    for entry in row["checkpoints"]:
        path = workspace.run_folder(row["id"]) / f"{entry['name']}.pt"
        assert path.stat().st_size == entry["bytes"] and path.stat().st_mode & 0o777 == 0o600
        assert checkpoint.load(path)["step"] == entry["step"]


def test_a_run_that_is_done_and_asked_again_stays_what_it_is(workspace: Workspace, log: Log) -> None:
    row = worked(workspace, log, text())
    before = {s.name: log.points(row["id"], s.name).values.tolist() for s in log.series(row["id"])}
    work(workspace, row["id"])
    again = log.run(row["id"]) or {}
    assert {k: again[k] for k in ("state", "step", "weights", "metrics")} == {
        k: row[k] for k in ("state", "step", "weights", "metrics")
    }
    for name, values in before.items():
        if not name.startswith("seconds/"):
            assert log.points(row["id"], name).values.tolist() == values


@pytest.mark.parametrize(
    ("patch", "sentence"),
    [
        ({"optimizer": {"use": "sdg"}}, "optimizer.use: there is no optimizer \"sdg\". Did you mean 'sgd'?"),
        ({"optimizer": {"lr": -1.0}}, "optimizer.lr: -1.0 is not a number greater than 0."),
        ({"model": {"use": "cnn"}}, "model: "),
        ({"training": {"device": "cuda:63"}}, 'training.device: "cuda:63" is not a device here'),
        ({"training": {"early_stop": "val/los"}}, '"val/los" is not measured here'),
    ],
)
def test_a_persons_mistake_is_a_sentence(workspace: Workspace, log: Log, patch: Any, sentence: str) -> None:
    row = worked(workspace, log, text(**patch))
    assert row["state"] == "failed" and sentence in row["message"] and row["ended"]
    errors = [event["text"] for event in log.events(row["id"]) if event["level"] == "error"]
    assert errors == [row["message"]]


def test_a_checkpoint_of_another_model_is_refused(workspace: Workspace, log: Log) -> None:
    row = worked(workspace, log, text(budget={"epochs": 1}))
    log.update_run(row["id"], recipe=text(model={"hidden": [9]}))
    work(workspace, row["id"])
    row = log.run(row["id"]) or {}
    assert row["state"] == "failed" and row["message"].startswith("The checkpoint does not fit this recipe: ")


def test_a_branch_without_its_checkpoint_says_so(workspace: Workspace, log: Log) -> None:
    parent = worked(workspace, log, text(budget={"epochs": 1}))
    row = worked(workspace, log, text(), parent=parent["id"], parent_step=parent["step"])
    assert row["state"] == "failed" and row["message"].startswith("There is no checkpoint ")


def test_a_parts_own_mistake_leaves_its_details_in_the_log(workspace: Workspace, log: Log) -> None:
    def attempt(error: Exception) -> tuple[dict[str, Any], list[str]]:
        def act() -> None:
            raise error

        run = log.create_run(text(), state="training")
        with SeriesWriter(workspace.database, run) as sink:
            guarded(sink, act)
        return log.run(run) or {}, [event["kind"] for event in log.events(run)]

    row, kinds = attempt(IndexError("4 is too far\nmore of it"))
    assert (row["state"], row["message"], kinds) == ("failed", "IndexError: 4 is too far", ["failed", "traceback"])
    row, _ = attempt(torch.OutOfMemoryError("CUDA out of memory. Tried ..."))
    assert row["message"].startswith("The device ran out of memory. Lower training.batch_size")
    row, kinds = attempt(CheckpointError("A sentence."))
    assert (row["message"], kinds) == ("A sentence.", ["failed"])


def test_without_a_run_there_is_nothing_to_do(workspace: Workspace, log: Log, capsys: Any, monkeypatch: Any) -> None:
    with pytest.raises(AthanorError, match="There is no run nothing in"):
        work(workspace, "nothing")
    with open("/dev/null") as empty:  # noqa: PTH123
        monkeypatch.setattr("sys.stdin", empty)
        assert main(["--workspace", str(workspace.folder), "--spare"]) == 0, (
            "its parent went before it had a run for it"
        )
    assert capsys.readouterr().out == "ready\n"
