"""The commands that read and end saved runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from engine.commands.cli import run
from engine.log import Log, SeriesWriter
from engine.workspace import Workspace


def command(workspace: Workspace, *words: str) -> int:
    return run([*words, "--workspace", str(workspace.folder)], lambda *_: 99)


def document(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_runs_newest_first_and_what_is_no_number_as_null(
    workspace: Workspace, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newer = log.create_run("", name="older"), log.create_run("", name="newer", state="diverged")
    log.update_run(newer, metrics={"test/loss": float("nan"), "test/score": 0.5})
    assert command(workspace, "runs", "--json") == 0
    rows = document(capsys)
    assert [row["id"] for row in rows] == [newer, older]
    assert rows[0]["metrics"] == {"test/loss": None, "test/score": 0.5}
    assert command(workspace, "runs") == 0
    assert "newer" in capsys.readouterr().out


def test_a_run_whose_process_is_gone_is_listed_as_interrupted(
    workspace: Workspace, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lost, live = log.create_run("", state="training"), log.create_run("", state="training")
    log.update_run(lost, pid=ended.pid, heartbeat=time.time())
    log.update_run(live, pid=os.getpid(), heartbeat=time.time())
    assert command(workspace, "runs", "--json") == 0
    assert {row["id"]: row["state"] for row in document(capsys)} == {lost: "interrupted", live: "training"}
    row = log.run(lost)
    assert row is not None and "Resume goes on" in row["message"]


def test_runs_of_an_empty_workspace(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(workspace, "runs", "--json") == 0
    assert document(capsys) == []
    assert command(workspace, "runs") == 0
    assert "no run" in capsys.readouterr().out


def test_compare_shows_only_what_differs(workspace: Workspace, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    text = "[unknown]\nx = {x}\nsame = 1\n[more]\nlist = [1, 2]\n"
    ids = [log.create_run(text.format(x=x), state="done", name=str(x)) for x in (1, 2)]
    log.update_run(ids[0], metrics={"test/score": 0.5})
    assert command(workspace, "compare", *ids, "--json") == 0
    found = document(capsys)
    assert found["differs"] == [{"path": "unknown.x", "values": [1, 2]}]
    assert [row["metrics"] for row in found["runs"]] == [{"test/score": 0.5}, {}]
    assert command(workspace, "compare", *ids) == 0
    out = capsys.readouterr().out
    assert "unknown.x" in out and "unknown.same" not in out


def test_compare_at_equal_cost(workspace: Workspace, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    ids = []
    for name, passes in (("plain", 1), ("dear", 4)):
        id = log.create_run("[unknown]\nx = 1\n", state="done", name=name)
        ids.append(id)
        with SeriesWriter(workspace.database, id) as writer:
            score, count = writer.series("val/score"), writer.series("count/gradient-passes")
            for step in range(1, 11):
                writer.add(score, step, float(step))
                writer.add(count, step, passes * step)
        log.update_run(id, metrics={"val/score": 10.0}, started=1.0)
    assert command(workspace, "compare", *ids, "--at", "gradient-passes", "--json") == 0
    found = document(capsys)
    assert found["at"] == "At equal gradient passes: 10."
    assert [row["metrics"] for row in found["runs"]] == [{"val/score": 10.0}, {"val/score": 2.0}]
    assert command(workspace, "compare", *ids, "--at", "step") == 0
    assert capsys.readouterr().out.startswith("At equal steps: 10.")
    assert command(workspace, "compare", *ids, "--at", "tokens") == 2
    said = capsys.readouterr().err
    assert 'have not counted "tokens"' in said and "step, time, gradient-passes" in said


def test_compare_knows_defaults(workspace: Workspace, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    from engine.catalog import Catalog

    catalog = Catalog.load()
    plain = f'[task]\nuse = "{catalog.default("task")}"\n[model]\nuse = "{catalog.default("model")}"\n'
    default = catalog.sections["training"]["properties"]["batch_size"]["default"]
    ids = [log.create_run(plain), log.create_run(f"{plain}[training]\nbatch_size = {default}\n")]
    assert command(workspace, "compare", *ids, "--json") == 0
    assert document(capsys)["differs"] == []


def test_a_part_of_an_id_is_enough_if_only_one_has_it(
    workspace: Workspace, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    log.create_run("", id="aaaa111111", state="queued")
    log.create_run("", id="aaaa222222", state="queued")
    assert command(workspace, "stop", "aaaa") == 2
    assert "start of 2 runs" in capsys.readouterr().err
    assert command(workspace, "stop", "aaaa1", "--json") == 0
    assert document(capsys) == {"id": "aaaa111111", "state": "stopped", "step": 0}


def test_stop_of_a_dead_run_marks_it(workspace: Workspace, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    run_id = log.create_run("", state="training")
    log.update_run(run_id, pid=gone.pid, heartbeat=time.time())
    assert command(workspace, "stop", run_id) == 0
    row = log.run(run_id)
    assert row is not None and row["state"] == "interrupted"
    assert command(workspace, "stop", run_id) == 2
    assert "is interrupted already" in capsys.readouterr().err


def test_a_saved_run_is_evaluated_again(workspace: Workspace, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    text = """
task = { use = "two-moons", samples = 100 }
model = { use = "mlp", hidden = [8], dropout = 0.5 }
optimizer = { use = "sgd", lr = 0.1 }
budget = { steps = 3 }
"""
    id = log.create_run(text, state="starting")
    worker = ["-m", "engine.training.worker", "--workspace", str(workspace.folder), "--run", id]
    subprocess.run([sys.executable, *worker], check=True, capture_output=True)
    metrics = (log.run(id) or {})["metrics"]
    assert command(workspace, "evaluate", id, "--json") == 0
    own = document(capsys)
    assert own["run"] == id and own["metrics"] == {n: v for n, v in metrics.items() if n.startswith("test/")}
    assert command(workspace, "evaluate", id[:12], "--set", "decoder.use=mc-dropout", "--set", "decoder.samples=4") == 0
    out = capsys.readouterr().out
    assert "decoder/calls" in out and "4.0000" in out and "test/accuracy" in out
    assert command(workspace, "evaluate", id, "--set", "model.hidden=[4]") == 2
    assert "only decoder, training, task can be changed" in capsys.readouterr().err


def test_a_saved_run_is_transformed(workspace: Workspace, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = """
        task = { use = "two-moons", samples = 100 }
        model = { use = "mlp", hidden = [8], norm = "batch" }
        optimizer = { use = "sgd", lr = 0.1 }
        budget = { steps = 3 }
    """
    name = log.create_run(recipe, state="starting")
    worker = [sys.executable, "-m", "engine.training.worker", "--workspace", str(workspace.folder), "--run", name]
    assert subprocess.run(worker).returncode == 0
    assert command(workspace, "transform", name[:6], "--use", "fold", "--json") == 0
    found = document(capsys)
    assert found["id"] == name and found["scalars"]["transform/fold/norms"] == 1
    assert found["scalars"]["transform/fold/error"] < 1e-5
    assert (workspace.run_folder(name) / "transform-1-fold.pt").exists()
    assert command(workspace, "transform", name, "--use", "fold", "--set", "norms=false") == 0
    printed = capsys.readouterr().out
    assert "before" in printed and "test/accuracy" in printed and (workspace.run_folder(name).name in printed)
    for words, sentence in (
        (["--use", "fold", "--set", "norm=false"], "Did you mean 'norms'?"),
        (["--use", "lion"], "lion"),
        (["--use", "nothing"], "nothing"),
    ):
        assert command(workspace, "transform", name, *words) == 2
        assert sentence in capsys.readouterr().err
