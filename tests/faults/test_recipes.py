"""Thousands of damaged recipes: each is read, or refused by the one error that recipes have."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from engine.catalog import Catalog
from engine.errors import AthanorError, RecipeError
from engine.log import Log
from engine.recipe import Recipe
from engine.service.client import create_run
from tests.faults.mutations import bytes_damaged, originals, said_well, values_damaged
from tests.faults.tries import tries


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.load()


@pytest.fixture
def log(tmp_path: Path) -> Any:
    with Log(tmp_path / "athanor.db") as log:
        yield log


def read(text: str, catalog: Catalog) -> Recipe | None:
    """All that is done to a recipe without torch; None, and a sentence looked at, where it is refused."""
    try:
        recipe = Recipe.parse(text)
        assert recipe.name is not None and recipe.seed is not None and recipe.digest()
        problems = recipe.check(catalog)
        recipe.unused(catalog)
        recipe.difference(recipe.copy())
        for problem in problems:
            assert said_well(str(problem)) and len(str(problem)) < 40_000
        recipe.require(catalog)
        recipe.filled(catalog)
    except RecipeError as error:
        assert error.problems and said_well(str(error))
        return None
    return recipe


def test_damaged_bytes(catalog: Catalog, tmp_path: Path) -> None:
    texts = originals()
    file = tmp_path / "recipe.toml"
    refused = 0
    for number in tries(600):
        rng = random.Random(number)
        data = bytes_damaged(rng, rng.choice(texts))
        file.write_bytes(data)
        try:
            refused += read(Recipe.load(file).text(), catalog) is None
        except RecipeError as error:
            assert said_well(str(error)), number
            refused += 1
        except Exception as error:
            raise AssertionError(f"try {number}: {type(error).__name__}: {error}\n{data[:3000]!r}") from error
    assert refused > len(tries(600)) / 4, "most of them are no recipes any more"


def test_odd_values_keys_and_nesting(catalog: Catalog, log: Log) -> None:
    texts = originals()
    kept = refused = 0
    for number in tries(900):
        rng = random.Random(10_000_019 + number)
        document = values_damaged(rng, rng.choice(texts))
        text = tomlkit.dumps(document)
        try:
            kept += read(text, catalog) is not None
            create_run(log, text)
        except AthanorError as error:
            assert said_well(str(error)), number
            refused += 1
        except Exception as error:
            raise AssertionError(f"try {number}: {type(error).__name__}: {error}\n{document!r}") from error
    assert kept, "some are still recipes"


KEYS = (
    *("task", "model", "use", "0", "-1", "99999999999999999999", "", "techniques", "phases", "é", "hidden", "training"),
    *("seed", "budget", "a b", "²", "search"),
)


def test_paths_that_are_set(catalog: Catalog) -> None:
    texts = originals()
    for number in tries(400):
        rng = random.Random(20_000_003 + number)
        recipe = Recipe.parse(rng.choice(texts))
        keys = [rng.choice(KEYS) for _ in range(rng.randint(1, 4))]
        value = rng.choice([1, -1, 1e400, "x", [], [1], {}, {"use": "adamw"}, [{"use": "x"}], True, 10**30])
        path = ".".join(keys)
        try:
            recipe.set(path, value)
            read(recipe.text(), catalog)
            recipe.remove(path)
        except RecipeError as error:
            assert said_well(str(error)), number
        except Exception as error:
            raise AssertionError(f"try {number}: {path} = {value!r}: {type(error).__name__}: {error}") from error


def test_numbers_that_are_none() -> None:
    recipe = Recipe.parse('[[techniques]]\nuse = "x"\n')
    assert recipe.get("techniques.²") is None
    recipe.remove("techniques.²")
    with pytest.raises(RecipeError, match="no place"):
        recipe.set("techniques.²", {"use": "y"})


def test_what_is_written_is_toml(catalog: Catalog) -> None:
    """A recipe that was read and changed is still the same text to Python's own parser."""
    texts = originals()
    for number in tries(60):
        rng = random.Random(30_000_001 + number)
        text = tomlkit.dumps(values_damaged(rng, rng.choice(texts)))
        try:
            recipe = Recipe.parse(text)
        except RecipeError:
            continue
        assert str(tomllib.loads(recipe.text())) == str(tomllib.loads(text)), number
