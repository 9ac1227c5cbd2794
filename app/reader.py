"""Everything slow happens here, off the GUI thread: reading the log, talking to the engine, and other work.

Three threads hand plain data back by signals, so a callback always runs on the GUI thread. Of several questions
with one key only the newest is answered: a chart that asks faster than the disk answers never builds a backlog.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QThread, Signal
from shiboken6 import isValid

from app.curves import MachineCache, SeriesCache
from engine.errors import LogError

POLL_SECONDS = 0.1


@dataclass
class Question:
    """One piece of work: what to do, who wants the answer, and for which widget it is asked."""

    work: Callable[[Any], Any]
    done: Callable[[Any], None] | None
    failed: Callable[[Exception], None] | None
    owner: QObject | None


class Desk(QThread):
    """A thread with one resource of its own (a log, an engine client), opened there and used only there."""

    _answered = Signal(object, object, object)  # question, answer, error
    problem = Signal(str)  # an error that nobody asked to hear about
    polls = False

    def __init__(self, name: str, parent: QObject | None = None):
        super().__init__(parent)
        self.setObjectName(name)
        self._questions: OrderedDict[object, Question] = OrderedDict()
        self._condition = threading.Condition()
        self._ending = False
        self._last = False
        self._numbers = count()
        self._resource: Any = None
        self._idled = 0.0
        self._answered.connect(self._deliver)

    # -- asked on the GUI thread -------------------------------------------------------------------------------------

    def ask(
        self,
        work: Callable[[Any], Any],
        done: Callable[[Any], None] | None = None,
        *,
        key: object = None,
        failed: Callable[[Exception], None] | None = None,
        owner: QObject | None = None,
    ) -> None:
        """Runs `work(resource)` on this thread and `done(answer)` on the GUI thread.

        With a key, a waiting question of the same key is replaced. With an owner, the answer is dropped when the
        owner was deleted meanwhile. Without `failed`, an error goes to the signal `problem`.
        """
        with self._condition:
            if self._ending:
                return
            key = ("", next(self._numbers)) if key is None else key
            self._questions[key] = Question(work, done, failed, owner)
            self._condition.notify()
        if not self.isRunning():
            self.start()

    def finish(self, work: Callable[[Any], Any]) -> None:
        """One last thing to do before the thread ends; what else waits is dropped."""
        self.ask(work)
        self._last = True

    def close(self, seconds: float = 5.0) -> None:
        """Ends the thread; questions still waiting are dropped, but for the last one of `finish`."""
        with self._condition:
            self._ending = True
            while len(self._questions) > int(self._last):
                self._questions.popitem(last=False)
            self._condition.notify()
        if self.isRunning():
            self.wait(int(seconds * 1000))

    # -- the thread --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            while (question := self._next()) is not None:
                try:
                    if self._resource is None:
                        self._resource = self.open()
                    self._answered.emit(question, question.work(self._resource), None)
                except Exception as error:
                    self._answered.emit(question, None, error)
        finally:
            if self._resource is not None:
                self.shut(self._resource)

    def open(self) -> Any:
        """Makes the resource, on this thread."""
        return self

    def shut(self, resource: Any) -> None:
        """Closes the resource, on this thread."""

    def idle(self) -> None:
        """Called on this thread about every POLL_SECONDS, also when questions never cease."""

    def _next(self) -> Question | None:
        while True:
            question = None
            with self._condition:
                if not self._questions and not self._ending:
                    self._condition.wait(POLL_SECONDS if self.polls else None)
                if self._questions:
                    question = self._questions.popitem(last=False)[1]
                elif self._ending:
                    return None
            now = time.monotonic()
            if self.polls and now - self._idled >= POLL_SECONDS:
                self._idled = now
                self.idle()
            if question is not None:
                return question

    def _deliver(self, question: Question, answer: Any, error: Exception | None) -> None:
        if self._ending or (question.owner is not None and not isValid(question.owner)):
            return
        if error is None:
            if question.done is not None:
                question.done(answer)
        elif question.failed is not None:
            question.failed(error)
        else:
            self.problem.emit(str(error) or type(error).__name__)


class Reader(Desk):
    """Reads the log on its own thread, with its own read-only connection; says when another process has written."""

    changed = Signal()
    polls = True

    def __init__(self, database: Path, parent: QObject | None = None):
        super().__init__("reader", parent)
        self._database = database
        self._version: int | None = None
        self._watching = True
        self._said = ""
        self.cache = SeriesCache()  # this and the next are used on the reader's thread only
        self.machine = MachineCache()

    def watch(self, on: bool) -> None:
        """Polling is off while nothing is visible."""
        self._watching = on

    def open(self) -> Any:
        from engine.log import Log

        with contextlib.suppress(LogError):  # creates or updates the tables; a folder may also be one to read only
            Log(self._database).close()
        return Log(self._database, readonly=True)

    def shut(self, resource: Any) -> None:
        resource.close()

    def idle(self) -> None:
        """Looks whether another process has written. A log that could not be opened is tried again."""
        if not self._watching:
            return
        try:
            if self._resource is None:
                self._resource = self.open()
            version = self._resource.version()
        except LogError as error:
            if str(error) != self._said:
                self._said = str(error)
                self.problem.emit(self._said)
            return
        self._said = ""
        if version != self._version:
            self._version = version
            self.changed.emit()


class EngineDesk(Desk):
    """Talks to the engine service on its own thread: `ask(lambda engine: engine.pause(run))`."""

    def __init__(self, workspace: Any, parent: QObject | None = None):
        super().__init__("engine", parent)
        self._workspace = workspace

    def open(self) -> Any:
        from engine.service.client import Engine

        return Engine(self._workspace)

    def shut(self, resource: Any) -> None:
        if hasattr(resource, "close"):
            resource.close()


class Worker(Desk):
    """For other slow work (the catalog, statistics, files): `ask(lambda _: work())`."""

    def __init__(self, parent: QObject | None = None):
        super().__init__("worker", parent)
