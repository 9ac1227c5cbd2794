"""A question to the engine: asked on the engine's desk, looked after until there is an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal

from app.places import Context

POLL_MS = 120


class Question(QObject):
    """One question at a time; a newer one takes the place of one that is not answered yet.

    `ask` takes what puts the question (`lambda engine: engine.preview(text)`, which returns the command's number).
    """

    answered = Signal(dict)
    failed = Signal(object)  # the Exception

    def __init__(self, context: Context, patience: float, parent: QObject | None = None):
        super().__init__(parent)
        self.context = context
        self.patience = patience
        self._number = 0  # counts the questions: tells the answer to an older one
        self._command: int | None = None
        self._asked = 0.0
        self._poll = QTimer(self)
        self._poll.setInterval(POLL_MS)
        self._poll.timeout.connect(self._look)
        self.open = False
        """Whether an answer is waited for."""

    def ask(self, put: Callable[[Any], int]) -> None:
        """Puts a question; what was asked before is dropped."""
        self.drop()
        self.open = True
        self._asked = time.monotonic()
        number = self._number

        def put_down(command: int) -> None:
            if number == self._number:
                self._command = command
                self._poll.start()

        self.context.engine.ask(put, put_down, failed=lambda error: self._fail(number, error), owner=self)

    def drop(self) -> None:
        """Waits for nothing any more."""
        self._number += 1
        self._command = None
        self.open = False
        self._poll.stop()

    def _look(self) -> None:
        command, number = self._command, self._number
        if command is None:
            return
        if time.monotonic() - self._asked > self.patience:
            self._fail(number, TimeoutError(f"The engine has not answered in {self.patience:.0f} seconds. Ask again."))
            return

        def got(answer: Mapping[str, Any] | None) -> None:
            if number != self._number or answer is None:
                return
            if "error" in answer:
                self._fail(number, RuntimeError(str(answer["error"])))
                return
            self.drop()
            self.answered.emit(dict(answer))

        self.context.engine.ask(
            lambda engine: engine.answer(command),
            got,
            key=("answer", id(self)),
            failed=lambda error: self._fail(number, error),
            owner=self,
        )

    def _fail(self, number: int, error: Exception) -> None:
        if number == self._number:
            self.drop()
            self.failed.emit(error)
