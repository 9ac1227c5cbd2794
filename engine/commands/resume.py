"""`main.py resume`: goes on with a run from its newest checkpoint, here in the terminal."""

from __future__ import annotations

import argparse

from engine.commands.cli import add_json, add_workspace, open_workspace
from engine.commands.train import Session


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the id of a run, or its start")
    add_workspace(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    with Session(open_workspace(options.workspace), as_json=options.json) as session:
        session.resume(options.run)
        return session.follow()
