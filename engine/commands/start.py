"""`main.py` alone: the window; where there is no display, the starter recipe in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from engine.commands.cli import FAILED, PROGRAM, open_workspace
from engine.commands.display import display, obstacle
from engine.workspace import RESOURCES

if TYPE_CHECKING:
    from engine.commands.cli import Window

STARTER = RESOURCES / "recipes" / "start.toml"


def run(folder: str | None, window: Window) -> int:
    workspace = open_workspace(folder)
    platform = display()
    if platform:
        trouble = obstacle(platform)
        if trouble:
            print(f"{trouble} `{PROGRAM} train {STARTER.name}` works without them.", file=sys.stderr)
            return FAILED
        return window([], workspace)
    from engine.commands.train import train_file

    print("There is no display here, so the starter recipe trains in the terminal.\n", flush=True)
    code = train_file(workspace, STARTER)
    option = f" --workspace {workspace.folder}" if folder else ""
    print(
        f"\nThe run is saved in {workspace.folder}. To see it in the window, run `python {PROGRAM}{option}` "
        f"where there is a display; `python {PROGRAM} --help` lists what works without one."
    )
    return code
