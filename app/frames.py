"""What is to be drawn waits here for its turn: one widget a frame, so that no frame takes long."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from PySide6.QtCore import QObject, QTimer
from shiboken6 import isValid

FRAME_MS = 16


class Frames(QObject):
    """The window's drawing timer. It stands still while there is nothing to draw."""

    def __init__(self, parent: QObject | None = None):
        super().__init__(parent)
        self._waiting: OrderedDict[int, tuple[QObject, Callable[[], None]]] = OrderedDict()
        self._timer = QTimer(self)
        self._timer.setInterval(FRAME_MS)
        self._timer.timeout.connect(self._next)

    def draw(self, owner: QObject, work: Callable[[], None]) -> None:
        """Runs `work` in a frame to come; an older one of the same owner that still waits is dropped."""
        self._waiting[id(owner)] = (owner, work)
        if not self._timer.isActive():
            self._timer.start()

    def _next(self) -> None:
        while self._waiting:
            owner, work = self._waiting.popitem(last=False)[1]
            if isValid(owner):
                work()
                return
        self._timer.stop()
