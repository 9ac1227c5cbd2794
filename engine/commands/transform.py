"""`main.py transform`: does something to a saved run's model, and says what it changed."""

from __future__ import annotations

import argparse
from typing import Any

from engine.commands.check import add_settings, answer_of, parse_setting
from engine.commands.cli import DONE, add_json, add_workspace, open_workspace
from engine.commands.output import print_json, print_table
from engine.log import Log
from engine.service import verbs


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the id of a run, or its start")
    parser.add_argument("--use", required=True, metavar="ID", help="the transform; `main.py parts` lists them")
    add_settings(parser, "change a setting of the transform, such as norms=false; the value is TOML")
    add_workspace(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    from engine.catalog import Catalog
    from engine.service.clerk import Clerk

    workspace = open_workspace(options.workspace)
    with Log(workspace.database) as log:
        name = verbs.find(log, options.run)["id"]
    use = {"use": options.use, **dict(map(parse_setting, options.settings))}
    check(use, Catalog.load())
    with Clerk(workspace) as clerk:
        answer = answer_of(clerk.ask("transform", run=name, transform=use), "The transform")
    if options.json:
        print_json({"id": name, "use": options.use, **answer})
    else:
        _print(answer["scalars"])
        print(f"\nWhat it made is in {workspace.run_folder(name)}.")
    return DONE


def check(use: dict[str, Any], catalog: Any) -> None:
    """Raises RecipeError with what is wrong with a transform and its settings."""
    from engine.errors import RecipeError
    from engine.recipe import Recipe

    found = Recipe.of({"transforms": [use]}).check(catalog)
    mine = [problem for problem in found if problem.path.startswith("transforms")]
    if mine:
        raise RecipeError(mine)


def _print(scalars: dict[str, float]) -> None:
    """What was measured before and after stands in one row; what belongs to neither, below."""
    plain = {name.split("/", 2)[2]: value for name, value in scalars.items()}
    pairs = {name.removesuffix("_before") for name in plain if name.endswith("_before")}
    rows = [(name, plain.pop(f"{name}_before"), plain.pop(f"{name}_after", None)) for name in sorted(pairs)]
    print_table(("", "before", "after"), rows, numbers=(1, 2))
    print()
    print_table(("", ""), list(plain.items()), numbers=(1,))
