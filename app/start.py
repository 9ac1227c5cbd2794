"""Starts the window, or says which system packages Qt misses."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from engine.commands.display import display, obstacle


def main(argv: list[str], workspace: Any = None) -> int:
    """Opens the window and returns when it is closed. `argv` is without the program's name."""
    parser = argparse.ArgumentParser(prog="main.py", description="Opens the workbench.")
    parser.add_argument("--place", choices=("library", "recipe", "runs", "compare", "sweep", "machine"))
    parser.add_argument("--workspace", help="the workspace's folder")
    parser.add_argument("recipe", nargs="?", help="a recipe file to open")
    arguments = parser.parse_args(argv)
    problem = obstacle(display())
    if problem:
        print(problem, file=sys.stderr)
        return 2
    from engine.workspace import Workspace

    if arguments.workspace:
        workspace = Workspace(arguments.workspace)
    return _run(workspace or Workspace.default(), arguments.place, arguments.recipe)


def _run(workspace: Any, place: str | None, recipe: str | None) -> int:
    from PySide6.QtCore import QTimer
    from PySide6.QtWidgets import QApplication

    from app.window import Window

    existing = QApplication.instance()
    application = existing if isinstance(existing, QApplication) else QApplication(sys.argv[:1])
    application.setApplicationName("Athanor")
    application.setDesktopFileName("athanor")
    window = Window(workspace, "recipe" if recipe else place)
    _catch_errors(window)
    signal.signal(signal.SIGINT, lambda *_: window.close())
    window.show()

    def begin() -> None:
        window.begin()
        if recipe:
            window.go("recipe", {"path": str(Path(recipe).resolve())})

    QTimer.singleShot(0, begin)
    return application.exec()


def _catch_errors(window: Any) -> None:
    """A mistake of ours in one handler must not end the window: it is printed and said in the status line."""

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        traceback.print_exception(kind, error, trace)
        where = traceback.extract_tb(trace)[-1]
        window.context.message(
            f"Something went wrong in {Path(where.filename).name}, line {where.lineno}: {error}. Your runs go on.",
            level="error",
        )

    sys.excepthook = hook
