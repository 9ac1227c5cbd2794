"""The clerk's side of the protocol, with a stand-in process."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from engine.errors import ServiceError
from engine.service.clerk import Clerk
from engine.workspace import Workspace
from tests.engine.service.conftest import CLERK


@pytest.fixture
def clerk(workspace: Workspace) -> Iterator[Clerk]:
    with Clerk(workspace, CLERK) as clerk:
        yield clerk


def test_answers_find_their_questions_between_what_parts_print(clerk: Clerk) -> None:
    futures = [clerk.ask("preview", recipe="x" * length) for length in range(5)]
    assert [future.result(5)["length"] for future in futures] == [0, 1, 2, 3, 4]


def test_all_that_waits_fails_when_it_dies_and_the_next_question_starts_a_new_one(clerk: Clerk) -> None:
    waiting = [clerk.ask("preview", recipe=text) for text in ("slow", "die", "never")]
    assert waiting[0].result(5)["length"] == 4
    for future in waiting[1:]:
        with pytest.raises(ServiceError, match="exit code 7"):
            future.result(5)
    assert clerk.ask("preview", recipe="ab").result(5)["length"] == 2


def test_closing_fails_what_waits(workspace: Workspace) -> None:
    clerk = Clerk(workspace, CLERK)
    future = clerk.ask("preview", recipe="slow")
    clerk.close()
    with pytest.raises(ServiceError):
        future.result(5)
    assert clerk.pid is None


def test_a_command_that_cannot_start_is_a_sentence(workspace: Workspace) -> None:
    with pytest.raises(ServiceError, match="cannot be asked"):
        Clerk(workspace, ["/nowhere/python"]).ask("preview").result(5)


def test_one_that_ends_at_once_is_a_sentence(workspace: Workspace) -> None:
    with Clerk(workspace, [sys.executable, "-c", "raise SystemExit(3)"]) as clerk, pytest.raises(ServiceError):
        clerk.ask("preview").result(5)
