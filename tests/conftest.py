"""What every test gets: one thread, no window system, and folders of its own in place of the person's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch and Qt are imported. Two processes of tests on two cores: more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
# The catalog is cached under its sources' digest, so all tests, and the processes that they start, may share it.
os.environ.setdefault("ATHANOR_CACHE", str(Path(tempfile.gettempdir()) / f"athanor-tests-{os.getuid()}"))


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test reads or writes the workspace, or the settings, of the person who runs it."""
    monkeypatch.setenv("ATHANOR_WORKSPACE", str(tmp_path_factory.mktemp("workspace")))
    monkeypatch.setenv("ATHANOR_SETTINGS", str(tmp_path_factory.mktemp("settings")))
    yield
