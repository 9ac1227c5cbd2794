"""The recipe document: TOML in and out, edits by path, comments kept, every mistake named."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import recipe as recipe_module
from engine.catalog import Catalog, Entry
from engine.errors import RecipeError
from engine.recipe import Recipe, flatten, merge

WRITTEN = """# What I tried on Friday.
name = "digits, first try"
seed = 3

[task]
use = "shapes"   # the small one

# A wide one.
[model]
use = "stack"
hidden = [128, 64]

[optimizer]
use = "walker"
lr = 0.001

[[techniques]]
use = "swap"
every = 2

[budget]
epochs = 4.0
"""


def entry(id: str, kind: str, default: bool = False, **properties: Any) -> Entry:
    schema = {"type": "object", "properties": properties, "required": []}
    return Entry(id=id, name=id, slot=kind, kind=kind, summary="", import_="m:C", schema=schema, default=default)


CATALOG = Catalog(
    [
        entry("shapes", "task", True, noise={"type": "number", "minimum": 0, "maximum": 1, "default": 0.0}),
        entry(
            "stack", "model", True, hidden={"type": "array", "items": {"type": "integer", "minimum": 1}, "default": [8]}
        ),
        entry(
            "walker",
            "optimizer",
            True,
            lr={"type": "number", "exclusiveMinimum": 0, "default": 0.01},
            betas={"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}], "default": [0.9, 0.99]},
        ),
        entry(
            "runner",
            "optimizer",
            lr={"type": "number", "exclusiveMinimum": 0, "default": 0.1},
            mode={"enum": ["a", "b"], "default": "a"},
        ),
        entry("ramp", "schedule", True, start={"type": "number", "default": 0.0}),
        entry("plain", "procedure", True),
        entry(
            "swap",
            "technique",
            every={"type": "integer", "minimum": 1, "default": 1},
            strength={"type": "number", "x-value": True, "default": 1.0},
        ),
        entry("wrap", "technique", inner={"x-part": "layer"}),
        entry("felt", "layer", depth={"type": "integer", "default": 2}),
        entry("comb", "search", space={"type": "object", "x-space": True}),
        entry("ask", "study"),
    ],
    {
        "training": {"properties": {"batch_size": {"type": "integer", "minimum": 1, "default": 32}}},
        "budget": {"properties": {"epochs": {"type": "number", "minimum": 0, "default": 10.0}}},
    },
)


def problems(text: str) -> dict[str, str]:
    return {problem.path: str(problem) for problem in Recipe.parse(text).check(CATALOG)}


def test_text_is_what_was_written() -> None:
    assert Recipe.parse(WRITTEN).text() == WRITTEN
    assert Recipe.parse(WRITTEN).check(CATALOG) == []


def test_an_edit_keeps_comments_and_order() -> None:
    recipe = Recipe.parse(WRITTEN)
    recipe.set("optimizer.lr", 0.5)
    recipe.set("techniques.0.every", 7)
    assert recipe.text() == WRITTEN.replace("lr = 0.001", "lr = 0.5").replace("every = 2", "every = 7")


def test_a_new_section_comes_at_its_usual_place() -> None:
    recipe = Recipe.parse(WRITTEN)
    recipe.set("schedule", {"use": "ramp"})
    recipe.set("training.batch_size", 16)
    assert list(tomllib.loads(recipe.text())) == [
        "name",
        "seed",
        "task",
        "model",
        "optimizer",
        "schedule",
        "techniques",
        "training",
        "budget",
    ]
    assert "# A wide one.\n[model]" in recipe.text()
    assert recipe.get("training.batch_size") == 16


def test_techniques_are_inserted_moved_and_removed() -> None:
    recipe = Recipe.parse(WRITTEN)
    recipe.insert_part("techniques", 1, {"use": "wrap", "inner": {"use": "felt"}})
    assert [t["use"] for t in recipe.document["techniques"]] == ["swap", "wrap"]
    recipe.move_part("techniques", 1, 0)
    assert [t["use"] for t in Recipe.parse(recipe.text()).document["techniques"]] == ["wrap", "swap"]
    recipe.remove("techniques.0")
    recipe.remove("techniques.0")
    assert "techniques" not in Recipe.parse(recipe.text()).document


def test_choosing_another_part_keeps_what_fits() -> None:
    recipe = Recipe.parse(WRITTEN)
    recipe.set("optimizer.betas", [0.1, 0.2])
    recipe.choose("optimizer", "runner", CATALOG)
    assert recipe.get("optimizer") == {"use": "runner", "lr": 0.001}


def test_defaults_are_filled_in_nested_parts_and_missing_sections() -> None:
    text = WRITTEN + '\n[[techniques]]\nuse = "wrap"\ninner = { use = "felt" }\n'
    filled = Recipe.parse(text).filled(CATALOG)
    assert filled["schedule"] == {"use": "ramp", "start": 0.0}
    assert filled["procedure"] == {"use": "plain"}
    assert filled["techniques"][1]["inner"] == {"use": "felt", "depth": 2}
    assert filled["training"] == {"batch_size": 32}
    assert filled["search"] is None and filled["loss"] is None


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        (("lr = 0.001", "lr = -1"), "optimizer.lr", "-1 is not a number greater than 0."),
        (("lr = 0.001", "lr = nan"), "optimizer.lr", "nan is not a number greater than 0."),
        (("lr = 0.001", "lr = true"), "optimizer.lr", "true is not a number greater than 0."),
        (("lr = 0.001", "lrr = 1"), "optimizer.lrr", "Did you mean 'lr'?"),
        (("walker", "walkr"), "optimizer.use", "there is no optimizer \"walkr\". Did you mean 'walker'?"),
        (('use = "walker"', 'use = "ramp"'), "optimizer.use", '"ramp" is a schedule, not an optimizer.'),
        (("[128, 64]", "[128, 0]"), "model.hidden.1", "0 is not a whole number of at least 1."),
        (("[128, 64]", '"wide"'), "model.hidden", '"wide" is not a list, each a whole number of at least 1.'),
        (("every = 2", "every = 2.5"), "techniques.0.every", "2.5 is not a whole number of at least 1."),
        (
            ("every = 2", 'strength = { value = 1, schedule = { use = "walker" } }'),
            "techniques.0.strength.schedule.use",
            "not a schedule",
        ),
        (
            ("every = 2", "strength = { base = 1 }"),
            "techniques.0.strength",
            "{ value = ..., schedule = { use = ... } }",
        ),
        (("[model]", "[modle]"), "modle", "Did you mean 'model'?"),
        (("seed = 3", 'seed = "3"'), "seed", '"3" is not a whole number.'),
        (("seed = 3", "seed = -1"), "seed", "from 0 to 2^63 - 1"),
        (("[[techniques]]", "[techniques]"), "techniques", "write each of the techniques as [[techniques]]"),
        (("epochs = 4.0", "epochs = -4"), "budget.epochs", "of at least 0"),
        (("epochs = 4.0", "epoch = 4"), "budget.epoch", "Did you mean 'epochs'?"),
    ],
)
def test_mistakes_are_named(change: tuple[str, str], path: str, words: str) -> None:
    found = problems(WRITTEN.replace(*change))
    assert words in found[path]


def test_a_missing_section_is_named() -> None:
    assert problems('[model]\nuse = "stack"\n') == {"task": "task: the recipe has no [task]; name a task: shapes."}


def test_a_search_space_is_checked_like_the_recipe() -> None:
    text = WRITTEN + '\n[search]\nuse = "comb"\nspace = {{ "{}" = {} }}\n'
    assert problems(text.format("optimizer.lr", "[0.1, 0.2]")) == {}
    assert (
        "-1 is not a number greater than 0"
        in problems(text.format("optimizer.lr", "[0.1, -1]"))['search.space."optimizer.lr"']
    )
    assert "Did you mean 'lr'" in problems(text.format("optimizer.lrr", "[0.1]"))['search.space."optimizer.lrr"']
    assert problems(text.format("optimizer.lr", "{ low = 0.0, high = 1.0 }"))


SPACE = (
    WRITTEN
    + """
[search]
use = "comb"
[search.space]
"optimizer" = [{ use = "runner" }, { use = "walker" }]
"""
)


def test_a_conditional_axis_is_checked_beside_the_part_that_lets_it_count() -> None:
    """Walker, the recipe's own optimizer, has no mode; runner has."""
    mode = '"optimizer.mode" = {{ values = ["a", {}], when = {{ "optimizer.use" = [{}] }} }}\n'
    assert problems(SPACE + mode.format('"b"', '"runner"')) == {}
    where = 'search.space."optimizer.mode"'
    assert '"c" is not one of "a", "b"' in problems(SPACE + mode.format('"c"', '"runner"'))[where]
    assert "walker has no field 'mode'" in problems(SPACE + mode.format('"b"', '"runner", "walker"'))[where]
    rate = '"optimizer.lr" = { low = 0.0, high = 1.0, when = { "optimizer.use" = ["runner", "walker"] } }\n'
    assert "0.0 is not a number greater than 0" in problems(SPACE + rate)['search.space."optimizer.lr"']
    chain = '"training.batch_size" = { values = [8, 0], when = { "optimizer.mode" = ["b"] } }\n'
    found = problems(SPACE + mode.format('"b"', '"runner"') + chain)
    assert list(found) == ['search.space."training.batch_size"']


def test_whole_part_tables_are_checked_like_parts() -> None:
    (sentence,) = problems(SPACE.replace("walker", "wlker").replace('use = "wlker"\nlr', 'use = "walker"\nlr')).values()
    assert "there is no optimizer" in sentence and "walker" in sentence


def test_a_recipe_plans_one_way() -> None:
    assert Recipe.parse(WRITTEN).plan == "" and Recipe.parse(SPACE).plan == "search"
    both = problems(SPACE + '[study]\nuse = "ask"\n')
    words = "the recipe has a [search] and a [study]; a sweep carries out one of them: take the other away."
    assert both == {"study": f"study: {words}"}


def test_what_is_no_recipe_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"not valid TOML: .*at line 2"):
        Recipe.parse("[task]\nuse = \n")
    with pytest.raises(RecipeError, match="there is no recipe file"):
        Recipe.load(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="is a folder"):
        Recipe.load(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not text in UTF-8"):
        Recipe.load(tmp_path / "binary.toml")


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="Update Athanor"):
        Recipe.parse("schema = 99\n")
    with pytest.raises(RecipeError, match="not a recipe version"):
        Recipe.parse('schema = "one"\n')

    def rename(toml: Any) -> None:
        toml["model"] = toml.pop("network")

    monkeypatch.setattr(recipe_module, "SCHEMA", 2)
    monkeypatch.setattr(recipe_module, "MIGRATIONS", {1: rename})
    old = Recipe.parse('schema = 1\n[network]\nuse = "stack"\n')
    assert old.document == {"schema": 2, "model": {"use": "stack"}}
    new = Recipe.parse('schema = 2\n[model]\nuse = "stack"\n')
    assert new.document["schema"] == 2


def test_difference_and_digest() -> None:
    one, two = Recipe.parse(WRITTEN), Recipe.parse(WRITTEN)
    two.set("optimizer.lr", 0.002)
    two.set("name", "other")
    two.remove("techniques.0")
    assert [(d.path, d.mine, d.theirs) for d in one.difference(two)] == [
        ("optimizer.lr", 0.001, 0.002),
        ("techniques.0.use", "swap", None),
        ("techniques.0.every", 2, None),
    ]
    assert one.digest() != two.digest()
    renamed = Recipe.parse(WRITTEN.replace("first try", "second try"))
    assert renamed.digest() == one.digest()


def test_setting_what_cannot_be_set_is_refused() -> None:
    with pytest.raises(RecipeError, match="no place"):
        Recipe.parse(WRITTEN).set("optimizer.lr.deeper", 1)
    with pytest.raises(RecipeError, match="no place"):
        Recipe.parse(WRITTEN).set("techniques.4.every", 1)


def test_merge_replaces_a_part_whole_and_merges_its_settings() -> None:
    base = {"optimizer": {"use": "walker", "lr": 1}, "seed": 0}
    assert merge(base, {"optimizer": {"lr": 2}})["optimizer"] == {"use": "walker", "lr": 2}
    assert merge(base, {"optimizer": {"use": "runner"}})["optimizer"] == {"use": "runner"}
    shared = merge({"search": {"space": {"seed": [0, 1]}}}, {"search": {"use": "comb"}})["search"]
    assert shared == {"space": {"seed": [0, 1]}, "use": "comb"}, "settings that name no part yet are kept"


words = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1, max_size=8)
scalars = st.one_of(
    st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), words
)


@given(st.dictionaries(words, scalars, max_size=4), st.lists(st.integers(1, 9), max_size=4))
def test_any_plain_document_survives_the_text(settings: dict[str, Any], hidden: list[int]) -> None:
    document = {"name": "n", "model": {"use": "stack", "hidden": hidden, "extra": settings}}
    assert Recipe.parse(Recipe.of(document).text()).document == document


def test_flatten_keeps_lists_of_numbers_whole() -> None:
    assert flatten({"a": {"b": [1, 2]}, "c": [{"d": 1}]}) == {"a.b": [1, 2], "c.0.d": 1}
