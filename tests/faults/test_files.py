"""What lies in a workspace is its owner's alone, and nothing that comes from elsewhere is run."""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.catalog import Catalog
from engine.endpoints import Permissions
from engine.errors import AthanorError, CheckpointError
from engine.recipe import Recipe
from engine.service.clerk import Clerk
from engine.service.client import Engine
from engine.training import checkpoint
from engine.workspace import Workspace
from tests.end_to_end.steps import end_processes_of, recipe, wait_for
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="permissions")


@pytest.fixture
def lax() -> Iterator[None]:
    """A umask that lets everybody read and write what a program makes carelessly."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_all_files_are_the_owners_alone(lax: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATHANOR_SETTINGS", str(tmp_path / "settings"))
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o777)  # a folder of the person's own, which was there before
    workspace = Workspace(folder)
    engine = Engine(workspace)
    try:
        run = engine.queue(recipe())
        wait_for(engine.log, run, "done")
        child = engine.branch(run, {"seed": 3, "budget.epochs": 4})
        wait_for(engine.log, child, "done")
        with Clerk(workspace) as clerk:
            assert clerk.ask("evaluate", run=run).result(120)["metrics"]
        Permissions().allow("http://127.0.0.1:1", "")
        engine.shutdown()
        until(lambda: not engine.alive(), 30)
    finally:
        engine.close()
        end_processes_of(workspace)
    made = [path for top in (folder, tmp_path / "settings") for path in top.rglob("*")]
    names = {path.name for path in made}
    assert {"athanor.db", "engine.log", "clerk.log", "runs", "worker.log", "best.pt", "origin.checkpoint"} <= names
    open_to_others = {str(path): oct(stat.S_IMODE(path.stat().st_mode)) for path in made if path.stat().st_mode & 0o077}
    assert open_to_others == {}
    assert (tmp_path / "settings").stat().st_mode & 0o077 == 0


def test_a_new_workspace_is_the_owners_alone(lax: None, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "new")
    for path in (workspace.folder, workspace.run_folder("abc"), workspace.run_folder("abc").parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


class Evil:
    """What a pickle may hold: a call of anything."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_a_checkpoint_from_elsewhere_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    file = tmp_path / "step-000000001.pt"
    content: dict[str, Any] = {"format": checkpoint.FORMAT, "model": {"w": Evil(mark)}}
    torch.save(content, file)
    tampered = tmp_path / "tampered.pt"
    checkpoint.save(tampered, {"model": {"w": torch.ones(2)}})
    parts = tmp_path / "parts.pt"
    with zipfile.ZipFile(tampered) as old, zipfile.ZipFile(parts, "w") as new:
        for name in old.namelist():  # our own file with another pickle in it
            new.writestr(name, pickle.dumps(content, 2) if name.endswith("data.pkl") else old.read(name))
    bare = tmp_path / "bare.pt"
    bare.write_bytes(pickle.dumps(content, 2))
    legacy = tmp_path / "legacy.pt"
    torch.save(content, legacy, _use_new_zipfile_serialization=False)
    for path in (file, parts, bare, legacy):
        with pytest.raises(CheckpointError):
            checkpoint.load(path)
        assert not mark.exists(), path
    with pytest.raises(CheckpointError):
        checkpoint.newest(tmp_path)
    pickle.loads(bare.read_bytes())
    assert mark.exists(), "what a plain reading would have done"


def test_a_recipe_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "was-run"
    code = f"__import__('os').mkdir({str(mark)!r})"
    spellings = [code, f"!!python/object/apply:os.mkdir [{mark}]", f"{{{{{code}}}}}", f"$(mkdir {mark})", "os:mkdir"]
    catalog = Catalog.load()
    for text in spellings:
        for path in (
            "task.use",
            "model.use",
            "optimizer.lr",
            "model.hidden",
            "training.device",
            "name",
            "training.start_from",
        ):
            document = Recipe.parse(recipe())
            document.set(path, text)
            try:
                document.require(catalog)
                document.filled(catalog)
            except AthanorError:
                continue
    assert not mark.exists()


def test_parts_come_from_the_named_folder_alone(tmp_path: Path) -> None:
    """A Python file beside a recipe, or in the workspace, is no part."""
    mark = tmp_path / "was-run"
    for name in ("sitecustomize.py", "torch.py", "engine.py", "methods.py", "mine.py"):
        (tmp_path / name).write_text(f"open({str(mark)!r}, 'w')\n")
    (tmp_path / "recipe.toml").write_text(recipe())
    from engine.service.processes import ROOT, environment

    words = [sys.executable, str(ROOT / "main.py"), "check", "recipe.toml", "--workspace", str(tmp_path)]
    values = {name: value for name, value in environment().items() if name != "ATHANOR_PARTS"}
    done = subprocess.run(words, cwd=tmp_path, env=values, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not mark.exists()
