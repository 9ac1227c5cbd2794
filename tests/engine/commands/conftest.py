"""A workspace with a log, for the commands that read one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.log import Log
from engine.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def log(workspace: Workspace) -> Iterator[Log]:
    with Log(workspace.database) as log:
        yield log
