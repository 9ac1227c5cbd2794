"""Cards and forms: every part has words, valid defaults, and refuses wrong values by name."""

from __future__ import annotations

import importlib
import json
import math
from typing import Any

import pytest

from engine.catalog import Entry
from engine.recipe import Recipe
from engine.settings import check_settings, check_value
from tests.contract.conftest import CATALOG


def settings_that_fit(entry: Entry) -> dict[str, Any]:
    """What the part's own example sets of it, over its defaults."""

    def find(document: Any) -> dict[str, Any] | None:
        if isinstance(document, dict):
            if document.get("use") == entry.id:
                return {name: value for name, value in document.items() if name not in ("use", "enabled")}
            return next((found for value in document.values() if (found := find(value)) is not None), None)
        if isinstance(document, list):
            return next((found for value in document if (found := find(value)) is not None), None)
        return None

    return {**entry.defaults(), **(find(CATALOG.example(entry.id)) or {})}


def test_card(part: str) -> None:
    entry = CATALOG.parts[part]
    assert entry.name and entry.summary.endswith("."), "a card begins with plain sentences"
    assert 20 <= len(entry.summary) <= 400
    assert all(paper["title"] and paper["arxiv"] for paper in entry.papers)
    for name, field in entry.schema["properties"].items():
        assert field["description"], f"{name} is not described in the docstring's Args"
    if entry.papers:
        assert entry.formula and entry.helps and entry.hurts and entry.cost


def test_import_path_leads_to_the_part(part: str) -> None:
    module, _, name = CATALOG.parts[part].import_.partition(":")
    assert getattr(importlib.import_module(module), name).__part__.id == part


def test_the_entry_survives_json(part: str) -> None:
    entry = CATALOG.parts[part]
    assert Entry.from_json(json.loads(json.dumps(entry.to_json()))) == entry


def test_defaults_are_valid(part: str) -> None:
    entry = CATALOG.parts[part]
    assert check_settings(entry.schema, settings_that_fit(entry), "here", CATALOG, part) == []


def test_the_example_is_valid_and_round_trips(part: str) -> None:
    recipe = Recipe.of(CATALOG.example(part))
    assert recipe.check(CATALOG) == []
    again = Recipe.parse(recipe.text())
    assert again.document == recipe.document
    assert again.filled(CATALOG) == recipe.filled(CATALOG)


def test_recommendations_are_a_recipe(part: str) -> None:
    from engine.recipe import merge

    entry = CATALOG.parts[part]
    patched = merge(CATALOG.example(part), entry.recommends)
    assert Recipe.of(patched).check(CATALOG) == []


def wrong_values(field: dict[str, Any]) -> list[Any]:
    """Values that a field must refuse."""
    kind = field.get("type")
    if "x-part" in field or "x-parts" in field:
        return ["no table", {"use": "no such part"}]
    if "x-source" in field:
        return [3, "text", "run:", {"run": "3f2a"}]
    wrong: list[Any] = [] if kind == "object" else [{"nonsense": 1}]
    if kind in ("number", "integer"):
        wrong += ["text", True, math.nan]
        if "minimum" in field:
            wrong.append(field["minimum"] - 1)
        if "exclusiveMinimum" in field:
            wrong.append(field["exclusiveMinimum"])
        if "maximum" in field:
            wrong.append(field["maximum"] + 1)
    if kind == "boolean":
        wrong += [1, "true"]
    if "enum" in field:
        wrong.append("none of these")
    if kind == "array":
        wrong += ["text", 3]
    return wrong


def test_wrong_values_are_refused_by_name(part: str) -> None:
    entry = CATALOG.parts[part]
    for name, field in entry.schema["properties"].items():
        for value in wrong_values(field):
            problems = check_value(field, value, f"here.{name}", CATALOG)
            assert problems, f"{name} = {value!r} is let through"
            assert all(p.path.startswith(f"here.{name}") and str(p).endswith(".") for p in problems)


def test_a_misspelt_field_is_refused_with_the_right_one(part: str) -> None:
    entry = CATALOG.parts[part]
    for name in entry.schema["properties"]:
        (problem,) = [p for p in check_settings(entry.schema, {name + "x": 1}, "here", CATALOG, part) if p.value == 1]
        assert problem.path == f"here.{name}x"
        assert "Did you mean" in problem.message


@pytest.mark.parametrize("kind", ["task", "model", "optimizer", "schedule", "procedure"])
def test_each_kind_that_a_run_needs_has_one_default(kind: str) -> None:
    assert len([entry for entry in CATALOG.of_kind(kind) if entry.default]) == 1
