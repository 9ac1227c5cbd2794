"""How often each fault is tried, and small disks that can be filled."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def times() -> Callable[[int], int]:
    """How often: the number given in the short suite, ATHANOR_FAULTS in the long one."""
    return lambda few: int(os.environ.get("ATHANOR_FAULTS") or few)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of its own in memory, with the given options; skipped where that is not allowed."""
    folders: list[Path] = []

    def mount(options: str) -> Path:
        if sys.platform != "linux":
            pytest.skip("a file system in memory is mounted on Linux alone")
        folder = tmp_path / f"disk{len(folders)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "-l", str(folder)], check=False)
