"""One workspace with the real service for all of them; and the promise that no process outlives the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.log import Log
from engine.service.client import Engine
from engine.workspace import Workspace
from tests.end_to_end.steps import end_processes_of


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path_factory.mktemp("athanor"))
    yield workspace
    end_processes_of(workspace)


@pytest.fixture(scope="session")
def engine(workspace: Workspace) -> Iterator[Engine]:
    engine = Engine(workspace)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def log(engine: Engine) -> Log:
    return engine.log
