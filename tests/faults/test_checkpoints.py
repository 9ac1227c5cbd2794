"""Checkpoint files cut, or with bytes changed, at random places: never read as if nothing were, never in the way."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import CheckpointError
from engine.log import Log
from engine.training import checkpoint
from engine.training.worker import work
from engine.workspace import Workspace
from tests.end_to_end.steps import never_interrupted, recipe

SHORT: dict[str, Any] = {"budget": {"epochs": 0, "steps": 300}, "training": {"checkpoint_every": 0.02, "keep": 100}}


def damage(path: Path, chance: random.Random) -> str:
    """One thing that a power loss or a tired disk does to a file; what it did."""
    whole = bytearray(path.read_bytes())
    kind = chance.choice(["cut", "flip", "zeros", "cut"])
    at = chance.randrange(len(whole))
    if kind == "cut":
        whole = whole[:at]
    elif kind == "flip":
        whole[at] ^= 1 << chance.randrange(8)
    else:  # blocks that never came to the disk
        whole[at : at + 4096] = bytes(len(whole[at : at + 4096]))
    path.write_bytes(whole)
    return f"{kind} at {at}"


def test_what_is_damaged_is_not_read_as_if_it_were_whole(tmp_path: Path, times: Callable[[int], int]) -> None:
    """A change that is not noticed lies where nothing is read: between the records, or in the times of the archive."""
    chance = random.Random(int(os.environ.get("ATHANOR_SEED", "1")))
    text = recipe(SHORT)
    workspace = Workspace(tmp_path)
    with Log(workspace.database) as log:
        run = log.create_run(text, state="starting")
        work(workspace, run)
    path = checkpoint.step_files(workspace.run_folder(run))[-1][1]
    content = checkpoint.load(path)
    kept = path.read_bytes()
    refused = 0
    rounds = 20 * times(10)
    for _ in range(rounds):
        path.write_bytes(kept)
        what = damage(path, chance)
        try:
            found = checkpoint.load(path)
        except CheckpointError as error:
            assert "is damaged or not one of ours: " in str(error)
            refused += 1
        else:
            assert repr(found) == repr(content), what
            assert checkpoint.fingerprint(found["model"]) == checkpoint.fingerprint(content["model"]), what
    assert refused > rounds / 2
    print(f"{refused} of {rounds} damaged files refused, the others held what was written")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, times: Callable[[int], int]) -> None:
    chance = random.Random(int(os.environ.get("ATHANOR_SEED", "1")))
    text = recipe(SHORT)
    outcome, _ = never_interrupted(text)
    workspace = Workspace(tmp_path)
    with Log(workspace.database) as log:
        run = log.create_run(text, state="starting")
        work(workspace, run)
        folder, whole = workspace.run_folder(run), tmp_path / "whole"
        shutil.copytree(folder, whole)
        for _ in range(times(4)):
            shutil.rmtree(folder)
            shutil.copytree(whole, folder)
            files = checkpoint.step_files(folder)
            assert len(files) > 2
            hurt = {path for _, path in files[-chance.randrange(1, len(files)) :]}
            for path in hurt:
                path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])
            good = max(step for step, path in files if path not in hurt)
            after = max((event["id"] for event in log.events(run)), default=0)
            work(workspace, run)
            row = log.run(run) or {}
            assert (row["state"], row["weights"], row["metrics"]) == ("done", outcome.weights, outcome.metrics)
            told = [e["text"] for e in log.events(run, after) if e["kind"] == "checkpoint"]
            assert len(told) == len(hurt)
            for text in told:
                assert f"Training goes on from step {good}, the checkpoint before it." in text
            assert {path.stem for path in folder.glob("*.damaged")} == {path.stem for path in hurt}


def test_where_none_can_be_read_nothing_is_overwritten(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with Log(workspace.database) as log:
        run = log.create_run(recipe(SHORT), state="starting")
        work(workspace, run)
        folder = workspace.run_folder(run)
        for _, path in checkpoint.step_files(folder):
            path.write_bytes(b"")
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        work(workspace, run)
        row = log.run(run) or {}
        assert row["state"] == "failed"
        assert "checkpoints in " in row["message"] and "Nothing was overwritten: put one back" in row["message"]
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_half_written_files_of_a_killed_process_go(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with Log(workspace.database) as log:
        run = log.create_run(recipe(SHORT), state="starting")
        folder = workspace.run_folder(run)
        for name in ("step-000000007.part", "best.part"):
            (folder / name).write_bytes(b"half")
        work(workspace, run)
        assert not list(folder.glob("*.part"))


def test_a_device_without_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    path = tmp_path / "step-000000001.pt"
    checkpoint.save(path, {"step": 1})

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(torch.OutOfMemoryError):
        checkpoint.newest(tmp_path)
    assert path.exists()
