"""The chips that say by what the rows are grouped; a column's head dropped here becomes one."""

from __future__ import annotations

from PySide6.QtCore import QSize, Signal
from PySide6.QtGui import QDragEnterEvent, QDropEvent
from PySide6.QtWidgets import QHBoxLayout, QPushButton, QWidget

from app.comparing.listing import ALL_BUT_SEED, title
from app.comparing.table import MIME
from app.icons import icon
from app.places import Context, label
from app.theme import SPACE_XS


class GroupBar(QWidget):
    """One chip a grouping. `changed` tells the new grouping when a person asks for one."""

    changed = Signal(object)

    def __init__(self, context: Context):
        super().__init__()
        self.context = context
        self.grouping: tuple[str, ...] = ()
        self.setAcceptDrops(True)
        self.setAccessibleName("Grouping")
        self._row = QHBoxLayout(self)
        self._row.setContentsMargins(0, 0, 0, 0)
        self._row.setSpacing(SPACE_XS)
        self.seeds = QPushButton("Seeds together")
        self.seeds.setCheckable(True)
        self.seeds.setAccessibleName("Seeds together")
        self.seeds.setToolTip(
            "One row for the runs that share everything but the seed, with mean ± standard deviation."
        )
        self.seeds.clicked.connect(lambda on: self.changed.emit((ALL_BUT_SEED,) if on else ()))
        self.hint = label("or drag a column's head here", "small")
        self._row.addWidget(self.seeds)
        self._row.addWidget(self.hint)
        self._row.addStretch()
        self.chips: dict[str, QPushButton] = {}

    def show_grouping(self, grouping: tuple[str, ...]) -> None:
        """Shows a grouping's chips."""
        self.grouping = grouping
        self.seeds.setChecked(ALL_BUT_SEED in grouping)
        paths = [path for path in grouping if path != ALL_BUT_SEED]
        for path in [path for path in self.chips if path not in paths]:
            chip = self.chips.pop(path)
            self._row.removeWidget(chip)
            chip.deleteLater()
        for path in paths:
            if path not in self.chips:
                self.chips[path] = self._chip(path)
        self.hint.setVisible(not paths)

    def _chip(self, path: str) -> QPushButton:
        chip = QPushButton(title(path))
        chip.setIcon(icon(self.context.theme, "close", "muted", size=12))
        chip.setIconSize(QSize(12, 12))
        chip.setToolTip(f"Grouped by {path}. Click to take it away.")
        chip.setAccessibleName(f"Grouped by {path}")
        chip.setCheckable(True)
        chip.setChecked(True)
        chip.clicked.connect(lambda: self.changed.emit(tuple(each for each in self.grouping if each != path)))
        self._row.insertWidget(1 + len(self.chips), chip)
        return chip

    def add(self, path: str) -> None:
        """Groups by one more setting; grouping by everything but the seed ends."""
        kept = tuple(each for each in self.grouping if each not in (ALL_BUT_SEED, path))
        self.changed.emit((*kept, path))

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if event.mimeData().hasFormat(MIME):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        self.add(bytes(event.mimeData().data(MIME).data()).decode())
        event.acceptProposedAction()
