"""Athanor: the window, or one of its commands. `python main.py --help` lists them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if sys.version_info < (3, 11):  # noqa: UP036  (a clone can be started with any Python)
    sys.exit("Athanor needs Python 3.11 or newer; this is " + sys.version.split()[0] + ".")

from engine.commands.cli import run

if TYPE_CHECKING:
    from engine.workspace import Workspace


def window(arguments: list[str], workspace: Workspace) -> int:
    """Opens the window. The engine cannot: it knows nothing of the app."""
    from app.start import main as start

    return start(arguments, workspace)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(list(sys.argv[1:] if arguments is None else arguments), window)


if __name__ == "__main__":
    sys.exit(main())
