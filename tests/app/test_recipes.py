"""The document: every change is checked at once and can be undone."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.recipes import RecipeDocument, blank, section_of, trial_of
from engine.errors import RecipeError
from engine.recipe import Recipe
from tests.app.small_catalog import small_catalog

TEXT = """# a person's comment
name = "first"
seed = 3

[task]
use = "toy"

[model]
use = "plain" # the usual one
hidden = [8]

[optimizer]
use = "crawl"
lr = 0.01

[[techniques]]
use = "prune"

[[techniques]]
use = "shake"
"""


@pytest.fixture
def document(qapp: object) -> RecipeDocument:
    made = RecipeDocument(small_catalog())
    made.start(TEXT)
    return made


def test_it_starts_clean(document: RecipeDocument) -> None:
    assert document.text == TEXT and document.problems == [] and not document.modified
    assert not document.stack.canUndo()


def test_every_change_can_be_undone_and_redone(document: RecipeDocument) -> None:
    catalog = document.catalog
    assert catalog is not None
    texts = [document.text]
    changes = [
        lambda: document.set("optimizer.lr", 0.5),
        lambda: document.choose("optimizer", "leap"),
        lambda: document.add("techniques", "table"),
        lambda: document.move("techniques", 2, 0),
        lambda: document.enable("techniques.1", False),
        lambda: document.set("techniques.2.amount", {"value": 1.0, "schedule": {"use": "fall"}}),
        lambda: document.take("techniques.0"),
        lambda: document.remove("model.hidden"),
        lambda: document.apply(catalog.parts["leap"].recommends, "advice"),
        lambda: document.edit_text(document.text + "\n[budget]\nepochs = 3\n"),
        lambda: document.open(blank(catalog).text(), None, "New"),
    ]
    for change in changes:
        change()
        assert document.text != texts[-1]
        texts.append(document.text)
    for text in reversed(texts[:-1]):
        document.stack.undo()
        assert document.text == text
    for text in texts[1:]:
        document.stack.redo()
        assert document.text == text


def test_comments_and_order_stay(document: RecipeDocument) -> None:
    document.set("optimizer.lr", 0.5)
    document.add("techniques", "prune", 1)
    assert document.text.startswith("# a person's comment\n")
    assert 'use = "plain" # the usual one' in document.text
    assert [part["use"] for part in document.plain["techniques"]] == ["prune", "prune", "shake"]


def test_typing_in_one_field_is_one_step(document: RecipeDocument) -> None:
    for value in (1, 12, 123):
        document.set("optimizer.lr", value)
    document.settle()
    document.set("optimizer.lr", 4)
    assert document.stack.count() == 2
    document.stack.undo()
    assert document.get("optimizer.lr") == 123
    document.stack.undo()
    assert document.get("optimizer.lr") == 0.01
    document.set("optimizer.lr", 5)
    assert document.stack.count() == 1, "a change after undo is a step of its own"


def test_problems_are_live(document: RecipeDocument) -> None:
    document.set("optimizer.lr", -1)
    assert [str(p) for p in document.problems] == ["optimizer.lr: -1 is not a number greater than 0."]
    assert document.problems_at("optimizer") and not document.problems_at("model")
    document.stack.undo()
    assert document.problems == []


def test_text_that_is_no_toml_keeps_the_last_recipe_and_itself(document: RecipeDocument) -> None:
    document.edit_text(TEXT + "[budget\n")
    assert document.broken is not None and "not valid TOML" in document.broken.message
    assert document.text == TEXT + "[budget\n" and document.recipe.name == "first"
    assert document.problems == [document.broken]
    document.drop_broken()
    assert document.broken is None and document.text == TEXT
    document.stack.undo()
    assert document.broken is not None


def test_what_the_engine_found_holds_for_its_text_alone(document: RecipeDocument) -> None:
    from engine.errors import Problem

    found = Problem("model", None, "the model cannot take that task.")
    document.add_problems(document.text, [found])
    assert document.problems == [found]
    document.set("optimizer.lr", 0.5)
    assert document.problems == []
    document.stack.undo()
    assert document.problems == [found]


def test_a_nested_part_is_written_in_its_section(document: RecipeDocument) -> None:
    document.set("model.norm", {"use": "centre", "eps": 0.1})
    document.set("model.norm.eps", 0.2)
    assert document.get("model.norm") == {"use": "centre", "eps": 0.2}
    assert 'norm = {use = "centre", eps = 0.2}' in document.text
    assert Recipe.parse(document.text).document == document.plain


def test_a_long_list_of_parts_survives(document: RecipeDocument) -> None:
    parts = [{"use": "squeeze", "ratio": 0.25}, {"use": "centre", "eps": 1e-5}] * 4
    document.set("model.stack", parts)
    assert document.get("model.stack") == parts
    document.set("model.stack.3.eps", 0.5)
    assert document.get("model.stack")[3] == {"use": "centre", "eps": 0.5}
    assert Recipe.parse(document.text).document == document.plain


def test_a_space_with_paths_for_names(document: RecipeDocument) -> None:
    document.choose("search", "every")
    document.set("search.space", {"optimizer.lr": [0.1, 0.2], "model.hidden": [[4], [8]]})
    assert Recipe.parse(document.text).document["search"]["space"] == {
        "optimizer.lr": [0.1, 0.2],
        "model.hidden": [[4], [8]],
    }
    assert document.problems == []


def test_defaults_are_named_where_the_recipe_names_none(document: RecipeDocument) -> None:
    assert document.use("procedure") == "direct" and document.get("procedure") is None
    assert document.use("search") is None and document.use("loss") is None
    entry = document.entry("techniques.1")
    assert entry is not None and entry.id == "shake"


def test_saving_makes_it_clean_and_the_difference_empty(document: RecipeDocument, tmp_path: Path) -> None:
    document.set("optimizer.lr", 0.5)
    assert [(d.path, d.theirs, d.mine) for d in document.differences()] == [("optimizer.lr", 0.01, 0.5)]
    document.mark_saved(tmp_path / "a.toml")
    assert not document.modified and document.differences() == []


def test_a_change_that_has_no_place_is_refused(document: RecipeDocument) -> None:
    before = document.text
    with pytest.raises(RecipeError):
        document.set("techniques.9.n", 3)
    assert document.text == before


def test_blank_and_trial_recipes_are_valid() -> None:
    catalog = small_catalog()
    assert blank(catalog).check(catalog) == []
    for entry in catalog.parts.values():
        trial = trial_of(entry, catalog, blank(catalog))
        assert (trial is None) == (section_of(entry.kind) is None)
        if trial is not None:
            missing = [p for p in trial.check(catalog) if "needs" not in p.message]
            assert missing == [], entry.id


def test_advice_that_names_a_part_replaces_it_whole(document: RecipeDocument) -> None:
    document.apply({"optimizer": {"use": "leap", "reach": 5}, "training": {"batch_size": 64}}, "advice")
    assert document.get("optimizer") == {"use": "leap", "reach": 5}
    assert document.get("training") == {"batch_size": 64}
    document.apply({"optimizer": {"lr": 0.5}}, "advice")
    assert document.get("optimizer") == {"use": "leap", "reach": 5, "lr": 0.5}
