"""The texts that name sources: read, refused with a sentence, and found in documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.catalog import Catalog
from engine.settings import check_value
from engine.sources import Named, named_in, parse, recipe_file
from engine.workspace import RESOURCES, Workspace

ONE = {"type": "string", "x-source": True}
MANY = {"type": "array", "items": ONE}
NONE = Catalog([])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("run:3f2a", Named("run", "3f2a")),
        ("run:3f2a@best", Named("run", "3f2a", "best")),
        ("run:3f2a@120", Named("run", "3f2a", 120)),
        ("recipe:my recipes/big.toml@init", Named("recipe", "my recipes/big.toml", "init")),
        ("recipe:a@b.toml@last", Named("recipe", "a@b.toml", "last")),
        ("recipe:big.toml@best?seed=follow", Named("recipe", "big.toml", "best", True)),
        ("phase:dense@200", Named("phase", "dense", 200)),
        ("tag:zoo", Named("tag", "zoo")),
    ],
)
def test_every_form_is_read_and_written_again(text: str, named: Named) -> None:
    assert parse(text) == named
    assert parse(str(named)) == named


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (3, "is not a source"),
        ("3f2a", "is not a source"),
        ("model:3f2a", "is not a source"),
        ("run:", "names no run"),
        ("run:@best", "names no run"),
        ("run:3f2a@yesterday", "best, last, init or a step"),
        ("phase:dense@best", "write last or a step"),
        ("tag:zoo@best", "as they are at their end"),
        ("run:3f2a?seed=follow", "only a recipe"),
        ("recipe:big.toml?seed=3", "only a recipe"),
    ],
)
def test_what_is_no_source_is_refused_with_what_is_right(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        parse(text)
    (problem,) = check_value(ONE, text, "here.teacher", NONE)
    assert problem.path == "here.teacher" and word in problem.message and problem.message.endswith(".")


def test_fields_and_lists_of_them() -> None:
    assert check_value(ONE, "run:3f2a", "t", NONE) == []
    assert check_value(MANY, ["run:3f2a", "tag:zoo"], "t", NONE) == []
    assert check_value({"anyOf": [ONE, {"type": "null"}]}, None, "t", NONE) == []
    (problem,) = check_value(ONE, "tag:zoo", "t", NONE)
    assert "any number of runs" in problem.message
    (problem,) = check_value(MANY, ["run:3f2a", "walk:3f2a"], "t", NONE)
    assert problem.path == "t.1"
    (problem,) = check_value(MANY, "run:3f2a", "t", NONE)
    assert "a source, such as" in problem.message


def test_a_document_tells_what_it_names() -> None:
    document = {
        "name": "run:3f2a is not meant",
        "notes": "see run:ffff",
        "training": {"start_from": "recipe:a.toml"},
        "techniques": [{"use": "x", "teachers": ["run:1", "tag:zoo"]}, {"use": "y", "inner": {"by": "phase:dense"}}],
        "model": {"words": "a run: fast"},
    }
    assert dict(named_in(document)) == {
        "training.start_from": "recipe:a.toml",
        "techniques.0.teachers.0": "run:1",
        "techniques.0.teachers.1": "tag:zoo",
        "techniques.1.inner.by": "phase:dense",
    }


def test_a_recipe_is_looked_for_in_the_workspace_first(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    shipped = RESOURCES / "recipes" / "start.toml"
    assert recipe_file("start.toml", workspace) == recipe_file("start.toml") == shipped
    assert recipe_file(str(shipped)) == shipped
    mine = workspace.folder / "start.toml"
    mine.write_text("")
    assert recipe_file("start.toml", workspace) == mine
