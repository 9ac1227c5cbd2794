"""The doctor finds what is wrong and leaves everything as it was."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from engine.commands.doctor import database, devices, engine, folder, versions, window
from engine.log import SCHEMA_VERSION, Log
from engine.workspace import Workspace


def test_a_sound_database(workspace: Workspace, log: Log) -> None:
    log.create_run("")
    problems: list[dict[str, str]] = []
    found = database(workspace.database, problems)
    assert (found["state"], found["runs"], found["version"], problems) == ("sound", 1, SCHEMA_VERSION, [])


def test_no_database_is_made_by_looking(workspace: Workspace) -> None:
    assert database(workspace.database, [])["state"] == "not made yet"
    assert engine(workspace, []) == {"alive": False}
    assert not workspace.database.exists()


def test_a_newer_database(workspace: Workspace, log: Log) -> None:
    log.close()
    connection = sqlite3.connect(workspace.database)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    problems: list[dict[str, str]] = []
    assert database(workspace.database, problems)["state"] == "newer"
    assert "Update Athanor" in problems[0]["remedy"]
    assert engine(workspace, problems) == {"alive": False}


def test_a_damaged_database(workspace: Workspace) -> None:
    workspace.database.write_bytes(b"not a database" * 1000)
    problems: list[dict[str, str]] = []
    assert database(workspace.database, problems)["state"] == "damaged"
    assert ".recover" in problems[0]["remedy"]


def test_a_page_gone_bad_is_seen(workspace: Workspace, log: Log) -> None:
    for number in range(300):
        log.create_run("x" * 500, name=str(number))
    log.close()
    content = bytearray(workspace.database.read_bytes())
    for at in range(8192, len(content), 4096):
        content[at : at + 64] = b"\xff" * 64
    workspace.database.write_bytes(content)
    problems: list[dict[str, str]] = []
    assert database(workspace.database, problems)["state"] == "damaged" and len(problems) == 1


def test_this_machine_is_described(workspace: Workspace) -> None:
    problems: list[dict[str, str]] = []
    found = versions(problems)
    assert found["python"] and all(found[name] for name in ("numpy", "torch", "filelock"))
    assert folder(workspace, problems)["free"] > 0
    assert window([])["libraries"]


def test_a_torch_that_does_not_load_is_a_problem(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch_cpu.so: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    problems: list[dict[str, str]] = []
    assert devices(problems)["torch"] is None
    assert "libtorch_cpu.so" in problems[0]["what"] and "reinstall" in problems[0]["remedy"]
