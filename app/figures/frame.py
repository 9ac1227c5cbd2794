"""The frame around a figure: its title, its history over the steps, its menu, a window of its own, and what is said
where a figure cannot be drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtCore import QPoint, QRect, QSize, Qt, Signal
from PySide6.QtGui import QContextMenuEvent, QGuiApplication, QKeySequence, QPainter, QPixmap, QResizeEvent, QShortcut
from PySide6.QtWidgets import QHBoxLayout, QLabel, QMenu, QSlider, QToolButton, QVBoxLayout, QWidget

from app.exports import add_exports
from app.figures.view import VIEWS, Canvas, View
from app.icons import icon
from app.places import Context, label
from app.theme import SPACE_L, SPACE_S
from engine.figures import problems

SAID = 3  # problems that are told
COARSE = 40  # pixels: the height follows the width in steps, so that a scroll bar does not make it swing
PICTURE_SCALE = 2.0

Stored = tuple[int, int | None]  # id in the log, and the step


class FigureView(QWidget):
    """Shows one figure, whatever its kind. `text()` says it in words for who cannot see it."""

    opened = Signal(dict)  # the changes to the recipe that a point stands for

    def __init__(self, context: Context, sized: bool = False):
        super().__init__()
        self.context = context
        self.figure: Mapping[str, Any] = {}
        self.view: View | None = None
        self.window_: FigureWindow | None = None
        self.history: list[Stored] = []
        self._sized = sized  # takes the height that suits its figure
        self._roomy = False
        self._found: Sequence[str] | None = None
        self._build()
        context.theme.changed.connect(self._restyle)
        self._restyle()

    def _build(self) -> None:
        self.title = label("", "section", wrap=True)
        self.title.setMinimumWidth(40)
        self.larger = QToolButton()
        self.larger.setToolTip("Shows the figure in a window of its own (or double-click it).")
        self.larger.setAccessibleName("Enlarge the figure")
        self.larger.clicked.connect(self.open_window)
        self.more = QToolButton()
        self.more.setText("⋯")
        self.more.setToolTip("Copy and save")
        self.more.setAccessibleName("More on the figure")
        self.more.clicked.connect(lambda: self.menu().popup(self.more.mapToGlobal(QPoint(0, self.more.height()))))
        self.head = QWidget()
        row = QHBoxLayout(self.head)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(0)
        row.addWidget(self.title, 1)
        for button in (self.larger, self.more):
            row.addWidget(button, 0, Qt.AlignmentFlag.AlignTop)
            button.setFixedSize(24, 22)
        self.sorry = label("", "muted", wrap=True, selectable=True)
        self.sorry.hide()
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setAccessibleName("Which step's figure is shown")
        self.slider.setPageStep(1)
        self.slider.valueChanged.connect(self._slide)
        self.when = QLabel()
        self.when.setProperty("role", "small")
        self.past = QWidget()
        row = QHBoxLayout(self.past)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(SPACE_S)
        row.addWidget(self.slider, 1)
        row.addWidget(self.when)
        self.past.hide()
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(0, 0, 0, 0)
        self.column.setSpacing(2)
        self.sorry.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
        self.column.addWidget(self.head)
        self.column.addWidget(self.sorry, 1)
        self.column.addWidget(self.past)
        self.head.hide()

    # -- what is shown -----------------------------------------------------------------------------------------------

    def show_figure(self, figure: Mapping[str, Any], found: Sequence[str] | None = None) -> None:
        """Draws a figure in a frame to come; nothing happens when it is the one that is shown.

        `found` is what `problems` said of it, where that was asked on another thread already.
        """
        if figure == self.figure and found == self._found:
            return
        self.figure, self._found = dict(figure), found
        self.context.frames.draw(self, self._draw)
        if self.window_ is not None and not self.window_.isHidden():
            self.window_.frame.show_figure(figure, found)

    def show_history(self, history: Sequence[Stored]) -> None:
        """The stored figures of the same name, oldest first; the slider goes through them. The newest is shown."""
        newest = self.following
        self.history = list(history)
        self.past.setVisible(len(self.history) > 1)
        self.slider.blockSignals(True)
        self.slider.setRange(0, max(len(self.history) - 1, 0))
        if newest:
            self.slider.setValue(self.slider.maximum())
        self.slider.blockSignals(False)
        self._say_when()
        if self.window_ is not None and not self.window_.isHidden():
            self.window_.frame.show_history(history)

    @property
    def following(self) -> bool:
        """Whether the newest of its history is shown, and the next one will be."""
        return len(self.history) < 2 or self.slider.value() == self.slider.maximum()

    def _slide(self, at: int) -> None:
        self._say_when()
        if not 0 <= at < len(self.history):
            return
        id = self.history[at][0]

        def read(log: Any) -> tuple[Any, list[str]]:
            kept = log.figure(id)
            return (kept["data"], problems(kept["data"])) if kept is not None else (None, [])

        def show(answer: tuple[Any, list[str]]) -> None:
            if answer[0] is not None and self.history and self.history[self.slider.value()][0] == id:
                self.show_figure(*answer)

        self.context.reader.ask(read, show, key=("figure", self._key()), owner=self)

    def _key(self) -> int:
        return id(self)

    def _say_when(self) -> None:
        at = self.slider.value()
        if len(self.history) > 1 and 0 <= at < len(self.history):
            step = self.history[at][1]
            said = f"step {step:,}".replace(",", "\u202f") if step is not None else "kept"
            self.when.setText(f"{said}   {at + 1} of {len(self.history)}")
            self.slider.setAccessibleDescription(self.when.text())

    def _draw(self) -> None:
        found = problems(self.figure) if self._found is None else self._found
        if found:
            self._say_sorry(" ".join(found[:SAID]) + (f" And {len(found) - SAID} more." if len(found) > SAID else ""))
            return
        kind = VIEWS.get(self.figure["kind"])
        if kind is None:
            self._say_sorry(f"There is no view for figures of the kind {self.figure['kind']!r} yet.")
            return
        try:
            if type(self.view) is not kind:
                self._exchange(kind)
            assert self.view is not None
            self.view.take(self.figure)
        except Exception as error:  # a person's own part may draw what nobody thought of
            self._say_sorry(f"{type(error).__name__}: {error}")
            return
        self._show_title()
        self.sorry.hide()
        self.view.show()
        self._fit()

    def _exchange(self, kind: type[View]) -> None:
        self._drop()
        view = kind(self.context.theme)
        view.roomy = self._roomy
        view.opened.connect(self.opened)
        view.enlarge.connect(self.open_window)
        view.failed.connect(self._say_sorry)
        view.setContextMenuPolicy(Qt.ContextMenuPolicy.NoContextMenu)  # the frame's own
        for child in view.findChildren(QWidget):
            child.setContextMenuPolicy(Qt.ContextMenuPolicy.NoContextMenu)
        self.view = view
        self.column.insertWidget(1, view, 1)

    def _drop(self) -> None:
        if self.view is not None:
            self.column.removeWidget(self.view)
            self.view.hide()
            self.view.deleteLater()
            self.view = None

    def _say_sorry(self, reason: str) -> None:
        """A figure that cannot be drawn is a sentence, never a traceback."""
        self._drop()
        self._show_title()
        self.sorry.setText(f"This figure cannot be drawn. {reason}")
        self.sorry.show()
        if self._sized:
            self.setMinimumHeight(0)
            self.setMaximumHeight(16_777_215)  # Qt's own: no limit

    def _show_title(self) -> None:
        title = self.figure.get("title")
        self.title.setText(title if isinstance(title, str) else "")
        self.head.show()
        self.setAccessibleName(self.title.text() or "Figure")
        self.setAccessibleDescription(self.text())

    def _fit(self) -> None:
        """In a page that scrolls a figure is as high as suits it at this width."""
        if self._sized and self.view is not None:
            width = max(self.width() // COARSE * COARSE, 160)
            head = max(self.title.heightForWidth(width - self.larger.width() - self.more.width()), self.more.height())
            past = self.past.sizeHint().height() if not self.past.isHidden() else 0
            self.setFixedHeight(self.view.height_for(width) + head + past + 6)

    def resizeEvent(self, event: QResizeEvent) -> None:
        if event.size().width() // COARSE != event.oldSize().width() // COARSE:
            self._fit()

    def _restyle(self) -> None:
        self.larger.setIcon(icon(self.context.theme, "expand", "muted", size=14))

    def set_roomy(self) -> None:
        """It has a window of its own: nothing to enlarge, and the wheel zooms."""
        self._roomy = True
        self.larger.hide()

    # -- words, copies, a window of its own --------------------------------------------------------------------------

    def text(self) -> str:
        """The figure in words."""
        if not self.sorry.isHidden():
            return self.sorry.text()
        return self.view.text() if self.view is not None else ""

    def picture(self) -> QPixmap:
        """The figure with its title on the surface's colour, twice as fine as on screen."""
        view = self.view
        if view is None:
            return self.grab()
        title, room = self.title.text(), SPACE_L
        head = 24 if title else 0
        size = QSize(view.width() + 2 * room, view.height() + head + 2 * room)
        picture = QPixmap(size * PICTURE_SCALE)
        picture.setDevicePixelRatio(PICTURE_SCALE)
        picture.fill(self.context.theme.colour("surface"))
        painter = QPainter(picture)
        painter.setFont(self.context.theme.font(bold=True))
        painter.setPen(self.context.theme.colour("text"))
        painter.drawText(QRect(room, room - 4, view.width(), head), int(Qt.AlignmentFlag.AlignLeft), title)
        if isinstance(view, Canvas):
            painter.drawPixmap(room, room + head, view.drawn(PICTURE_SCALE))
            painter.end()
            return picture
        painter.end()
        view.render(picture, QPoint(room, room + head), renderFlags=QWidget.RenderFlag.DrawChildren)
        return picture

    def contextMenuEvent(self, event: QContextMenuEvent) -> None:
        self.menu().popup(event.globalPos())

    def menu(self) -> QMenu:
        """Enlarge, show all, copy and save."""
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        view = self.view
        if view is None:
            menu.addAction("Copy the sentence", lambda: QGuiApplication.clipboard().setText(self.sorry.text()))
            return menu
        if not self._roomy:
            menu.addAction("Enlarge", self.open_window)
        if view.zoomable:
            menu.addAction("Show all", view.show_all)
        menu.addAction("Copy in words", lambda: QGuiApplication.clipboard().setText(self.text()))
        menu.addSeparator()
        name = re.sub(r"[^\w\- ]+", " ", self.title.text()).strip() or str(self.figure["kind"])
        numbers = (lambda: view.csv() or "") if view.has_numbers() else None
        add_exports(
            menu, self, self.context, name, numbers, self.picture, plain=self.figure["kind"] == "text", many=True
        )
        return menu

    def open_window(self) -> None:
        """The same figure in a window of its own, which follows this one."""
        if self.view is None or self._roomy:
            return
        if self.window_ is None:
            self.window_ = FigureWindow(self)
        self.window_.follow(self)
        self.window_.show()
        self.window_.raise_()
        self.window_.activateWindow()


class FigureWindow(QWidget):
    """A figure, large. Escape closes it."""

    def __init__(self, source: FigureView):
        super().__init__(source, Qt.WindowType.Window)
        self.context = source.context
        self.setProperty("role", "surface")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self.frame = FigureView(source.context)
        self.frame.set_roomy()
        self.frame.opened.connect(source.opened)
        column = QVBoxLayout(self)
        column.setContentsMargins(SPACE_L, SPACE_L, SPACE_L, SPACE_L)
        column.addWidget(self.frame)
        for key in (QKeySequence.StandardKey.Cancel, QKeySequence.StandardKey.Close):
            QShortcut(QKeySequence(key), self).activated.connect(self.close)
        stored = self.context.settings.value("figures/window")
        if stored is None or not self.restoreGeometry(stored):
            self.resize(900, 640)

    def follow(self, source: FigureView) -> None:
        """Shows what another frame shows, with its history, at its place in that."""
        self.setWindowTitle(source.title.text() or "Figure")
        self.frame.show_history(source.history)
        self.frame.slider.blockSignals(True)
        self.frame.slider.setValue(source.slider.value())
        self.frame.slider.blockSignals(False)
        self.frame._say_when()
        self.frame.show_figure(source.figure, source._found)

    def closeEvent(self, event: Any) -> None:
        self.context.settings.setValue("figures/window", self.saveGeometry())
        super().closeEvent(event)
