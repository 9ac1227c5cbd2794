"""A box of choices, and the choice of what runs along x."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QComboBox, QSizePolicy

from engine import axes


class Choice(QComboBox):
    """A box of choices that keeps the person's one while the choices change, and ignores the wheel."""

    chosen = Signal(str)

    def __init__(self, name: str, tip: str = ""):
        super().__init__()
        self.wanted = ""
        self.setAccessibleName(name)
        self.setToolTip(tip)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContentsOnFirstShow)
        self.setMinimumContentsLength(10)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.activated.connect(self._activated)

    def offer(self, choices: Iterable[tuple[str, str]], otherwise: str = "") -> None:
        """Shows these (key, words); the wanted one stays chosen where it is there, else `otherwise` or the first."""
        choices = list(choices)
        if [(self.itemData(i), self.itemText(i)) for i in range(self.count())] != choices:
            self.clear()
            for key, text in choices:
                self.addItem(text, key)
        at = self.findData(self.wanted)
        self.setCurrentIndex(max(0, at if at >= 0 else self.findData(otherwise)))

    @property
    def key(self) -> str:
        return str(self.currentData() or "")

    def choose(self, key: str) -> None:
        self.wanted = key
        if (at := self.findData(key)) >= 0:
            self.setCurrentIndex(at)

    def _activated(self, _at: int) -> None:
        self.wanted = self.key
        self.chosen.emit(self.key)

    def wheelEvent(self, event: Any) -> None:
        event.ignore()


def offer_axes(choice: Choice, series: Iterable[str]) -> None:
    """Offers the axes that runs with these series have."""
    choice.offer((axis, f"by {axes.words(axis, many=False)}") for axis in axes.axes_of(series))
