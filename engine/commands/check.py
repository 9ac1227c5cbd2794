"""`main.py check`: what is wrong with a recipe; where nothing is, how big its model is and how long it trains."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from typing import Any

from engine.commands.cli import DONE, WRONG, add_json, add_workspace, open_workspace, sentences
from engine.commands.output import print_json, print_table, size
from engine.errors import AthanorError, Problem, RecipeError
from engine.workspace import Workspace

PATIENCE = 120.0
"""Seconds that the preview may take: it imports torch, and builds the model without its numbers."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.toml")
    add_settings(parser)
    add_workspace(parser)
    add_json(parser)


def add_settings(
    parser: argparse.ArgumentParser,
    words: str = "change the recipe, such as optimizer.lr=1e-3; the value is TOML; may be given again",
) -> None:
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help=words,
    )


def run(options: argparse.Namespace) -> int:
    from engine.service.clerk import Clerk

    preview: dict[str, Any] = {}
    problems: list[Problem] = []
    try:
        text = read_recipe(options.recipe, options.settings)
        with Clerk(open_workspace(options.workspace)) as clerk:
            preview = answer_of(clerk.ask("preview", recipe=text))
        problems = problems_of(preview)
    except RecipeError as error:
        problems = error.problems
    if options.json:
        found = [{"path": p.path, "value": p.value, "message": p.message} for p in problems]
        print_json({"valid": not problems, **preview, "problems": found})
    elif problems:
        print(sentences(RecipeError(problems)), file=sys.stderr)
    else:
        _print(preview)
    return WRONG if problems else DONE


def read_recipe(path: str, settings: Sequence[str] = ()) -> str:
    """A recipe's text with the settings in it, checked against the catalog. Raises RecipeError."""
    from engine.catalog import Catalog
    from engine.recipe import Recipe

    recipe = Recipe.load(path)
    for setting in settings:
        recipe.set(*parse_setting(setting))
    recipe.require(Catalog.load())
    return recipe.text()


def parse_setting(setting: str) -> tuple[str, Any]:
    """`path=value` with a TOML value; a bare word that is no TOML is taken as text."""
    import re
    import tomllib

    path, equals, value = setting.partition("=")
    path, value = path.strip(), value.strip()
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", path):
        raise AthanorError(f"--set {setting}: write path=value, such as optimizer.lr=1e-3.")
    try:
        document = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        if re.fullmatch(r"[A-Za-z_~/.][\w ./:@+~-]*", value):
            return path, value
        raise AthanorError(
            f"--set {path}: {value!r} is not a TOML value. Write a number, true, false, [1, 2] or 'text' in quotes."
        ) from None
    if list(document) != ["value"]:
        raise AthanorError(f"--set {path}: give one value.")
    return path, document["value"]


def answer_of(future: Future[dict[str, Any]], what: str = "The recipe's preview") -> dict[str, Any]:
    try:
        return future.result(PATIENCE)
    except Late:
        raise AthanorError(f"{what} was not ready after {PATIENCE:.0f} seconds.") from None


def problems_of(preview: dict[str, Any]) -> list[Problem]:
    found = preview.get("problems") or []
    return [Problem(problem["path"], problem.get("value"), problem["message"]) for problem in found]


def preview_problems(workspace: Workspace, text: str) -> list[Problem]:
    """What stands between this recipe and its training that only building its parts can tell."""
    from engine.service.clerk import Clerk

    with Clerk(workspace) as clerk:
        return problems_of(answer_of(clerk.ask("preview", recipe=text)))


def _print(preview: dict[str, Any]) -> None:
    model = preview.get("model") or {}
    splits = (preview.get("data") or {}).get("splits") or {}
    rows = [
        ("parameters", f"{model.get('parameters', 0):,}"),
        ("multiply-adds x 2, a sample", f"{model.get('flops') or 0:,.0f}"),
        ("memory, estimated", size(model.get("memory_bytes"))),
        ("steps", preview.get("steps")),
        *((f"samples, {split}", f"{count:,}") for split, count in splits.items()),
    ]
    print("The recipe is in order.\n")
    print_table(("", ""), rows, numbers=(1,))
