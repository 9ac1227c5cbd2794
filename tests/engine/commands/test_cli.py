"""The command line as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.commands.cli import COMMANDS, run
from engine.service.processes import ROOT
from engine.workspace import Workspace


def no_window(words: list[str], workspace: Workspace) -> int:
    raise AssertionError("the window was opened")


def python(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, **options)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["--help"], no_window)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name, words in COMMANDS.items():
        assert any(line.split(None, 1) == [name, words] for line in text.splitlines()), name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run([command, "--help"], no_window)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: main.py {command} ") and "--json" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["mine.toml"], "main.py train mine.toml"),
        (["resume", "zz"], "no run 'zz'"),
        (["stop", "zz"], "no run 'zz'"),
        (["compare", "one"], "Name two or more"),
        (["compare", "one", "two"], "no run 'one'"),
        (["train", "nowhere.toml"], "There is no recipe file nowhere.toml."),
        (["check", "nowhere.toml"], "There is no recipe file nowhere.toml."),
        (["evidence", "--sample", "0"], "1 or more"),
        (["evidence", "no-such"], "There is no ablation 'no-such'"),
        (["evidence", "--all", "--sample", "1"], "one of the three"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    words: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    workspace: Workspace,
) -> None:
    monkeypatch.setenv("ATHANOR_WORKSPACE", str(workspace.folder))
    assert run(words, no_window) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.out == "" and captured.err.count("\n") == 1


@pytest.mark.parametrize("words", [["train"], ["--nothing"], ["runs", "--what"], ["train", "x", "--seed", "a"]])
def test_wrong_usage_is_one_sentence(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(words, no_window)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_workspace_that_cannot_be_used_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run(["runs", "--workspace", str(tmp_path / "file" / "below")], no_window) == 2
    assert "cannot be used" in capsys.readouterr().err


def test_a_damaged_database_is_one_sentence(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.database.write_bytes(b"no database at all" * 500)
    assert run(["runs", "--workspace", str(workspace.folder)], no_window) == 2
    captured = capsys.readouterr()
    assert str(workspace.database) in captured.err and "Traceback" not in captured.err


def test_starting_imports_next_to_nothing() -> None:
    heavy = ["torch", "PySide6", "rich", "numpy", "pydantic", "sqlite3", "tomlkit"]
    done = python(f"import sys, main; print([name for name in {heavy} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_no_command_imports_torch_or_qt() -> None:
    modules = ", ".join(f"engine.commands.{name}" for name in [*COMMANDS, "start"])
    done = python(f"import sys, {modules}; print([n for n in ('torch', 'PySide6', 'app') if n in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(workspace: Workspace) -> None:
    command = f"{sys.executable} main.py parts | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_parts_lists_what_the_catalog_has(capsys: pytest.CaptureFixture[str]) -> None:
    from engine.catalog import Catalog

    assert run(["parts", "--json"], no_window) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {part["id"] for part in listed} == set(Catalog.load().parts)
    keys = {"id", "name", "slot", "kind", "papers", "summary", "schema", "import"}
    assert all(set(part) == keys and part["import"].count(":") == 1 for part in listed)
    slot = listed[0]["slot"]
    assert run(["parts", "--slot", slot, "--json"], no_window) == 0
    assert json.loads(capsys.readouterr().out) == [part for part in listed if part["slot"] == slot]


def test_without_words_the_window_opens_where_there_is_a_display(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def window(words: list[str], where: Workspace) -> int:
        opened.append((words, where.folder))
        return 7

    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    assert run(["--workspace", str(workspace.folder)], window) == 7
    assert opened == [([], workspace.folder)]
