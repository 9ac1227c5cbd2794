"""The commands as other programs call them: real processes, what they print, and how they exit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.log import Log
from engine.service.processes import ROOT, environment
from engine.workspace import RESOURCES, Workspace
from tests.end_to_end.steps import (
    ENDLESS,
    PATIENCE,
    STATEFUL,
    assert_same_curves,
    curves,
    end_processes_of,
    kill,
    never_interrupted,
    processes_of,
    recipe,
    wait_for_checkpoint_file,
    wait_for_step,
)
from tests.waiting import until

KEYS = ["id", "state", "steps", "seconds", "metrics", "weights"]
MEDIUM = {**STATEFUL, "budget": {"epochs": 0, "steps": 1500}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    place = Workspace(tmp_path_factory.mktemp("commands"))
    yield place
    end_processes_of(place)


@pytest.fixture(scope="module")
def saved(place: Workspace) -> Iterator[Log]:
    with Log(place.database) as log:
        yield log


def command(*words: object) -> list[str]:
    return [sys.executable, str(ROOT / "main.py"), *map(str, words)]


def main(place: Workspace, *words: object, **changes: str) -> subprocess.CompletedProcess[str]:
    values = environment({"ATHANOR_WORKSPACE": str(place.folder), **changes})
    return subprocess.run(command(*words), env=values, cwd=place.folder, capture_output=True, text=True, timeout=300)


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """The one JSON document that a command printed."""
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def file(place: Workspace) -> Path:
    path = place.folder / "recipe.toml"
    path.write_text(recipe(MEDIUM, {"name": "medium"}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(place: Workspace, file: Path) -> dict[str, Any]:
    """What `train --json` printed of the recipe with another seed."""
    done = main(place, "train", file, "--seed", 1, "--set", "budget.steps=300", "--set", "name='other seed'", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = document(done)
    return found


def test_train_prints_one_document(trained: dict[str, Any], place: Workspace, saved: Log) -> None:
    assert list(trained) == KEYS and (trained["state"], trained["steps"]) == ("done", 300)
    row = saved.run(trained["id"])
    assert row is not None and (row["seed"], row["name"], row["weights"]) == (1, "other seed", trained["weights"])
    outcome, _ = never_interrupted(recipe(MEDIUM, {"seed": 1, "budget": {"steps": 300}}))
    assert trained["weights"] == outcome.weights and trained["metrics"] == outcome.metrics
    other, _ = never_interrupted(recipe(MEDIUM, {"budget": {"steps": 300}}))
    assert other.weights != outcome.weights, "another seed, other weights"
    assert processes_of(place) == [], "nothing is left running"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("all_of_it", [True, False], ids=["terminal and worker", "terminal"])
def test_resume_after_a_kill_of_the_terminal(file: Path, place: Workspace, saved: Log, all_of_it: bool) -> None:
    words = command("train", file, "--workspace", place.folder, "--json")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as broken:
        run = until(lambda: next(iter(saved.runs(states=["training"])), None), PATIENCE)
        assert run is not None
        row = wait_for_checkpoint_file(saved, run["id"])
        os.killpg(broken.pid, signal.SIGKILL)
        if all_of_it:
            kill(row["pid"])
            until(lambda: not psutil.pid_exists(row["pid"]), 10)
    found = main(place, "resume", run["id"][:9], "--json")
    outcome, expected = never_interrupted(file.read_text(encoding="utf-8"))
    assert found.returncode == 0, found.stderr
    resumed = document(found)
    assert (resumed["id"], list(resumed)) == (run["id"], KEYS)
    assert (resumed["state"], resumed["steps"]) == ("done", outcome.steps)
    assert (resumed["weights"], resumed["metrics"]) == (outcome.weights, outcome.metrics)
    assert_same_curves(curves(saved, run["id"]), expected)
    until(lambda: not processes_of(place), 20)  # the worker that was followed is nobody's child


def test_stop_from_another_terminal(file: Path, place: Workspace, saved: Log) -> None:
    words = command("train", file, "--set", f"budget.steps={ENDLESS['budget']['steps']}", "--json")
    values = environment({"ATHANOR_WORKSPACE": str(place.folder)})
    with subprocess.Popen(words, env=values, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as training:
        run = until(lambda: next(iter(saved.runs(states=["training"])), None), PATIENCE)
        assert run is not None
        wait_for_step(saved, run["id"])
        stopped = main(place, "stop", run["id"], "--json")
        assert stopped.returncode == 0, stopped.stderr
        assert document(stopped)["id"] == run["id"] and document(stopped)["state"] == "stopped"
        output, _ = training.communicate(timeout=30)
    assert training.returncode == 0 and json.loads(output)["state"] == "stopped"
    assert json.loads(output)["steps"] == document(stopped)["step"] > 0
    again = main(place, "stop", run["id"])
    assert (again.returncode, again.stdout) == (2, "") and again.stderr == f"Run {run['id']} is stopped already.\n"


def test_a_run_that_diverges_exits_with_one(place: Workspace, saved: Log) -> None:
    path = place.folder / "diverges.toml"
    path.write_text(recipe({"task": {"use": "tabular", "dataset": "diabetes"}, "optimizer": {"lr": 1e4}}))
    done = main(place, "train", path, "--json")
    found = document(done)
    assert (done.returncode, found["state"]) == (1, "diverged")
    assert "was not a finite number at step " in done.stderr and done.stderr.count("\n") == 1


def test_the_other_documents(trained: dict[str, Any], file: Path, place: Workspace, saved: Log) -> None:
    checked = main(place, "check", file, "--json")
    assert checked.returncode == 0 and document(checked)["valid"] is True and document(checked)["problems"] == []
    assert document(checked)["model"]["parameters"] == (2 + 1) * 32 + (32 + 1) * 32 + (32 + 1) * 2
    parts = document(main(place, "parts", "--json"))
    assert {"id", "name", "slot", "kind", "papers", "summary", "schema", "import"} <= set(parts[0])
    slot = parts[0]["slot"]
    some = document(main(place, "parts", "--slot", slot, "--json"))
    assert some == [part for part in parts if part["slot"] == slot]
    module, _, name = parts[-1]["import"].partition(":")
    line = f"import {module} as m; print(m.{name}.__name__)"
    assert subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True).stdout.strip() == name

    runs = document(main(place, "runs", "--json"))
    assert [run["id"] for run in runs] == [run["id"] for run in saved.runs()]
    other = next(run["id"] for run in runs if run["name"] == "medium" and run["state"] == "done")
    compared = main(place, "compare", trained["id"], other, "--json")
    assert compared.returncode == 0, compared.stderr
    found = document(compared)
    assert [run["id"] for run in found["runs"]] == [trained["id"], other]
    differs = {row["path"]: row["values"] for row in found["differs"]}
    assert differs["seed"] == [1, 0] and differs["budget.steps"] == [300, 1500]
    doctor = main(place, "doctor", "--json")
    assert isinstance(document(doctor), dict)
    evidence = main(place, "evidence", "--json")
    assert evidence.returncode == 0 and isinstance(document(evidence), list)


OWN = '''
from engine.parts import Technique, technique

@technique(id="all-mine")
class Mine(Technique):
    """Counts its steps."""

    def average(self, run, role):
        run.log("all-mine/steps", float(run.step))
'''


def test_a_persons_own_part_trains_where_its_folder_is_named(place: Workspace, saved: Log) -> None:
    folder = place.folder / "my parts"
    folder.mkdir()
    (folder / "mine.py").write_text(OWN, encoding="utf-8")
    path = place.folder / "own.toml"
    path.write_text(recipe({"techniques": [{"use": "all-mine"}], "budget": {"epochs": 0, "steps": 5}}))
    refused = main(place, "train", path)
    assert refused.returncode == 2 and 'there is no technique "all-mine"' in refused.stderr
    done = main(place, "train", path, "--json", ATHANOR_PARTS=str(folder))
    assert done.returncode == 0, done.stderr
    assert saved.points(document(done)["id"], "all-mine/steps").values.tolist() == [0, 1, 2, 3, 4]


WRONG: dict[str, tuple[str, str]] = {
    "an unknown part": (recipe({"model": {"use": "mpl"}}), "model.use: there is no model \"mpl\". Did you mean 'mlp'?"),
    "a misspelt field": (
        recipe({"optimizer": {"momentun": 0.9}}),
        "optimizer.momentun: sgd has no field 'momentun'. Did you mean 'momentum'?",
    ),
    "out of range": (recipe({"optimizer": {"lr": 0}}), "optimizer.lr: 0 is not a number greater than 0."),
    "not a number": (recipe({"training": {"batch_size": "many"}}), 'training.batch_size: "many" is not a whole number'),
    "no such device": (recipe({"training": {"device": "gpu"}}), 'training.device: "gpu" is not'),
    "a model that does not fit": (recipe({"model": {"use": "cnn"}}), "model: "),
    "broken TOML": ("[task\nuse = 'digits'", "not valid TOML"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_recipes_start_nothing(name: str, place: Workspace, saved: Log) -> None:
    text, sentence = WRONG[name]
    path = place.folder / "wrong.toml"
    path.write_text(text, encoding="utf-8")
    before = saved.runs()
    done = main(place, "train", path, "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert saved.runs() == before and processes_of(place) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("train", "nowhere.toml"), "nowhere.toml"),
        (("train", "recipe.toml", "--set", "optimizer.lr"), "write path=value"),
        (("train", "recipe.toml", "--set", "optimizer.learning=1"), "has no field 'learning'"),
        (("train", "recipe.toml", "--seed", "one"), "--seed"),
        (("train",), "RECIPE.toml"),
        (("resume", "nothing"), "There is no run 'nothing'"),
        (("stop", "nothing"), "There is no run 'nothing'"),
        (("compare", "nothing"), "One run alone cannot be compared"),
        (("evidence", "nothing"), "There is no ablation 'nothing'"),
        (("trian",), "Did you mean 'train'?"),
    ],
)
def test_wrong_words_are_one_sentence(
    words: tuple[str, ...], sentence: str, file: Path, place: Workspace, saved: Log
) -> None:
    before = saved.runs()
    done = main(place, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert saved.runs() == before


def test_without_a_display_the_starter_trains_in_the_terminal(place: Workspace, saved: Log) -> None:
    gone = {"DISPLAY": "", "WAYLAND_DISPLAY": "", "QT_QPA_PLATFORM": ""}
    before = len(saved.runs())
    done = main(place, **gone)
    assert done.returncode == 0, done.stderr
    row = saved.runs()[0]
    assert len(saved.runs()) == before + 1 and row["state"] == "done"
    assert row["recipe"] == (RESOURCES / "recipes" / "start.toml").read_text(encoding="utf-8")
    assert row["metrics"]["test/accuracy"] >= 0.96
    for text in ("There is no display here", row["id"], "test/accuracy", row["weights"][:16], "train/loss by step"):
        assert text in done.stdout
    assert f"The run is saved in {place.folder}. To see it in the window, run `python main.py`" in done.stdout
    assert "step " in done.stderr, "its progress"
