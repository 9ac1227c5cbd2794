"""Pause, resume, stop, branch and checkpoint, through the client and with the real worker; and the two bad ends."""

from __future__ import annotations

import math

import psutil
import pytest
import torch

from engine.errors import RecipeError
from engine.log import Log
from engine.recipe import Recipe
from engine.service.client import Engine
from engine.training import checkpoint
from tests.end_to_end.steps import (
    ENDLESS,
    PATIENCE,
    STATEFUL,
    answer,
    assert_same_curves,
    checkpoint_steps,
    curves,
    never_interrupted,
    recipe,
    row_of,
    wait_for,
    wait_for_checkpoint,
    wait_for_step,
)
from tests.waiting import until

LONG = {"budget": {"epochs": 0, "steps": 12_000}}


def test_pause_stop_and_resume_leave_no_trace_in_the_result(engine: Engine, log: Log) -> None:
    text = recipe(STATEFUL, LONG)
    run = engine.queue(text)
    wait_for_step(log, run)
    assert answer(engine, engine.pause(run)) == {"result": "asked"}
    paused = wait_for(log, run, "paused")
    step = paused["step"]
    assert 0 < step < 12_000 and paused["message"] == f"Paused at step {step}."
    assert checkpoint_steps(paused)[-1] == step and paused["request"] == ""
    beat = paused["heartbeat"]
    still = until(lambda: row if (row := row_of(log, run))["heartbeat"] > beat + 1 else None, 20) or {}
    assert still["step"] == step and still["pid"] == paused["pid"] and psutil.pid_exists(still["pid"])
    points = log.points(run, "train/loss").steps
    assert points.tolist() == list(range(step)), "everything up to the pause is there"

    assert answer(engine, engine.resume(run)) == {"result": "asked"}
    row = wait_for_step(log, run, beyond=step)
    assert row["pid"] == paused["pid"] and row["message"] == "", "a paused run waits in its process"

    assert answer(engine, engine.stop(run)) == {"result": "asked"}
    stopped = wait_for(log, run, "stopped")
    assert stopped["message"] == f"Stopped at step {stopped['step']}." and stopped["ended"]
    assert checkpoint_steps(stopped)[-1] == stopped["step"] < 12_000 and stopped["weights"]

    assert answer(engine, engine.resume(run)) == {"result": "queued"}
    row = wait_for(log, run, "done")
    outcome, expected = never_interrupted(text)
    assert (row["weights"], row["step"]) == (outcome.weights, outcome.steps)
    assert row["metrics"] == outcome.metrics
    assert_same_curves(curves(log, run), expected)
    assert answer(engine, engine.resume(run))["error"].startswith(f"Run {run} is done: nothing is left to train.")


def test_a_paused_run_gives_its_place_to_another(engine: Engine, log: Log) -> None:
    first = engine.queue(recipe(ENDLESS))
    wait_for_step(log, first)
    answer(engine, engine.pause(first))
    wait_for(log, first, "paused")
    second = engine.queue(recipe())
    assert wait_for(log, second, "done")["step"] == row_of(log, second)["steps"]
    assert row_of(log, first)["state"] == "paused"
    answer(engine, engine.stop(first))
    wait_for(log, first, "stopped")


def test_a_branch_goes_on_from_a_checkpoint_with_other_settings(engine: Engine, log: Log) -> None:
    text = recipe(LONG)
    run = engine.queue(text)
    wait_for_checkpoint(log, run)
    assert answer(engine, engine.checkpoint(run)) == {"result": "asked"}
    answer(engine, engine.stop(run))
    parent = wait_for(log, run, "stopped")
    step = parent["step"]

    same = engine.branch(run, {"name": "the same"})
    other = engine.branch(run, {"optimizer.lr": 0.001, "budget.steps": step + 500, "name": "slower"}, step=step)
    row = row_of(log, other)
    assert (row["parent"], row["parent_step"], row["name"]) == (run, step, "slower")
    row = wait_for(log, same, "done")
    outcome, expected = never_interrupted(text)
    assert row["weights"] == outcome.weights, "without a change, a branch is what its parent would have become"
    losses = curves(log, same)["train/loss"]
    assert losses == (expected["train/loss"][0][step:], expected["train/loss"][1][step:])

    row = wait_for(log, other, "done")
    assert row["step"] == step + 500 and Recipe.parse(row["recipe"]).get("optimizer.lr") == 0.001
    assert curves(log, other)["lr"] == (list(range(step, step + 500)), [0.001] * 500)
    assert row_of(log, run)["state"] == "stopped", "the parent is left alone"


def test_a_branch_from_the_best_weights(engine: Engine, log: Log) -> None:
    run = engine.queue(recipe({"budget": {"epochs": 60}}))
    parent = wait_for(log, run, "done")
    assert "best" in [entry["name"] for entry in parent["checkpoints"]]
    child = engine.branch(run, {"budget.epochs": 61}, step="best")
    row = wait_for(log, child, "done")
    best = checkpoint.load(engine.workspace.run_folder(run) / "best.pt")
    assert row["parent_step"] == best["step"]
    first = int(log.points(child, "train/loss").steps[0])
    assert first == best["step"]
    last = engine.branch(run, {"budget.epochs": 61}, step="last")
    assert row_of(log, last)["parent_step"] == parent["step"]
    assert wait_for(log, last, "done")["step"] > parent["step"]


def test_a_loss_that_is_no_number_ends_the_run_as_diverged(engine: Engine, log: Log) -> None:
    text = recipe(
        {
            "task": {"use": "tabular", "dataset": "diabetes"},
            "optimizer": {"use": "sgd", "lr": 200.0, "momentum": 0.0},
            "schedule": {"use": "super-convergence", "cycle_momentum": False, "div": 1e6},
            "training": {"checkpoint_every": 0.1, "evaluate_every": 1000},
            "budget": {"epochs": 0, "steps": 400_000},
        }
    )
    run = engine.queue(text)
    row = wait_for(log, run, "diverged")
    points = log.points(run, "train/loss")
    bad = next(step for step, value in zip(points.steps, points.values, strict=True) if not math.isfinite(value))
    assert f"not a finite number at step {bad}" in row["message"]
    assert [e["text"] for e in log.events(run) if e["level"] == "error"] == [row["message"]]
    folder = engine.workspace.run_folder(run)
    steps = [step for step, _ in checkpoint.step_files(folder)]
    assert steps == checkpoint_steps(row) and 0 < steps[-1] <= bad, "the last good one is kept"
    weights = checkpoint.load(checkpoint.step_file(folder, steps[-1]))["model"]
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    tame = engine.branch(run, {"optimizer.lr": 1e-3, "budget.steps": steps[-1] + 50})
    assert wait_for(log, tame, "done")["step"] == steps[-1] + 50


@pytest.mark.parametrize(
    ("patch", "sentence"),
    [
        ({"model": {"use": "no-such-model"}}, "no-such-model"),
        ({"optimizer": {"lr": -1.0}}, "optimizer.lr: -1.0 is not a number greater than 0."),
        ({"model": {"use": "cnn"}}, "model"),
        ({"training": {"device": "cuda:63"}}, 'training.device: "cuda:63" is not a device here'),
    ],
)
def test_what_cannot_be_built_fails_with_a_sentence(engine: Engine, log: Log, patch: dict, sentence: str) -> None:
    run = engine.queue(recipe(patch))
    row = wait_for(log, run, "failed")
    assert sentence in row["message"] and "Traceback" not in row["message"] and row["ended"]
    events = [event for event in log.events(run) if event["level"] == "error"]
    assert [event["text"] for event in events] == [row["message"]], "a person's mistake needs no traceback"
    assert checkpoint_steps(row) == [] and log.series(run) == []


def test_text_that_is_no_recipe_never_reaches_the_queue(engine: Engine, log: Log) -> None:
    before = len(log.runs())
    with pytest.raises(RecipeError, match="line 1"):
        engine.queue("[task\nuse = 1")
    assert len(log.runs()) == before


def test_questions_are_answered_by_the_clerk(engine: Engine, log: Log) -> None:
    found = answer(engine, engine.preview(recipe(STATEFUL)), PATIENCE)
    assert found["problems"] == [] and found["model"]["parameters"] == 2 * 32 + 32 + 32 * 32 + 32 + 32 * 2 + 2
    found = answer(engine, engine.preview(recipe({"model": {"use": "mlp", "hiden": [3]}})), PATIENCE)
    assert [problem["path"] for problem in found["problems"]] == ["model.hiden"]
    run = engine.queue(recipe())
    wait_for(log, run, "done")
    use = {"use": "filter-normalized-landscape", "grid": 3, "samples": 32, "show": "surface"}
    found = answer(engine, engine.probe(run, use), PATIENCE)
    assert "error" not in found, found
    figures = log.figures(run)
    assert figures and {figure["probe"] for figure in figures} == {"filter-normalized-landscape"}
    assert {figure["step"] for figure in figures} == {row_of(log, run)["step"]}
    assert row_of(log, run)["state"] == "done", "looking changes nothing"
