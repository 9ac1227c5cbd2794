"""Starting processes that outlive their parent, and telling whether one that is no child still lives."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil

ROOT = Path(__file__).resolve().parents[2]

PRIVATE = 0o077 if sys.platform != "win32" else -1
"""The umask of our processes: what they write into a workspace is for its owner alone."""

CLOCK_SLACK = 2.0
"""Seconds by which a process' start time may be off: the kernel counts it from a boot time in whole seconds."""


def lives(pid: int | None, seen: float | None) -> bool:
    """Whether the process that gave a sign of life at `seen` still lives.

    A number that was free since and went to another process does not count: that one started after the sign.
    """
    if not pid:
        return False
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return seen is None or process.create_time() <= seen + CLOCK_SLACK
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: finds this project's packages, and never a folder that happens to be current."""
    values = dict(os.environ)
    paths = [str(ROOT), *filter(None, values.get("PYTHONPATH", "").split(os.pathsep))]
    values["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    values["PYTHONSAFEPATH"] = "1"
    values["PYTHONUNBUFFERED"] = "1"
    values.update(extra or {})
    return values


def python(module: str) -> list[str]:
    """The command that runs one of our modules."""
    return [sys.executable, "-m", module]


def spawn(
    command: Sequence[str], output: IO[Any], *, stdin: int = subprocess.DEVNULL, extra: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, so that neither Ctrl+C nor the parent's end reaches it."""
    detached: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        detached = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return subprocess.Popen(
        list(command),
        stdin=stdin,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment(extra),
        close_fds=True,
        umask=PRIVATE,
        **detached,
    )


def kill(pid: int) -> None:
    """Ends a process and what it started, at once. One that is gone already is fine."""
    try:
        if sys.platform != "win32" and os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            psutil.Process(pid).kill()
    except (ProcessLookupError, psutil.NoSuchProcess):
        pass


@functools.cache
def version() -> str:
    """Athanor's version: that of the installed package, or of the folder that it is started from."""
    project = ROOT / "pyproject.toml"
    if project.exists():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    return importlib.metadata.version("athanor")


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if name == "SIGKILL":
        return "killed with SIGKILL, by someone or by the system for want of memory"
    return f"ended by {name}"
