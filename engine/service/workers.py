"""Worker processes: one trains one run. A spare one, with everything imported, waits for the next run."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.service.processes import ROOT, kill, spawn
from engine.workspace import Workspace, open_private, own_parts

_numbers = itertools.count(1)


class Worker:
    """A process that trains one run; `on_exit(worker, code)` is called from a thread of its own at its end."""

    def __init__(self, run: str, process: subprocess.Popen[bytes], output: Path):
        self.run = run
        self.process = process
        self.output = output

    @property
    def pid(self) -> int:
        return self.process.pid

    def watch(self, on_exit: Callable[[Worker, int], None]) -> None:
        """Reaps the process the moment it ends."""

        def wait() -> None:
            on_exit(self, self.process.wait())

        threading.Thread(target=wait, name=f"reaper of run {self.run}", daemon=True).start()

    def last_words(self, lines: int = 12) -> str:
        """The end of what the process printed: the only trace of a crash below Python."""
        try:
            with self.output.open("rb") as file:
                file.seek(max(0, self.output.stat().st_size - 8192))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.strip().splitlines()[-lines:])


def launch(command: Sequence[str], workspace: Workspace, run: str, **environment: str) -> Worker:
    """Starts a process for one run; what it prints goes to a file in the run's folder."""
    output = workspace.run_folder(run) / "worker.log"
    with open_private(output, append=True) as file:
        process = spawn([*command, "--workspace", str(workspace.folder), "--run", run], file, extra=environment)
    return Worker(run, process, output)


class Spare:
    """A worker without a run: it imports what training needs, says `ready`, and waits for a run's id.

    Its output goes to a file and not to a pipe: a pipe would break, and kill it in mid-training, when its parent dies.
    """

    def __init__(self, command: Sequence[str], workspace: Workspace, **environment: str):
        self.workspace = workspace
        self.sources = sources_stamp()
        self.output = workspace.folder / f"spare-{os.getpid()}-{next(_numbers)}.log"
        with open_private(self.output) as file:
            self.process = spawn(
                [*command, "--workspace", str(workspace.folder), "--spare"],
                file,
                stdin=subprocess.PIPE,
                extra=environment,
            )

    @property
    def ready(self) -> bool:
        try:
            return b"ready" in self.output.read_bytes()
        except OSError:
            return False

    @property
    def usable(self) -> bool:
        """Alive, and nothing that it imported has been edited since."""
        return self.process.poll() is None and self.sources == sources_stamp()

    def assign(self, run: str) -> Worker | None:
        """Gives it the run; None when it has died."""
        assert self.process.stdin is not None
        output = self.workspace.run_folder(run) / "worker.log"
        try:
            self.process.stdin.write(run.encode() + b"\n")
            self.process.stdin.close()
        except OSError:
            self.discard()
            return None
        try:
            self.output.replace(output)
        except OSError:  # Windows does not rename an open file
            output = self.output
        return Worker(run, self.process, output)

    def discard(self) -> None:
        """Ends it; no run is lost, it has none."""
        kill(self.process.pid)
        self.process.wait()
        if self.process.stdin is not None and not self.process.stdin.closed:
            with contextlib.suppress(OSError):  # the pipe is broken already
                self.process.stdin.close()
        self.output.unlink(missing_ok=True)


def sources_stamp() -> tuple[int, int]:
    """How many source files training may import, and the newest one's time: both stay while nothing is edited."""
    times = []
    for folder in filter(None, (ROOT / "engine", own_parts())):
        for path in folder.rglob("*.py"):
            with contextlib.suppress(FileNotFoundError):  # renamed between the listing and the look: the count tells
                times.append(path.stat().st_mtime_ns)
    return len(times), max(times, default=0)
