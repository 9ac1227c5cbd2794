"""What leaves a chart or a table: pictures and numbers, onto the clipboard and into files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QFileDialog, QMenu, QWidget

from app.places import Context


def add_exports(menu: QMenu, widget: QWidget, context: Context, title: str, text: Callable[[], str]) -> None:
    """The entries that every chart's menu has: copy and save, as a picture and as numbers."""
    menu.addAction("Copy the picture", lambda: QGuiApplication.clipboard().setPixmap(widget.grab()))
    menu.addAction("Copy the numbers", lambda: QGuiApplication.clipboard().setText(text()))
    menu.addAction("Save the picture…", lambda: save_picture(widget, context, f"{title}.png"))
    menu.addAction("Save the numbers…", lambda: save_text(widget, context, "Save the numbers", f"{title}.csv", text()))


def save_picture(widget: QWidget, context: Context, proposed: str) -> None:
    """Asks for a file's name and saves what the widget shows there."""
    name, _ = QFileDialog.getSaveFileName(widget, "Save the picture", proposed, "Pictures (*.png)")
    if name and not widget.grab().save(name):
        context.message(f"The picture was not saved: {name} cannot be written.", level="error")


def save_text(parent: QWidget, context: Context, title: str, proposed: str, text: str) -> None:
    """Asks for a file's name and writes a text there, off the GUI thread."""
    name, _ = QFileDialog.getSaveFileName(parent, title, proposed, "CSV (*.csv)")
    if not name:
        return

    def write(_: Any) -> None:
        with open(name, "w", encoding="utf-8", newline="") as file:  # noqa: PTH123 - a dialog gives text
            file.write(text)

    def failed(error: Exception) -> None:
        reason = getattr(error, "strerror", None) or error
        context.message(f"The numbers were not saved in {name}: {reason}.", level="error")

    context.worker.ask(write, lambda _: context.message(f"Saved in {name}."), failed=failed, owner=parent)
