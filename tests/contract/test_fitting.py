"""Whatever a person chooses beside a task, the builder answers with a reason or takes it: nothing breaks on a kind of
problem that a part has never met."""

from __future__ import annotations

import pytest

from engine.errors import RecipeError
from engine.recipe import SECTIONS, Recipe
from engine.training.assemble import build_task, filled, procedure_problems, sketch
from engine.training.preview import fits, preview
from tests.contract.conftest import CATALOG

JUDGED = [section for section in SECTIONS if section.kind and section.name not in ("task", "search", "study")]


def test_every_part_fits_a_task_or_says_why_not(tasked: str) -> None:
    text = Recipe.of(CATALOG.example(tasked)).text()
    for section in JUDGED:
        reasons = fits(text, section.name)
        assert all(len(reason) > 20 and reason.endswith((".", "?")) for reason in reasons.values()), reasons
        assert set(reasons) <= {entry.id for entry in CATALOG.of_kind(section.kind)}


def test_every_model_takes_a_task_or_refuses_it_in_a_sentence(tasked: str) -> None:
    recipe = Recipe.of(CATALOG.example(tasked))
    taken = []
    for entry in CATALOG.of_kind("model"):
        if any(name not in entry.defaults() for name in entry.schema["required"]):
            continue
        recipe.set("model", {"use": entry.id})
        document = filled(recipe, CATALOG)
        try:
            task = build_task(document)
            if document["model"] is not None:
                sketch(document, task)
                taken.append(entry.id)
        except RecipeError as error:
            assert all(problem.message for problem in error.problems)
    needed = filled(Recipe.of(CATALOG.example(tasked)), CATALOG)["model"] is not None
    assert bool(taken) == needed


def test_the_example_of_a_task_previews_without_problems(tasked: str) -> None:
    answer = preview(Recipe.of(CATALOG.example(tasked)).text())
    assert answer["problems"] == [] and answer["model"]["parameters"] >= 0


def test_the_default_procedure_trains_a_task_or_names_those_that_do(tasked: str) -> None:
    document = filled(Recipe.of(CATALOG.example(tasked)), CATALOG)
    task = build_task(document)
    document = {**document, "procedure": {"use": CATALOG.default("procedure")}}
    for problem in procedure_problems(document, task):
        assert any(f" {entry.id}" in problem.message for entry in CATALOG.of_kind("procedure"))


@pytest.mark.parametrize("kind", ["model", "procedure", "loss", "decoder"])
def test_what_is_refused_for_its_kind_names_both(kind: str) -> None:
    text = Recipe.of({"task": {"use": CATALOG.default("task")}}).text()
    reasons = fits(text, kind)
    assert not any("NoneType" in reason or "KeyError" in reason for reason in reasons.values())
