"""Recipes from the command line: settings typed as TOML, problems as sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.commands.check import parse_setting, problems_of, read_recipe
from engine.errors import AthanorError, Problem, RecipeError


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("optimizer.lr=1e-3", "optimizer.lr", 0.001),
        ("model.hidden=[8, 4]", "model.hidden", [8, 4]),
        ("training.compile = true", "training.compile", True),
        ("name='a b'", "name", "a b"),
        ("name=a b", "name", "a b"),
        ("model.use=some-model", "model.use", "some-model"),
        ("task.folder=/data/x=y".replace("=y", "-y"), "task.folder", "/data/x-y"),
        ("seed=007".replace("00", ""), "seed", 7),
    ],
)
def test_settings_are_toml(setting: str, path: str, value: Any) -> None:
    assert parse_setting(setting) == (path, value)


@pytest.mark.parametrize("setting", ["lr", "=1", "a..b=1", "a=", "a=[1", "a=1\nb=2", "a b=1"])
def test_what_is_no_setting_is_refused(setting: str) -> None:
    with pytest.raises(AthanorError, match="--set"):
        parse_setting(setting)


def test_a_setting_lands_in_the_recipe(tmp_path: Path) -> None:
    from engine.catalog import Catalog

    catalog = Catalog.load()
    file = tmp_path / "recipe.toml"
    file.write_text(f'[task]\nuse = "{catalog.default("task")}"  # kept\n[model]\nuse = "{catalog.default("model")}"\n')
    text = read_recipe(str(file), ["seed=5", "budget.epochs=2"])
    assert "seed = 5" in text and "epochs = 2" in text and "# kept" in text
    with pytest.raises(RecipeError, match=r"budget\.epoch: .*Did you mean 'epochs'"):
        read_recipe(str(file), ["budget.epoch=2"])


def test_problems_come_back_from_a_preview() -> None:
    preview = {"problems": [{"path": "model", "value": None, "message": "It does not fit."}]}
    assert problems_of(preview) == [Problem("model", None, "It does not fit.")]
    assert problems_of({}) == []
