"""A disk that is full, for real: a small file system in memory, filled and freed again."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine.log import Log, SeriesWriter
from engine.training import checkpoint, loop
from engine.training.worker import work
from engine.workspace import Workspace
from tests.end_to_end.steps import assert_same_curves, curves, never_interrupted, recipe
from tests.waiting import until

Mount = Callable[[str], Path]


def fill(folder: Path, leave: int = 0) -> Path:
    """Takes what is free on a disk, but for some bytes."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        while True:
            free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - leave
            if free <= 0:
                return ballast
            try:
                file.write(bytes(min(free, 1 << 16)))
            except OSError:
                return ballast


def test_points_wait_until_there_is_room(mounted: Mount, times: Callable[[int], int]) -> None:
    chance = random.Random(int(os.environ.get("ATHANOR_SEED", "1")))
    folder = mounted("size=6m")
    path = folder / "athanor.db"
    with Log(path) as log:
        run = log.create_run("")
        step = 0
        with SeriesWriter(path, run, interval=0.005) as writer:
            handle = writer.series("loss")

            def some(step: int) -> int:
                """A thousand points more."""
                writer.extend(handle, np.arange(step, step + 1000), np.arange(step, step + 1000) / 7)
                return step + 1000

            for _ in range(times(4)):
                ballast = fill(folder, leave=chance.choice([0, 0, 4096, 40000]))
                while writer.error is None:
                    step = some(step)
                    writer.flush(wait=False)
                    threading.Event().wait(0.002)
                error = str(writer.error)
                assert "the disk is full. Free some space; what is not yet written is kept until then." in error
                shown = log.points(run, "loss")
                step = some(step)
                ballast.unlink()
                until(lambda: writer.error is None, 10)
                writer.flush()
                found = log.points(run, "loss")
                assert (found.steps == np.arange(step)).all() and (found.values == found.steps / 7).all()
                assert len(found) > len(shown)
                assert log._rows("PRAGMA integrity_check")[0]["integrity_check"] == "ok"
                if os.statvfs(folder).f_bavail * 4096 < 3 << 20:
                    break  # the points themselves have filled it


def test_a_checkpoint_that_has_no_room_leaves_the_others_alone(mounted: Mount, times: Callable[[int], int]) -> None:
    import torch

    chance = random.Random(int(os.environ.get("ATHANOR_SEED", "1")))
    folder = mounted("size=4m")
    target = folder / "step-000000001.pt"
    content = {"step": 1, "model": {f"w{n}": torch.randn(64, 64) for n in range(40)}}
    checkpoint.save(target, content)
    before = target.read_bytes()
    for _ in range(5 * times(4)):
        ballast = fill(folder, leave=chance.randrange(len(before)))
        for path in (target, folder / "step-000000002.pt"):
            try:
                checkpoint.save(path, {**content, "step": 2})
            except checkpoint.NotWritten as error:
                assert f"The checkpoint {path} could not be written: the disk is full. Free some space" in str(error)
            else:
                raise AssertionError("there was no room for it")
        assert sorted(path.name for path in folder.iterdir()) == ["ballast", target.name]
        assert target.read_bytes() == before
        ballast.unlink()
    checkpoint.save(target, {**content, "step": 2})
    assert checkpoint.load(target)["step"] == 2


def test_training_goes_on_through_a_full_disk(mounted: Mount) -> None:
    """Filled in the middle, freed later: the run ends as it would have, without a gap, and has said what happened."""
    text = recipe({"budget": {"epochs": 0, "steps": 3000}, "training": {"checkpoint_every": 0.05}})
    outcome, expected = never_interrupted(text)
    workspace = Workspace(mounted("size=24m") / "athanor")
    with Log(workspace.database) as log:
        run = log.create_run(text, state="starting")
        folder = workspace.run_folder(run)

        def disturb() -> None:
            until(lambda: len(checkpoint.step_files(folder)) > 1, 60, 0.005)
            ballast = fill(workspace.folder)
            threading.Event().wait(0.5)
            ballast.unlink()

        thread = threading.Thread(target=disturb)
        thread.start()
        work(workspace, run)
        thread.join()
        row = log.run(run) or {}
        assert (row["state"], row["weights"], row["metrics"]) == ("done", outcome.weights, outcome.metrics)
        assert_same_curves(curves(log, run), expected)
        said = [event["text"] for event in log.events(run) if event["kind"] == "checkpoint"]
        assert "training goes on without" in said[0] and "the disk is full. Free some space" in said[0]
        assert said[-1] == "Checkpoints are written again."
        assert not list(folder.glob("*.part"))
        assert checkpoint.load(checkpoint.step_files(folder)[-1][1])["step"] == 3000


def test_a_last_checkpoint_without_room_is_made_up_for(mounted: Mount, tmp_path: Path, monkeypatch: Any) -> None:
    """It waits for a while, then says what is missing; with room it goes on from what is there and ends as it would."""
    monkeypatch.setattr(loop, "LAST_TRY", 0.3)
    text = recipe({"budget": {"epochs": 0, "steps": 100}, "training": {"checkpoint_every": 1000}})
    outcome, expected = never_interrupted(text)
    workspace, small = Workspace(tmp_path / "athanor"), mounted("size=1m")
    (workspace.folder / "runs").symlink_to(small)
    with Log(workspace.database) as log:
        run = log.create_run(text, state="starting")
        folder, save = workspace.run_folder(run), checkpoint.save

        def save_and_fill(path: Path, content: dict[str, Any]) -> None:
            save(path, content)
            fill(small)

        monkeypatch.setattr(checkpoint, "save", save_and_fill)
        work(workspace, run)
        monkeypatch.undo()
        row = log.run(run) or {}
        assert row["state"] == "failed" and row["message"].startswith("The run came to step 100, and its last")
        assert row["message"].endswith("Resume goes on from the newest checkpoint.")
        assert "the disk is full. Free some space" in row["message"]
        assert sorted(path.name for path in folder.iterdir()) == ["step-000000000.pt"]
        (small / "ballast").unlink()
        work(workspace, run)
        row = log.run(run) or {}
        assert (row["state"], row["weights"], row["metrics"]) == ("done", outcome.weights, outcome.metrics)
        assert_same_curves(curves(log, run), expected)
