"""What leaves a chart or a table: pictures and numbers, onto the clipboard and into files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PySide6.QtGui import QGuiApplication, QPixmap
from PySide6.QtWidgets import QFileDialog, QMenu, QWidget

from app.places import Context


def add_exports(
    menu: QMenu,
    widget: QWidget,
    context: Context,
    title: str,
    text: Callable[[], str] | None,
    picture: Callable[[], QPixmap] | None = None,
    plain: bool = False,
    many: bool = False,
) -> None:
    """The entries that every chart's menu has: copy and save, as a picture and as numbers (or, `plain`, as a text).

    Without `picture` it is the widget as it stands there; without `text` there are no numbers. Where there may be
    `many`, they are gathered off the GUI thread, so `text` must not touch a widget.
    """
    draw = widget.grab if picture is None else picture
    what, ending = ("text", "txt") if plain else ("numbers", "csv")
    menu.addAction("Copy the picture", lambda: QGuiApplication.clipboard().setPixmap(draw()))
    if text is not None:
        menu.addAction(f"Copy the {what}", lambda: copy_text(widget, context, text, many))
    menu.addAction("Save the picture…", lambda: save_picture(widget, context, f"{title}.png", draw))
    if text is not None:
        says, file = f"Save the {what}", f"{title}.{ending}"
        menu.addAction(f"{says}…", lambda: save_text(widget, context, says, file, text if many else text()))


def copy_text(widget: QWidget, context: Context, text: Callable[[], str], many: bool) -> None:
    """Puts a text onto the clipboard, at once or when it was gathered."""
    if many:
        context.worker.ask(lambda _: text(), QGuiApplication.clipboard().setText, owner=widget)
    else:
        QGuiApplication.clipboard().setText(text())


def save_picture(widget: QWidget, context: Context, proposed: str, draw: Callable[[], QPixmap] | None = None) -> None:
    """Asks for a file's name and saves there what the widget shows, or what is drawn for it."""
    name, _ = QFileDialog.getSaveFileName(widget, "Save the picture", proposed, "Pictures (*.png)")
    if name and not (draw or widget.grab)().save(name):
        context.message(f"The picture was not saved: {name} cannot be written.", level="error")


def save_text(parent: QWidget, context: Context, title: str, proposed: str, text: str | Callable[[], str]) -> None:
    """Asks for a file's name and writes a text there, off the GUI thread."""
    kind = "Text (*.txt)" if proposed.endswith(".txt") else "CSV (*.csv)"
    name, _ = QFileDialog.getSaveFileName(parent, title, proposed, kind)
    if not name:
        return

    def write(_: Any) -> None:
        with open(name, "w", encoding="utf-8", newline="") as file:  # noqa: PTH123 - a dialog gives text
            file.write(text if isinstance(text, str) else text())

    def failed(error: Exception) -> None:
        reason = getattr(error, "strerror", None) or error
        context.message(f"The numbers were not saved in {name}: {reason}.", level="error")

    context.worker.ask(write, lambda _: context.message(f"Saved in {name}."), failed=failed, owner=parent)
