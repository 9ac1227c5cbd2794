"""`main.py evaluate`: measures a saved run again, with another decoder or normalization, or on other data."""

from __future__ import annotations

import argparse

from engine.commands.check import add_settings, parse_setting
from engine.commands.cli import DONE, add_json, add_workspace, open_workspace
from engine.commands.output import print_json, print_table
from engine.log import Log
from engine.service.clerk import Clerk
from engine.service.verbs import find


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the id of a run, or its start")
    parser.add_argument("--split", default="test", help="the split to measure (default: test)")
    add_settings(parser)
    add_workspace(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    workspace = open_workspace(options.workspace)
    with Log(workspace.database) as log:
        id = find(log, options.run)["id"]
    changes = dict(parse_setting(setting) for setting in options.settings)
    with Clerk(workspace) as clerk:
        # As long as it takes: a decoder may ask the model many times.
        found = clerk.ask("evaluate", run=id, split=options.split, changes=changes).result()
    if options.json:
        print_json({"run": id, **found})
    else:
        print_table((f"run {id}, step {found['step']}", ""), sorted(found["metrics"].items()), numbers=(1,))
    return DONE
