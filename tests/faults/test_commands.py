"""Words on the command line, rows of the commands table and lines to the clerk, of every odd kind."""

from __future__ import annotations

import io
import json
import random
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.commands.cli import COMMANDS, run
from engine.log import Log
from engine.service.service import Service
from engine.training import clerk
from engine.workspace import Workspace
from tests.engine.service.conftest import CLERK, WORKER
from tests.faults.mutations import ODD, TEXTS, said_well
from tests.faults.tries import tries
from tests.waiting import until

WORDS = [
    *("", "-", "--", "--json", "--set", "--set=", "--seed", "--seed=1e9", "--workspace", "--wait", "nan", "-1"),
    "é\u202e",
    *("optimizer.lr=nan", "a=1", "=", "x.y.z=[[[", "seed=-1", "seed=1e400", "task.use=''", "--split", "--slot"),
    "\udcff",
    *("../..", "/nowhere/x.toml", "zz", "%", "--limit", "999999999999999999999", "--force", "--sort", "--help-me"),
    "\x00",
    *("a" * 3000, "http://", "http://[", "ftp://x:y@z:99999", "http://127.0.0.1:1", "--remove", "--secret", "'", "[]"),
]  # fmt: skip
# Those that would train, or ask the keyring or the display, have tests of their own.
TRIED = [name for name in COMMANDS if name not in ("doctor", "secret", "evidence")]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("ATHANOR_SETTINGS", str(tmp_path / "settings"))
    monkeypatch.setenv("ATHANOR_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def log(workspace: Workspace) -> Iterator[Log]:
    with Log(workspace.database) as log:
        yield log


def test_command_lines(workspace: Workspace, log: Log, capfd: pytest.CaptureFixture[str]) -> None:
    ids = [log.create_run("not a recipe [", name="x", state=state) for state in ("done", "failed")]
    log.update_run(ids[0], metrics={"a": float("nan")}, checkpoints=[], step=2**62)
    Path("odd.toml").write_text("training = 3\nphases = [1]\n", encoding="utf-8")
    Path("bytes.toml").write_bytes(b"\xff\xfe\x00[")
    for number in tries(250):
        rng = random.Random(40_000_003 + number)
        words = [rng.choice([*TRIED, "train", "check"])]
        words += [rng.choice([*WORDS, *ids, "odd.toml", "bytes.toml"]) for _ in range(rng.randint(0, 4))]
        if words[0] == "resume" and set(words) & set(ids):
            continue  # that would start a worker
        code: Any
        try:
            code = run(words, lambda *_: 0)
        except SystemExit as end:
            code = end.code
        except Exception as error:
            raise AssertionError(f"try {number}: {words!r}: {type(error).__name__}: {error}") from error
        said = capfd.readouterr()
        assert code in (0, 1, 2), (number, words, code)
        assert "Traceback" not in said.err + said.out, (number, words)
        assert code == 0 or said_well(said.err + said.out), (number, words)


def test_rows_of_the_commands_table(workspace: Workspace, log: Log) -> None:
    """Whatever another program writes there is answered, or refused in a sentence, and the service goes on."""
    done = log.create_run("", state="done")
    service = Service(workspace, worker_command=WORKER, clerk_command=CLERK, keep_spare=False, gpus=0)
    service.monitor.start()
    verbs = [*service._verbs, "dance", "", "é" * 500, "stop; DROP TABLE runs", 5, b"\x00\xff"]
    verbs = [verb for verb in verbs if verb != "shutdown"]
    raw = sqlite3.connect(workspace.database, isolation_level=None)
    asked: list[int] = []
    try:
        for number in tries(12):
            rng = random.Random(50_000_017 + number)
            for _ in range(25):
                args: Any = rng.choice(["", "{", "null", "[]", "3", '"x"', "{}", b"\xff", "NaN", "[" * 5000, None])
                if args is None:
                    keys = ("run", "target", "recipe", "section", "slots", "pid", "priority", "position", "force", "x")
                    args = json.dumps({rng.choice(keys): rng.choice(ODD) for _ in range(3)}, default=str)
                row = (rng.choice(verbs), rng.choice([None, "", done, "zz", 7, b"\x01", "%"]), args)
                created = rng.choice([0.0, 1e300, -1.0, 1.0])
                sql = "INSERT INTO commands (verb, run, args, created, state) VALUES (?, ?, ?, ?, 'new')"
                asked.append(raw.execute(sql, (*row, created)).lastrowid or 0)
            last = log.command("configure", slots=2)

            def answered(last: int = last) -> bool:
                service._turn()
                return log.command_state(last)["state"] == "done"

            until(answered, 20, every=0.01)

        def none_left() -> bool:
            service._turn()
            return not raw.execute("SELECT 1 FROM commands WHERE state IN ('new', 'taken')").fetchone()

        until(none_left, 30, every=0.01)
        for (text,) in raw.execute("SELECT answer FROM commands").fetchall():
            answer = json.loads(text)
            assert "error" not in answer or said_well(answer["error"]), answer
    finally:
        service.close()
        raw.close()


def test_lines_to_the_clerk(workspace: Workspace, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    done = log.create_run("", state="done")
    lines = ["", "{", "[]", "3", "null", '"x"', "NaN", "[" * 20_000, "\u2028", '{"id": 1}', '{"verb": []}', *TEXTS]
    for number in tries(300):
        rng = random.Random(60_000_011 + number)
        question: dict[Any, Any] = {
            "id": number,
            "verb": rng.choice(["preview", "fits", "probe", "transform", "evaluate"]),
        }
        for key in rng.sample(["recipe", "section", "run", "probe", "transform", "split", "changes", "verb"], 3):
            question[key] = rng.choice([done, "zz", *ODD])
        lines.append(json.dumps(question, default=str))
    lines = [line.replace("\n", " ") for line in lines]
    said = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    monkeypatch.setattr(sys, "stdout", said)
    assert clerk.main(["--workspace", str(workspace.folder)]) == 0
    replies = [json.loads(line) for line in said.getvalue().splitlines()]
    assert len(replies) == len(lines), "every line has its reply"
    for line, reply in zip(lines, replies, strict=True):
        assert ("error" in reply) != ("answer" in reply)
        if "error" in reply:
            names = ("TypeError", "KeyError", "AttributeError", "IndexError", "RecursionError", "JSONDecodeError")
            assert said_well(reply["error"]) and not reply["error"].startswith(names), (line[:300], reply)
