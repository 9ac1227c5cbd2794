"""Starts queued runs where there is room, reaps their workers, and tells which runs have lost theirs."""

from __future__ import annotations

import importlib.metadata
import os
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

from engine.log import Log
from engine.service import verbs
from engine.service.processes import how_it_ended, kill, lives, python
from engine.service.states import ACTIVE, RESUMABLE, WORKING
from engine.service.workers import Spare, Worker, launch
from engine.workspace import Workspace

POLL = 0.05
"""Seconds between two looks at the database's version: what a command waits at most."""

WATCH = 0.5
"""Seconds between two looks at the processes of runs that are not our children."""

SILENT = 20.0
"""Seconds without a sign of life after which a worker counts as hung. It gives one several times a second."""

DOUBT = 3.0
"""Seconds for which a process that seems to have started after its own sign of life may give another one: where the
clock was set, its start moves with the clock, and its last sign does not."""

SPARE_DELAY = 20.0
"""Seconds after which the next spare worker starts even though a run is still starting."""

SOURCES = 5.0
"""Seconds between two looks at whether the sources that the spare has imported were edited."""

Run = dict[str, Any]


class Scheduler:
    """Keeps the workers of one workspace; `only` restricts it to one run and the runs that this one plans.

    All methods are called from one thread, the one that made it. Call `turn` whenever `wait` returns.
    """

    def __init__(
        self,
        workspace: Workspace,
        only: str | None = None,
        *,
        worker_command: Sequence[str] | None = None,
        sweep_command: Sequence[str] | None = None,
        slots: int = 1,
        gpus: int | None = None,
        keep_spare: bool = False,
    ):
        self.workspace = workspace
        self.only = only
        self.worker_command = list(worker_command or python("engine.training.worker"))
        self.sweep_command = list(sweep_command or python("engine.training.sweep"))
        self.slots = slots
        self.gpus = usable_gpus() if gpus is None else gpus
        self.keep_spare = keep_spare
        self.wake = threading.Event()
        self.log = Log(workspace.database)
        self.workers: dict[str, Worker] = {}
        self.spare: Spare | None = None
        self._exits: queue.SimpleQueue[tuple[Worker, int]] = queue.SimpleQueue()
        self._version: int | None = None
        self._watched = 0.0
        self._heard: dict[str, tuple[Any, float]] = {}  # each run's newest sign of life, and when it was seen
        self._hung: dict[str, str] = {}
        self._doubted: dict[str, float] = {}
        self._listened = 0.0
        self._spare_due = 0.0
        self._spare_checked = 0.0
        self._spare_failures = 0

    # ---------------------------------------------------------------- the loop

    def wait(self, seconds: float = POLL) -> None:
        """Returns after the time, or at once when a child has ended or `wake` was set."""
        self.wake.wait(seconds)

    def turn(self) -> bool:
        """One look at everything; True when the database has changed since the last one."""
        self.wake.clear()
        self._reap()
        version = self.log.version()
        changed = version != self._version
        self._version = version
        now = time.monotonic()
        if changed or now - self._watched >= WATCH:
            self._start_queued()
        if now - self._watched >= WATCH:
            self._watched = now
            self._watch_strangers()
            self._watch_silence(now)
            self._tend_spare(now)
        return changed

    def look_again(self) -> None:
        """Makes the next turn treat the database as changed: our own writes do not show in its version."""
        self._version = None
        self.wake.set()

    def close(self) -> None:
        """Lets go: the spare ends, workers train on."""
        if self.spare is not None:
            self.spare.discard()
            self.spare = None
        self.log.close()

    # ---------------------------------------------------------------- starting

    def queued(self) -> list[Run]:
        """The queue in the order in which it is served: priority, then position, then age."""
        runs = [run for run in self.log.runs(states=["queued"], archived=None) if self._ours(run)]
        return sorted(
            runs, key=lambda run: (-(run["priority"] or 0), run["position"] or 0.0, run["created"], run["id"])
        )

    def active(self) -> list[Run]:
        return self.log.runs(states=ACTIVE, archived=None)

    def start(self, run: str, from_states: Sequence[str] = ("queued", *RESUMABLE)) -> bool:
        """Claims the run and starts its worker; False when another process was faster, or its state forbids it."""
        return self._start(self.log.run(run), from_states)

    def _ours(self, run: Run) -> bool:
        return self.only is None or self.only in (run["id"], run["sweep"])

    def _start_queued(self) -> None:
        waiting = self.queued()
        if not waiting:
            return
        active = self.active()
        room = Room(self.slots, self.gpus, [run for run in active if self._ours(run)])
        held = {run["id"] for run in active if run["kind"] == "sweep" and run["state"] == "paused"}
        for run in waiting:
            if run["sweep"] in held:
                continue
            if run["kind"] == "sweep":
                self._start(run)
                continue
            device = room.take(run["device"] or "auto")
            if device is not None:
                self._start(run, device=device)

    def _start(self, run: Run | None, from_states: Sequence[str] = ("queued",), **columns: Any) -> bool:
        if run is None or run["id"] in self.workers:
            return False  # its last worker has written its end, but is not gone yet
        name = run["id"]
        columns |= {"pid": os.getpid(), "heartbeat": time.time(), "request": "", "message": "", "ended": None}
        if not self.log.transition(name, list(from_states), "starting", **columns):
            return False
        try:
            worker = self._launch(run)
        except OSError as error:
            text = f"The training process could not be started: {error.strerror or error}."
            self.log.transition(name, ["starting"], "failed", message=text, ended=time.time(), pid=None)
            self.log.event(text, run=name, level="error", kind="worker")
            return False
        self.workers[name] = worker
        # From here on the run is judged by its own process: it trains on when this one dies.
        self.log.update_run(name, pid=worker.pid, heartbeat=time.time())
        worker.watch(self._ended)
        return True

    def _launch(self, run: Run) -> Worker:
        if run["kind"] == "sweep":
            return launch(self.sweep_command, self.workspace, run["id"])
        if self.spare is not None:
            spare, self.spare = self.spare, None
            self._spare_due = time.monotonic() + SPARE_DELAY
            if spare.usable:
                worker = spare.assign(run["id"])
                if worker is not None:
                    self._spare_failures = 0
                    return worker
            else:
                spare.discard()
        return launch(self.worker_command, self.workspace, run["id"], **self._threads())

    def _threads(self) -> dict[str, str]:
        """Several runs on one processor share its cores: otherwise each takes all and they wait for each other."""
        if self.slots < 2 or "OMP_NUM_THREADS" in os.environ:
            return {}
        return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.slots))}

    # ---------------------------------------------------------------- ends

    def _ended(self, worker: Worker, code: int) -> None:
        self._exits.put((worker, code))
        self.wake.set()

    def _reap(self) -> None:
        while True:
            try:
                worker, code = self._exits.get_nowait()
            except queue.Empty:
                return
            self.workers.pop(worker.run, None)
            verbs.mark_interrupted(self.log, worker.run, how_it_ended(code), worker.last_words())
            self.look_again()

    def _watch_strangers(self) -> None:
        """Runs whose worker is not our child: an earlier service's, or another terminal's."""
        for run in self.active():
            name = run["id"]
            if name in self.workers or not self._ours(run) or not verbs.is_lost(run):
                self._doubted.pop(name, None)
                continue
            since = self._doubted.setdefault(name, time.monotonic())
            if not lives(run["pid"], None) or time.monotonic() - since > DOUBT:
                verbs.mark_interrupted(self.log, name, "it is gone")

    def _watch_silence(self, now: float) -> None:
        """Says which runs' workers live and do nothing: stopped, or stuck below Python.

        What counts is how long this process has waited for a new sign of life, and not how old the last one is: after
        the machine has slept, or its clock was set, every one is old.
        """
        runs = {run["id"]: run for run in self.active() if self._ours(run) and run["state"] != "starting"}
        if now - self._listened > SILENT / 2:  # we were asleep ourselves, or stopped: everyone gets the full time again
            self._heard.clear()
        self._listened = now
        self._heard = {name: heard for name, heard in self._heard.items() if name in runs}
        for name, run in runs.items():
            sign, since = self._heard.get(name, (None, now))
            if name not in self._heard or sign != run["heartbeat"]:
                self._heard[name] = run["heartbeat"], now
                said = self._hung.pop(name, None)
                if said is not None and run["message"] == said:
                    self.log.update_run(name, message="")
            elif now - since > SILENT and name not in self._hung:
                self._hung[name] = text = (
                    f"The training process {run['pid']} has given no sign of life for {SILENT:.0f} seconds: it was "
                    "stopped, or hangs. Stop ends it at once; resume then goes on from the newest checkpoint."
                )
                self.log.update_run(name, message=text)
                self.log.event(text, run=name, level="warning", kind="hung")
                if run["request"] == "stop":
                    self.kill(name)

    def hangs(self, run: str) -> bool:
        """Whether its worker lives and has given no sign of life for long: it will obey no request."""
        return run in self._hung

    def kill(self, run: str) -> bool:
        """Ends a run's process at once; False when it has none."""
        row = self.log.run(run)
        if row is None or row["state"] not in ACTIVE or not lives(row["pid"], row["heartbeat"]):
            return False
        if row["pid"] == os.getpid():
            return False
        kill(row["pid"])
        return True

    # ---------------------------------------------------------------- the spare worker

    def warm_up(self) -> None:
        """Starts a spare worker now, for a run that will be started soon."""
        if self.spare is None:
            self.spare = Spare(self.worker_command, self.workspace, **self._threads())

    def _tend_spare(self, now: float) -> None:
        if not self.keep_spare:
            return
        if self.spare is not None:
            if self.spare.process.poll() is not None:
                self.spare.discard()
                self.spare = None
                self._spare_failures += 1
                self._spare_due = now + min(60.0, 2.0**self._spare_failures)
            elif now >= self._spare_checked + SOURCES:
                self._spare_checked = now
                if not self.spare.usable:
                    self.spare.discard()
                    self.spare = None
            return
        # Importing takes seconds of processor time: a run that starts right now has the first claim on it.
        starting = any(run["state"] == "starting" for run in self.active())
        if now >= self._spare_due or (not starting and not self._spare_failures):
            self.warm_up()


class Room:
    """How many more runs may start: one a GPU, and `slots` on the processor."""

    def __init__(self, slots: int, gpus: int, active: Sequence[Run]):
        self.gpus = gpus
        self.free = {"cpu": slots, **{f"cuda:{index}": 1 for index in range(gpus)}}
        for run in active:
            if run["state"] in WORKING and run["kind"] != "sweep":
                place = self._place(run["device"] or "auto")
                self.free[place] = self.free.get(place, 1) - 1

    def _place(self, device: str) -> str:
        if device in ("auto", "cuda"):
            places = [name for name in self.free if name.startswith("cuda")]
            return max(places, key=lambda name: self.free[name]) if places else "cpu"
        return device

    def take(self, device: str) -> str | None:
        """The device for a run that asks for this one; None when there is no room on it now."""
        place = self._place(device)
        if self.free.setdefault(place, 1) < 1:
            return None
        self.free[place] -= 1
        # A name of a GPU is given only where there is a choice: what "auto" means is the worker's to say otherwise.
        return place if self.gpus > 1 and device in ("auto", "cuda") else device


def usable_gpus() -> int:
    """How many GPUs the installed torch can use, told without importing it."""
    try:
        if "+cpu" in importlib.metadata.version("torch"):
            return 0
    except importlib.metadata.PackageNotFoundError:
        return 0
    from engine.service.machine import gpu_count

    count = gpu_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = min(count, len([name for name in visible.split(",") if name.strip() and name.strip() != "-1"]))
    return count
