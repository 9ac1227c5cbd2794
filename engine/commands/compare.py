"""`main.py compare`: the results of runs side by side, and what differs in their recipes."""

from __future__ import annotations

import argparse
from typing import Any

from engine.commands.cli import DONE, add_json, add_workspace, open_workspace
from engine.commands.output import duration, print_json, print_table
from engine.errors import AthanorError
from engine.log import Log
from engine.recipe import Recipe, flatten
from engine.service.verbs import find

UNCOMPARED = ("name", "notes", "schema")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the id of a run, or its start")
    add_workspace(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    if len(options.runs) < 2:
        raise AthanorError("One run alone cannot be compared. Name two or more.")
    with Log(open_workspace(options.workspace).database) as log:
        runs = [find(log, name) for name in options.runs]
    differs = differences(runs)
    if options.json:
        shown = ("id", "name", "state", "seed", "step", "steps", "seconds", "metrics", "weights")
        print_json({"runs": [{key: row[key] for key in shown} for row in runs], "differs": differs})
    else:
        _print(runs, differs)
    return DONE


def differences(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every path of the recipes, defaults filled in, at which not all runs agree: `{path, values: {run: value}}`."""
    documents = {run["id"]: flatten(_filled(run["recipe"])) for run in runs}
    paths = dict.fromkeys(path for document in documents.values() for path in document)
    found = []
    for path in paths:
        values = {name: document.get(path) for name, document in documents.items()}
        if path not in UNCOMPARED and any(value != next(iter(values.values())) for value in values.values()):
            found.append({"path": path, "values": values})
    return found


def _filled(text: str) -> dict[str, Any]:
    """The whole recipe; as it was written where it names parts that are no longer there."""
    from engine.catalog import Catalog

    recipe = Recipe.parse(text)
    try:
        catalog = Catalog.load()
        return recipe.document if recipe.check(catalog) else recipe.filled(catalog)
    except (AthanorError, KeyError):
        return recipe.document


def _print(runs: list[dict[str, Any]], differs: list[dict[str, Any]]) -> None:
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
    print("\nWhat differs in the recipes:" if differs else "\nThe recipes do not differ.")
    if differs:
        print_table(headings, [(row["path"], *row["values"].values()) for row in differs], numbers)
