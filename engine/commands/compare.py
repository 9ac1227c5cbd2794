"""`main.py compare`: runs side by side, what differs in their recipes, and whether a difference is real."""

from __future__ import annotations

import argparse
from typing import Any

from engine import axes
from engine.catalog import Catalog
from engine.commands.cli import DONE, add_json, add_workspace, open_workspace
from engine.commands.output import duration, print_json, print_table
from engine.comparison import AtCost, at_equal, compare, plus_minus
from engine.errors import AthanorError
from engine.log import Log
from engine.service.verbs import find

WAYS = "step, time, epoch, or what the runs have counted, such as gradient-passes or environment-steps"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the id of a run, or its start")
    parser.add_argument("--at", metavar="AXIS", default="", help="compare at equal cost: " + WAYS)
    add_workspace(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    if len(options.runs) < 2:
        raise AthanorError("One run alone cannot be compared. Name two or more.")
    sentence = ""
    with Log(open_workspace(options.workspace).database) as log:
        runs = [find(log, name) for name in options.runs]
        if options.at:
            equal = _at_equal(log, options.at, runs)
            runs, sentence = equal.runs, equal.sentence
    found = compare(runs, Catalog.load())
    if options.json:
        print_json(found | ({"at": sentence} if sentence else {}))
        return DONE
    if sentence:
        print(sentence)
    _print(runs, found)
    return DONE


def _at_equal(log: Log, wanted: str, runs: list[dict[str, Any]]) -> AtCost:
    """The runs at equal cost, of whatever they have counted. Raises AthanorError for what none of them knows."""
    series = {run["id"]: [info.name for info in log.series(run["id"])] for run in runs}
    known = axes.axes_of(name for names in series.values() for name in names)
    axis = next((each for each in known if wanted in (each, each.removeprefix(axes.COUNTED))), "")
    if not axis:
        there = ", ".join(each.removeprefix(axes.COUNTED) for each in known)
        raise AthanorError(f'These runs have not counted "{wanted}". They can be compared at equal {there}.')

    def points(run: str, name: str) -> tuple[Any, Any, Any]:
        found = log.points(run, name)
        return found.steps, found.values, found.times

    equal = at_equal(axis, runs, lambda run: series[run], points)
    if len(equal.runs) < 2:
        raise AthanorError(f"Two runs or more are needed. {equal.sentence}")
    return equal


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
