"""`main.py compare`: runs side by side, what differs in their recipes, and whether a difference is real."""

from __future__ import annotations

import argparse
from typing import Any

from engine.catalog import Catalog
from engine.commands.cli import DONE, add_json, add_workspace, open_workspace
from engine.commands.output import duration, print_json, print_table
from engine.comparison import compare, plus_minus
from engine.errors import AthanorError
from engine.log import Log
from engine.service.verbs import find


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the id of a run, or its start")
    add_workspace(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    if len(options.runs) < 2:
        raise AthanorError("One run alone cannot be compared. Name two or more.")
    with Log(open_workspace(options.workspace).database) as log:
        runs = [find(log, name) for name in options.runs]
    found = compare(runs, Catalog.load())
    if options.json:
        print_json(found)
    else:
        _print(runs, found)
    return DONE


def _print(runs: list[dict[str, Any]], found: dict[str, Any]) -> None:
    headings = ("", *(run["id"] for run in runs))
    metrics = dict.fromkeys(name for run in runs for name in run["metrics"] or {})
    rows: list[tuple[Any, ...]] = [
        ("name", *(run["name"] for run in runs)),
        ("state", *(run["state"] for run in runs)),
        ("steps", *(run["step"] for run in runs)),
        ("time", *(duration(run["seconds"]) for run in runs)),
        *((name, *((run["metrics"] or {}).get(name) for run in runs)) for name in metrics),
    ]
    numbers = range(1, len(headings))
    print_table(headings, rows, numbers)
    print("\nWhat differs in the recipes:" if found["differs"] else "\nThe recipes do not differ.")
    if found["differs"]:
        print_table(headings, [(row["path"], *row["values"]) for row in found["differs"]], numbers)
    if len(found["groups"]) < len(runs):
        _print_groups(found["groups"])
    for verdict in found["verdicts"]:
        print(verdict["sentence"])


def _print_groups(groups: list[dict[str, Any]]) -> None:
    """Runs that differ in nothing but the seed, as one column: mean +- standard deviation."""
    metrics = dict.fromkeys(name for group in groups for name in group["metrics"])
    headings = ("seeds together", *(f"{group['name']} (n = {len(group['runs'])})" for group in groups))
    rows = []
    for name in metrics:
        cells = [group["metrics"].get(name) for group in groups]
        rows.append((name, *(plus_minus(cell["mean"], cell["std"]) if cell else None for cell in cells)))
    print()
    print_table(headings, rows, range(1, len(headings)))
