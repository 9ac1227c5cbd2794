"""The clerk: questions in, answers out, and what it leaves in the log; once as the process that it is."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import AthanorError
from engine.log import Log
from engine.recipe import Recipe
from engine.service.processes import environment, python
from engine.training.clerk import answer
from engine.training.worker import work
from engine.workspace import Workspace

RECIPE = Recipe.of(
    {
        "task": {"use": "two-moons", "samples": 200},
        "model": {"use": "mlp", "hidden": [8]},
        "optimizer": {"use": "sgd", "lr": 0.05},
        "budget": {"epochs": 2},
    }
).text()
PROBE = {"use": "filter-normalized-landscape", "show": "curve", "grid": 3, "samples": 50}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def log(workspace: Workspace) -> Iterator[Log]:
    with Log(workspace.database) as log:
        yield log


def test_a_probe_of_a_saved_run_is_kept_with_it(workspace: Workspace, log: Log) -> None:
    run = log.create_run(RECIPE, state="starting")
    work(workspace, run)
    before = log.run(run) or {}
    files = {path.name: path.read_bytes() for path in workspace.run_folder(run).glob("*.pt")}
    found = answer({"verb": "probe", "run": run, "probe": PROBE}, workspace)
    figures = log.figures(run)
    assert figures and all(f["probe"] == PROBE["use"] and f["step"] == before["step"] and f["data"] for f in figures)
    series = {info.name: info for info in log.series(run)}
    for name, value in found["scalars"].items():
        assert name.startswith(f"probe/{PROBE['use']}/") and series[name].last_value == value
    after = log.run(run) or {}
    changed = {key for key in before if before[key] != after[key]}
    assert changed <= {"heartbeat"}, "looking changes nothing"
    assert {path.name: path.read_bytes() for path in workspace.run_folder(run).glob("*.pt")} == files
    again = answer({"verb": "probe", "run": run, "probe": PROBE}, workspace)
    assert again == found, "and sees the same the next time"


NORMED = Recipe.of(
    {
        "task": {"use": "two-moons", "samples": 200},
        "model": {"use": "mlp", "hidden": [8], "norm": "batch", "dropout": 0.3},
        "optimizer": {"use": "sgd", "lr": 0.05},
        "budget": {"epochs": 2},
    }
).text()


def test_a_saved_run_is_evaluated_by_another_decoder(workspace: Workspace, log: Log) -> None:
    run = log.create_run(NORMED, state="starting")
    work(workspace, run)
    before = log.run(run) or {}
    files = {path.name: path.read_bytes() for path in workspace.run_folder(run).glob("*.pt")}
    plain = answer({"verb": "evaluate", "run": run}, workspace)
    own = {name: value for name, value in before["metrics"].items() if name.startswith("test/")}
    assert plain == {"split": "test", "step": before["step"], "metrics": own, "decoder": None}
    changes = {"decoder.use": "mc-dropout", "decoder.samples": 3, "training.normalization": "batch"}
    other = answer({"verb": "evaluate", "run": run, "split": "val", "changes": changes}, workspace)
    assert other["metrics"]["decoder/calls"] == 3 and "val/accuracy" in other["metrics"]
    assert other["metrics"]["val/loss"] != before["metrics"]["val/loss"]
    assert other["decoder"] == {"use": "mc-dropout", "samples": 3}
    same = {"decoder.use": "mc-dropout", "decoder": "none"}
    assert answer({"verb": "evaluate", "run": run, "changes": same}, workspace)["metrics"] == own
    after = log.run(run) or {}
    assert {key for key in before if before[key] != after[key]} <= {"heartbeat"}
    assert {path.name: path.read_bytes() for path in workspace.run_folder(run).glob("*.pt")} == files
    events = [event["text"] for event in log.events(run) if event["kind"] == "evaluation"]
    assert len(events) == 3 and "decoder.samples = 3" in events[1]


def test_what_a_checkpoint_holds_is_not_exchanged(workspace: Workspace, log: Log) -> None:
    run = log.create_run(NORMED, state="starting")
    work(workspace, run)
    for changes, sentence in (
        ({"model.hidden": [4]}, "only decoder, training, task can be changed"),
        ({"decoder.use": "mc-dropuot"}, "Did you mean 'mc-dropout'?"),
        ({"task.use": "digits"}, "does not fit"),
    ):
        with pytest.raises(AthanorError, match=re.escape(sentence)):
            answer({"verb": "evaluate", "run": run, "changes": changes}, workspace)
    with pytest.raises(AthanorError, match="no samples in a split 'outer'"):
        answer({"verb": "evaluate", "run": run, "split": "outer"}, workspace)


def test_what_it_cannot_do_is_said(workspace: Workspace, log: Log) -> None:
    run = log.create_run(RECIPE)
    questions: list[tuple[dict[str, Any], Workspace | None, str]] = [
        ({"verb": "sing"}, workspace, "it knows preview, fits, probe, transform and evaluate."),
        ({"verb": "probe", "run": "none", "probe": PROBE}, workspace, "There is no run none."),
        ({"verb": "probe", "run": run, "probe": PROBE}, workspace, f"Run {run} has no checkpoint yet"),
        ({"verb": "probe", "run": run, "probe": PROBE}, None, "To probe a run needs a workspace."),
    ]
    for question, where, sentence in questions:
        with pytest.raises(AthanorError, match=sentence):
            answer(question, where)


def test_one_line_in_one_line_out(workspace: Workspace) -> None:
    questions = [
        json.dumps({"id": 1, "verb": "preview", "recipe": RECIPE}),
        "this is no JSON",
        json.dumps({"id": 2, "verb": "sing"}),
        json.dumps({"id": 3, "verb": "probe"}),
        json.dumps({"id": 4, "verb": "preview", "recipe": "[task"}),
    ]
    command = [*python("engine.training.clerk"), "--workspace", str(workspace.folder)]
    text = "\n".join(questions) + "\n"
    done = subprocess.run(command, input=text, env=environment(), capture_output=True, text=True, timeout=120)
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert [reply["id"] for reply in replies] == [1, None, 2, 3, 4]
    assert replies[0]["answer"]["model"]["parameters"] == (2 + 1) * 8 + (8 + 1) * 2
    assert all("error" in reply for reply in replies[1:4])
    assert "valid TOML" in replies[4]["answer"]["problems"][0]["message"]
