"""Permissions and secrets on the command line, and a recipe that is refused until a person has allowed its server."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from engine import endpoints
from engine.commands.cli import DONE, WRONG, run
from engine.endpoints import Permissions
from engine.log import Log
from engine.workspace import Workspace
from tests.engine.test_endpoints import ring  # noqa: F401

RECIPE = """
[task]
use = "sentence-rules"
samples = 16

[procedure]
use = "textgrad"
engine = { use = "chat-endpoint", model = "small", url = "http://127.0.0.1:1/v1", secret = "mine" }
"""


def no_window(words: list[str], workspace: Workspace) -> int:
    raise AssertionError("the window was opened")


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = run(list(words), no_window)
    out = capsys.readouterr()
    return code, out.out + out.err


def test_allowing_listing_and_taking_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "allow") == (DONE, "No machine is allowed: nothing is sent anywhere.\n")
    assert said(capsys, "allow", "http://LOCALHOST:8080/v1")[0] == DONE
    assert said(capsys, "allow", "https://a.de", "--secret", "mine")[0] == DONE
    assert said(capsys, "allow") == (DONE, "http://localhost:8080\nhttps://a.de  with mine\n")
    assert '"https://a.de"' in said(capsys, "allow", "--json")[1]
    assert said(capsys, "allow", "https://a.de", "--remove")[0] == DONE
    assert said(capsys, "allow", "https://a.de", "--remove")[0] == WRONG
    assert Permissions().always() == {"http://localhost:8080": []}
    assert "no address" in said(capsys, "allow", "a.de")[1]
    assert said(capsys, "allow", "--remove")[0] == WRONG


def test_a_recipe_is_refused_before_a_run_is_made(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, folder = tmp_path / "mine.toml", tmp_path / "workspace"
    path.write_text(RECIPE)
    code, text = said(capsys, "train", str(path), "--workspace", str(folder))
    assert code == WRONG and "`python main.py allow http://127.0.0.1:1 --secret mine`" in text
    with Log(Workspace(folder).database) as log:
        assert log.runs(archived=None) == []


def test_a_secret_is_read_from_standard_input(
    capsys: pytest.CaptureFixture[str],
    ring: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("abc-123\n"))
    code, text = said(capsys, "secret", "set", "mine")
    assert code == DONE and "abc-123" not in text and endpoints.secret("mine") == "abc-123"
    assert said(capsys, "secret", "remove", "mine")[0] == DONE and ring.kept == {}
    assert said(capsys, "secret", "remove", "mine") == (WRONG, "The keyring holds no secret 'mine'.\n")
