"""The service of one workspace: a scheduler that also carries out commands, answers questions, samples the machine."""

from __future__ import annotations

import logging
import os
import queue
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Any

import psutil

from engine.errors import AthanorError, ServiceError
from engine.service import verbs
from engine.service.clerk import Clerk
from engine.service.machine import Monitor
from engine.service.processes import version
from engine.service.scheduler import Scheduler
from engine.workspace import Workspace

logger = logging.getLogger(__name__)

HEARTBEAT = 1.0
IDLE_MINUTES = 10.0
CLERK_IDLE = 600.0
"""Seconds after its last question at which the clerk, and the memory that it takes, is let go."""

STALE_QUESTION = 60.0
"""Seconds after which nobody waits for the answer to a question any more."""

AT_ONCE = ("stop", "pause", "resume", "checkpoint", "prioritize", "configure")
"""Commands that change nothing but the database."""

Command = dict[str, Any]


class Service:
    """Runs until it is told to end, or has nothing to do and no client for `idle_minutes`."""

    def __init__(
        self,
        workspace: Workspace,
        *,
        idle_minutes: float = IDLE_MINUTES,
        clients: Iterable[int] = (),
        worker_command: Sequence[str] | None = None,
        sweep_command: Sequence[str] | None = None,
        clerk_command: Sequence[str] | None = None,
        keep_spare: bool = True,
        slots: int | None = None,
        gpus: int | None = None,
    ):
        self.workspace = workspace
        self.idle_seconds = idle_minutes * 60.0
        self.scheduler = Scheduler(
            workspace,
            worker_command=worker_command,
            sweep_command=sweep_command,
            keep_spare=keep_spare,
            gpus=gpus,
        )
        self.log = self.scheduler.log
        self.scheduler.slots = slots or int((self.log.meta("engine") or {}).get("slots", 1))
        self.clerk = Clerk(workspace, clerk_command)
        self.monitor = Monitor(workspace)
        self.started = time.time()
        self.clients = {pid: process for pid in clients if (process := _process(pid)) is not None}
        self.ending = False
        self._end_now = False
        self._beat = 0.0
        self._busy = time.monotonic()
        self._idle = False
        self._asked = 0.0
        self._clerk_warmed = False
        self._answers: queue.SimpleQueue[tuple[int, Future[dict[str, Any]]]] = queue.SimpleQueue()
        self._question: int | None = None
        self._questions: list[Command] = []
        self._verbs: dict[str, Callable[[Command], dict[str, Any] | None]] = {
            "hello": self._hello,
            "shutdown": self._shutdown,
            "configure": self._configure,
            "stop": self._stop,
            "pause": lambda command: {"result": verbs.pause(self.log, self._run(command))},
            "resume": lambda command: {"result": verbs.resume(self.log, self._run(command))},
            "checkpoint": lambda command: {"result": verbs.checkpoint(self.log, self._run(command))},
            "prioritize": self._prioritize,
            "delete": lambda command: {"result": verbs.delete(self.log, self.workspace, self._run(command))},
            "preview": self._keep_question,
            "fits": self._keep_question,
            "probe": self._keep_question,
            "evaluate": self._keep_question,
            "transform": self._keep_question,
        }

    # ---------------------------------------------------------------- the loop

    def run(self) -> None:
        self._write_heartbeat()
        self.log.release_commands()  # what a service that died had begun
        self.monitor.start()
        logger.info("service of %s started as process %d", self.workspace.folder, os.getpid())
        try:
            while not (self._finished() and self._say_goodbye()):
                try:
                    self._turn()
                except Exception:  # one bad row or a full disk must not end the watch over everything else
                    if not self.workspace.database.exists():
                        logger.exception("the workspace is gone")
                        break
                    logger.exception("a look at the workspace failed")
                    self.scheduler.look_again()
                    self.scheduler.wake.clear()
                self.scheduler.wait()
        finally:
            self.close()

    def _say_goodbye(self) -> bool:
        """Takes the heartbeat back, then looks once more: False when something was asked in between.

        A client asks first and looks for a heartbeat then. So either it sees that we are gone, or we see what it asked.
        """
        self.log.set_meta("service", None)
        if self._end_now:
            return True
        asked = self.log.take_commands()
        for command in asked:
            self._carry_out(command)
        if not asked and not self.scheduler.queued():
            return True
        self._busy = time.monotonic()
        self._idle = False
        self._write_heartbeat()
        self.scheduler.look_again()
        return False

    def end(self) -> None:
        """Makes `run` return soon; safe in a signal handler, as setting an event there would not be."""
        self._end_now = True

    def close(self) -> None:
        self.monitor.stop()
        self.clerk.close()
        self.scheduler.close()
        logger.info("service ended")

    def _turn(self) -> None:
        if self.scheduler.turn():
            self._carry_out_commands()
        self._pass_answers_on()
        if time.monotonic() - self._beat >= HEARTBEAT:
            self._write_heartbeat()
            self._note_idleness()

    def _write_heartbeat(self) -> None:
        self._beat = time.monotonic()
        spare = self.scheduler.spare
        self.log.set_meta(
            "service",
            {
                "pid": os.getpid(),
                "started": self.started,
                "heartbeat": time.time(),
                "version": version(),
                "spare": "none" if spare is None else "ready" if spare.ready else "warming",
                "slots": self.scheduler.slots,
                "gpus": self.scheduler.gpus,
                "ending": self.ending,
            },
        )

    def _note_idleness(self) -> None:
        now = time.monotonic()
        self.clients = {pid: process for pid, process in self.clients.items() if process.is_running()}
        if self.clients or self.scheduler.queued() or self.scheduler.active():
            self._busy = now
        self._idle = now - self._busy > self.idle_seconds
        spare = self.scheduler.spare
        if self.clients and not self._clerk_warmed and spare is not None and spare.ready:
            # After the spare, not beside it: training comes first.
            self._clerk_warmed = True
            self._asked = now
            self.clerk.start()
        if self.clerk.pid is not None and self._question is None and now - self._asked > CLERK_IDLE:
            self.clerk.close()

    def _finished(self) -> bool:
        if self._end_now:
            return True
        if self.ending and not self.scheduler.queued():
            # A paused run keeps its process, and the next service takes it over.
            return all(run["state"] == "paused" for run in self.scheduler.active())
        return self._idle

    # ---------------------------------------------------------------- commands

    def _carry_out_commands(self) -> None:
        for command in self.log.take_commands():
            self._carry_out(command)
            self.scheduler.look_again()
        self._ask_next()

    def _carry_out(self, command: Command) -> None:
        verb = self._verbs.get(command["verb"])
        try:
            if verb is None:
                known = ", ".join(sorted(self._verbs))
                raise ServiceError(f"The engine knows no command {command['verb']!r}. It knows {known}.")
            if command["args"] is None:
                raise ServiceError(f"What came with the command {command['verb']!r} is no table in JSON.")
            # What is done and that it was done are written together: a service that is killed here does it once.
            with self.log.transaction() if command["verb"] in AT_ONCE else nullcontext():
                answer = verb(command)
                if answer is not None:
                    self.log.answer(command["id"], answer)
        except AthanorError as error:
            self._refuse(command["id"], str(error))
        except Exception as error:
            logger.exception("command %s failed", command)
            reason = f"{type(error).__name__}: {error}"
            self._refuse(command["id"], f"The engine could not carry out {command['verb']!r} ({reason}).")

    def _refuse(self, command: int, sentence: str) -> None:
        self.log.answer(command, {"error": sentence}, failed=True)

    def _run(self, command: Command) -> dict[str, Any]:
        return verbs.find(self.log, command["run"] or command["args"].get("target"))

    def _hello(self, command: Command) -> dict[str, Any]:
        pid = command["args"].get("pid")
        process = _process(pid)
        if process is None:
            raise ServiceError(f"There is no client process {pid!r}.")
        self.clients[pid] = process
        self.ending = False
        return {"pid": os.getpid()}

    def _shutdown(self, command: Command) -> dict[str, Any]:
        self.ending = True
        self._end_now = bool(command["args"].get("now"))
        return {"result": "now" if self._end_now else "after the last run"}

    def _configure(self, command: Command) -> dict[str, Any]:
        slots = command["args"].get("slots")
        if not isinstance(slots, int) or isinstance(slots, bool) or not 1 <= slots <= 256:
            raise ServiceError(f"The number of slots is {slots!r}; give a whole number from 1 to 256.")
        self.scheduler.slots = slots
        self.log.set_meta("engine", {"slots": slots})
        return {"slots": slots}

    def _stop(self, command: Command) -> dict[str, Any]:
        run = self._run(command)
        force = command["args"].get("force") or self.scheduler.hangs(run["id"])
        if force and self.scheduler.kill(run["id"]):
            return {"result": "killed"}
        return {"result": verbs.stop(self.log, run)}

    def _prioritize(self, command: Command) -> dict[str, Any]:
        args = command["args"]
        return {"result": verbs.prioritize(self.log, self._run(command), args.get("priority"), args.get("position"))}

    # ---------------------------------------------------------------- questions for the clerk

    def _keep_question(self, command: Command) -> None:
        args = command["args"]
        if time.time() - command["created"] > STALE_QUESTION:
            raise ServiceError("The question is too old: nobody waits for its answer. Ask again.")
        if command["verb"] in ("preview", "fits"):
            if not isinstance(args.get("recipe"), str):
                raise ServiceError(f"The question {command['verb']!r} needs the recipe's text.")
            # While someone types, only the newest text matters.
            for older in [q for q in self._questions if _same_asker(q, command)]:
                self._questions.remove(older)
                self.log.answer(older["id"], {"superseded": True})
        else:
            command["run"] = self._run(command)["id"]
        self._questions.append(command)

    def _ask_next(self) -> None:
        """One question at a time: what waits here can still be replaced by a newer one."""
        if self._question is not None or not self._questions:
            return
        command = self._questions.pop(0)
        number = self._question = command["id"]
        self._asked = time.monotonic()
        details = {name: value for name, value in command["args"].items() if name != "client"}
        if command["run"]:
            details["run"] = command["run"]
        future = self.clerk.ask(command["verb"], **details)
        future.add_done_callback(lambda done: self._answered(number, done))

    def _answered(self, number: int, future: Future[dict[str, Any]]) -> None:
        self._answers.put((number, future))
        self.scheduler.wake.set()

    def _pass_answers_on(self) -> None:
        while True:
            try:
                number, future = self._answers.get_nowait()
            except queue.Empty:
                return
            error = future.exception()
            if error is None:
                self.log.answer(number, future.result())
            else:
                self._refuse(number, str(error))
            self._question = None
            self._ask_next()


def _process(pid: Any) -> psutil.Process | None:
    try:
        return psutil.Process(pid) if isinstance(pid, int) and not isinstance(pid, bool) and pid > 0 else None
    except psutil.Error:
        return None


def _same_asker(one: Command, other: Command) -> bool:
    return one["verb"] == other["verb"] and one["args"].get("client") == other["args"].get("client")
