"""`main.py runs`: the runs of a workspace, newest first."""

from __future__ import annotations

import argparse
import datetime
from typing import Any

from engine.commands.cli import DONE, PROGRAM, add_json, add_workspace, open_workspace
from engine.commands.output import duration, print_json, print_table, show
from engine.log import Log
from engine.service import verbs

COLUMNS = (
    *("id", "name", "kind", "state", "message", "seed", "step", "steps", "seconds", "metrics", "weights"),
    *("created", "started", "ended", "device", "priority", "parent", "parent_step", "sweep", "digest", "archived"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    add_workspace(parser)
    parser.add_argument("--all", action="store_true", help="archived runs too")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    workspace = open_workspace(options.workspace)
    with Log(workspace.database) as log:
        verbs.mark_lost(log)
        runs = log.runs(archived=None if options.all else False)
    if options.json:
        print_json([{column: run[column] for column in COLUMNS} for run in runs])
    elif not runs:
        print(f"There is no run in {workspace.folder} yet. `python {PROGRAM} train RECIPE.toml` makes one.")
    else:
        headings = ("id", "name", "state", "steps", "time", "started", "results")
        print_table(headings, [_row(run) for run in runs], numbers=(3, 4))
    return DONE


def _row(run: dict[str, Any]) -> tuple[Any, ...]:
    started = run["started"] and datetime.datetime.fromtimestamp(run["started"]).strftime("%Y-%m-%d %H:%M")
    steps = f"{run['step'] or 0}/{run['steps']}" if run["steps"] else run["step"] or 0
    results = ", ".join(f"{name} {show(value)}" for name, value in best_metrics(run).items())
    return (run["id"], run["name"], run["state"], steps, duration(run["seconds"]), started, results)


def best_metrics(run: dict[str, Any], most: int = 3) -> dict[str, Any]:
    """The few results that say the most: those of unseen data first."""
    order = ("test/", "val/", "")
    names = sorted(run["metrics"] or {}, key=lambda name: next(i for i, p in enumerate(order) if name.startswith(p)))
    return {name: run["metrics"][name] for name in names[:most]}
