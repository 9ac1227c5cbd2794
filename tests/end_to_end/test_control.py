"""Pause, resume, stop, branch and checkpoint, through the client and with the real worker; and the two bad ends."""

from __future__ import annotations

import math

import psutil
import pytest
import torch

from engine.errors import RecipeError, ServiceError
from engine.log import Log
from engine.recipe import Recipe
from engine.service.client import Engine
from engine.training import checkpoint
from tests.end_to_end.steps import (
    LONG,
    LONG_STATEFUL,
    PATIENCE,
    STATEFUL,
    STEPS,
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


def test_pause_stop_and_resume_leave_no_trace_in_the_result(engine: Engine, log: Log) -> None:
    text = recipe(LONG_STATEFUL)
    run = engine.queue(text)
    wait_for_step(log, run)
    assert answer(engine, engine.pause(run)) == {"result": "asked"}
    paused = wait_for(log, run, "paused")
    step = paused["step"]
    assert 0 < step < STEPS and paused["message"] == f"Paused at step {step}."
    assert checkpoint_steps(paused)[-1] == step and paused["request"] == ""
    beat = paused["heartbeat"]
    still = until(lambda: row if (row := row_of(log, run))["heartbeat"] > beat + 1 else None, 20) or {}
    assert still["step"] == step and still["pid"] == paused["pid"] and psutil.pid_exists(still["pid"])
    points = log.points(run, "train/loss").steps
    assert points.tolist() == list(range(step)), "everything up to the pause is there"

    other = wait_for(log, engine.queue(recipe()), "done")
    assert other["step"] == other["steps"] and row_of(log, run)["state"] == "paused", "its place was free meanwhile"

    assert answer(engine, engine.resume(run)) == {"result": "asked"}
    row = wait_for_step(log, run, beyond=step)
    assert row["pid"] == paused["pid"] and row["message"] == "", "a paused run waits in its process"

    assert answer(engine, engine.stop(run)) == {"result": "asked"}
    stopped = wait_for(log, run, "stopped")
    assert stopped["message"] == f"Stopped at step {stopped['step']}." and stopped["ended"]
    assert checkpoint_steps(stopped)[-1] == stopped["step"] < STEPS and stopped["weights"]

    assert answer(engine, engine.resume(run)) == {"result": "queued"}
    row = wait_for(log, run, "done")
    outcome, expected = never_interrupted(text)
    assert (row["weights"], row["step"]) == (outcome.weights, outcome.steps)
    assert row["metrics"] == outcome.metrics
    assert_same_curves(curves(log, run), expected)
    assert answer(engine, engine.resume(run))["error"].startswith(f"Run {run} is done: nothing is left to train.")


def test_a_branch_goes_on_from_a_checkpoint_with_other_settings(engine: Engine, log: Log) -> None:
    text = recipe(LONG)
    run = engine.queue(text)
    taken = checkpoint_steps(wait_for_checkpoint(log, run))[-1]
    same = engine.branch(run, {"name": "the same"})
    at = row_of(log, same)["parent_step"]
    assert at >= taken and row_of(log, same)["parent"] == run
    wait_for_checkpoint(log, run, lambda step: step > at)
    assert answer(engine, engine.checkpoint(run)) == {"result": "asked"}
    other = engine.branch(run, {"optimizer.lr": 0.001, "budget.steps": 10_100, "name": "slower"})
    parent = wait_for(log, run, "done")
    with pytest.raises(ServiceError, match="has no checkpoint 1 to go on from"):
        engine.branch(run, {}, 1)
    assert answer(engine, engine.delete(run)) == {"result": "deleted"}, "a branch does not need its parent any more"

    row = wait_for(log, same, "done")
    outcome, expected = never_interrupted(text)
    assert parent["weights"] == outcome.weights
    assert row["weights"] == outcome.weights, "without a change, a branch is what its parent would have become"
    assert curves(log, same)["train/loss"] == tuple(half[at:] for half in expected["train/loss"])

    row = wait_for(log, other, "done")
    at = row["parent_step"]
    assert (row["step"], row["name"], Recipe.parse(row["recipe"]).get("optimizer.lr")) == (
        10_100,
        "slower",
        0.001,
    )
    assert curves(log, other)["lr"] == (list(range(at, 10_100)), [0.001] * (10_100 - at))


def test_a_loss_that_is_no_number_ends_the_run_as_diverged(engine: Engine, log: Log) -> None:
    text = recipe(
        {
            "task": {"use": "tabular", "dataset": "diabetes"},
            "optimizer": {"use": "sgd", "lr": 200.0, "momentum": 0.0},
            "schedule": {"use": "super-convergence", "cycle_momentum": False, "div": 1e6},
            "training": {"checkpoint_every": 0.1, "evaluate_every": 1000},
            "budget": {"epochs": 0, "steps": 4_000_000},
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


@pytest.mark.parametrize(
    ("patch", "sentence"),
    [
        ({"model": {"use": "no-such-model"}}, 'model.use: there is no model "no-such-model".'),
        ({"model": {"use": "cnn"}}, "model: "),
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
    assert found["problems"] == [] and found["model"]["parameters"] == (2 + 1) * 32 + (32 + 1) * 32 + (32 + 1) * 2
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
