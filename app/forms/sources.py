"""The menu that chooses something trained elsewhere: a run of the workspace, or a recipe file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from PySide6.QtCore import QPoint, Qt
from PySide6.QtWidgets import QFileDialog, QMenu, QWidget

from app import words
from app.places import Context
from app.places.runlist import main_metric
from app.states import state
from engine.workspace import RESOURCES

MOST = 20
RECIPES = RESOURCES / "recipes"


def pick_source(context: Context, at: QWidget, take: Callable[[str], None]) -> None:
    """Opens the menu below a widget once the runs are read; hands over the source's text."""

    def show(runs: list[dict[str, Any]]) -> None:
        menu = QMenu(at)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        for run in runs:
            menu.addAction(described(run), partial(take, f"run:{run['id']}"))
        if not runs:
            menu.addAction("No run here has a checkpoint yet").setEnabled(False)
        menu.addSeparator()
        for file in sorted(RECIPES.glob("*.toml")):
            menu.addAction(f"Recipe {file.stem}, trained first", partial(take, f"recipe:{file.name}"))
        menu.addAction("A recipe file …", lambda: _choose_file(at, take))
        menu.popup(at.mapToGlobal(QPoint(0, at.height())))

    context.reader.ask(candidates, show, owner=at)


def candidates(log: Any) -> list[dict[str, Any]]:
    """The newest runs that hold weights. Runs on the reader's thread."""
    runs = log.runs(kind="run", limit=10 * MOST)
    return [run for run in runs if run["checkpoints"]][:MOST]


def described(run: dict[str, Any]) -> str:
    """'Digits, lion · done · val/accuracy 0.98 · today 12:31'."""
    said = [run["name"] or run["id"], state(run["state"]).word.lower()]
    name = main_metric(run["metrics"])
    if name:
        said.append(f"{name} {words.number(run['metrics'][name])}")
    return " · ".join([*said, words.moment(run["ended"] or run["created"])]).replace("&", "&&")


def _choose_file(at: QWidget, take: Callable[[str], None]) -> None:
    dialog = QFileDialog(at, "Choose a recipe", str(RECIPES), "Recipes (*.toml)")
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    dialog.fileSelected.connect(lambda name: take(f"recipe:{name}"))
    dialog.open()
