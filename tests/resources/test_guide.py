"""The guide is followed to the letter: its files, its recipe, its commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine.workspace import RESOURCES

ROOT = Path(__file__).resolve().parents[2]
GUIDE = RESOURCES / "docs" / "write-a-part.md"
FILE = re.compile(r"```\w+\n# ~/my-parts/(\S+)\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A home with the guide's folder, filled with the guide's files."""
    home = tmp_path_factory.mktemp("home")
    parts = home / "my-parts"
    parts.mkdir()
    files = FILE.findall(GUIDE.read_text(encoding="utf-8"))
    assert sorted(Path(name).suffix for name, _ in files) == [*[".py"] * 5, ".toml"]
    for name, text in files:
        (parts / name).write_text(text, encoding="utf-8")
    return {**os.environ, "HOME": str(home), "ATHANOR_PARTS": str(parts), "ATHANOR_WORKSPACE": str(home / "work")}


def commands(start: str) -> list[list[str]]:
    """The guide's commands that begin like this, as words, the home written out later."""
    lines = [line for line in GUIDE.read_text(encoding="utf-8").splitlines() if line.startswith(start)]
    return [re.findall(r'"([^"]*)"|(\S+)', line) for line in lines]  # type: ignore[misc]


def run(line: list[str], environment: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    words = [(quoted or plain).replace("~", environment["HOME"]) for quoted, plain in line]  # type: ignore[misc]
    assert words[0] == "python"
    return subprocess.run(
        [sys.executable, *words[1:], *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_recipe_is_right_and_trains(environment: dict[str, str]) -> None:
    check, train = commands("python main.py")
    checked = run(check, environment)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    trained = run(train, environment, "--json")
    assert trained.returncode == 0, trained.stderr
    outcome = json.loads(trained.stdout)
    assert outcome["state"] == "done" and outcome["metrics"]["test/accuracy"] > 0.8


def test_the_parts_pass_the_contract_suite(environment: dict[str, str]) -> None:
    (line,) = commands("python -m pytest")
    done = run(line, environment, "-q")
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 40
