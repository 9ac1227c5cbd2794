"""Starts the window, or says which system packages Qt misses."""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

PACKAGES = {
    "libGL.so": "libgl1",
    "libEGL.so": "libegl1",
    "libxkbcommon.so": "libxkbcommon0",
    "libxkbcommon-x11.so": "libxkbcommon-x11-0",
    "libxcb-cursor.so": "libxcb-cursor0",
    "libxcb-icccm.so": "libxcb-icccm4",
    "libxcb-image.so": "libxcb-image0",
    "libxcb-keysyms.so": "libxcb-keysyms1",
    "libxcb-randr.so": "libxcb-randr0",
    "libxcb-render-util.so": "libxcb-render-util0",
    "libxcb-shape.so": "libxcb-shape0",
    "libxcb-xinerama.so": "libxcb-xinerama0",
    "libxcb-xkb.so": "libxcb-xkb1",
    "libdbus-1.so": "libdbus-1-3",
    "libfontconfig.so": "libfontconfig1",
    "libglib-2.0.so": "libglib2.0-0",
}


def qt_problem() -> str | None:
    """What keeps Qt from opening a window here, with the packages to install; None when nothing does."""
    try:
        from PySide6 import QtSvg, QtWidgets  # noqa: F401
    except ImportError as error:
        return _missing(str(error))
    platform = os.environ.get("QT_QPA_PLATFORM", "")
    if not sys.platform.startswith("linux") or platform.startswith(("offscreen", "minimal", "wayland", "vnc")):
        return None
    import PySide6

    plugin = Path(PySide6.__file__).parent / "Qt" / "plugins" / "platforms" / "libqxcb.so"
    if plugin.exists() and os.environ.get("DISPLAY"):
        try:  # Qt itself would end the process here, with words that name no package
            ctypes.CDLL(str(plugin))
        except OSError as error:
            return _missing(str(error))
    return None


def _missing(text: str) -> str:
    found = re.search(r"(lib[\w.+-]+?\.so)[.\d]*: cannot open shared object file", text)
    if found is None:
        return f"Qt cannot be loaded: {text}. Install the requirements again: pip install -e ."
    package = PACKAGES.get(found[1])
    wanted = f"apt install {package}" if package else f"the package of your system that has {found[1]}"
    everything = "apt install libgl1 libegl1 libxkbcommon-x11-0 libxcb-cursor0 libdbus-1-3 libfontconfig1"
    return (
        f"Qt misses the system library {found[1]}. Install it: {wanted}. All at once on Debian and Ubuntu: {everything}"
    )


def main(argv: list[str], workspace: Any = None) -> int:
    """Opens the window and returns when it is closed. `argv` is without the program's name."""
    parser = argparse.ArgumentParser(prog="main.py", description="Opens the workbench.")
    parser.add_argument("--place", choices=("library", "recipe", "runs", "compare", "sweep", "machine"))
    parser.add_argument("--workspace", help="the workspace's folder")
    parser.add_argument("recipe", nargs="?", help="a recipe file to open")
    arguments = parser.parse_args(argv)
    problem = qt_problem()
    if problem is not None:
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
