"""Whatever a person enters into a form either works or is refused in a sentence: never a traceback, never a hang.

Each part's example is varied by draws from the part's own schema: what the form accepts is previewed and trained for
two steps; what a hand may write into a recipe's text is refused by the field's name. `ATHANOR_ANY_SETTINGS=100` draws
that often for every part (otherwise a few times), `ATHANOR_ANY_SETTINGS_SEED=7` draws others.
"""

from __future__ import annotations

import math
import os
import random
import signal
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import torch

from engine.errors import AthanorError, RecipeError
from engine.parts import Report, Row
from engine.recipe import Recipe
from engine.settings import check_value, unwrapped
from engine.training.assemble import build_search, build_study, filled, planned
from engine.training.loop import train
from engine.training.preview import preview
from engine.training.recorder import Memory
from tests.contract.conftest import CATALOG

DRAWS = int(os.environ.get("ATHANOR_ANY_SETTINGS", "2"))
SEED = int(os.environ.get("ATHANOR_ANY_SETTINGS_SEED", "0"))
SECONDS = 30  # longer than this is a hang
FEW = 6  # the most that an unbounded whole number is drawn as, unless the example has more


class Hang(BaseException):
    """It took too long; no handler of ordinary errors swallows it."""


@contextmanager
def soon(seconds: int = SECONDS) -> Iterator[None]:
    """Raises Hang in here after some seconds."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang(f"still at it after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# -- draws -------------------------------------------------------------------------------------------------------------


def drawn(field: Mapping[str, Any], value: Any, rng: random.Random) -> Any:
    """Something that the form would accept for a field whose value is `value` now."""
    if any(option.get("type") == "null" for option in field.get("anyOf", ())) and rng.random() < 0.2:
        return None
    field = unwrapped(field)
    if "x-part" in field or "x-parts" in field:
        kind = field.get("x-part") or field["x-parts"]
        return drawn_use(kind, rng) if "x-part" in field else [drawn_use(kind, rng) for _ in range(rng.randrange(3))]
    if field.get("x-source") or field.get("items", {}).get("x-source") or field.get("x-space"):
        return value
    if "enum" in field:
        return rng.choice(field["enum"])
    if field.get("x-sites"):
        return rng.choice(["linear", "conv", "norm", "embedding", "*", "nothing.like.it", "linear not first", ""])
    kind = field.get("type")
    if kind == "array":
        return drawn_list(field, value, rng)
    if kind == "string":
        texts = ["", " ", "a", "word " * 40, "{", "ünïcode"]
        fitting = [text for text in texts if not check_value(field, text, "here", CATALOG)]
        return rng.choice([*fitting, value])
    if kind == "integer":
        return drawn_integer(field, value, rng)
    if kind == "number":
        number = drawn_number(field, value if not isinstance(value, Mapping) else value["value"], rng)
        if field.get("x-value") and rng.random() < 0.3:
            return {"value": number, "schedule": drawn_use("schedule", rng)}
        return number
    return rng.random() < 0.5 if kind == "boolean" else value


def drawn_use(kind: str, rng: random.Random) -> dict[str, Any]:
    """A part of a kind, with its defaults."""
    ready = [e for e in CATALOG.of_kind(kind) if all(name in e.defaults() for name in e.schema["required"])]
    return {"use": rng.choice(ready).id}


def drawn_list(field: Mapping[str, Any], value: Any, rng: random.Random) -> list[Any]:
    now = list(value) if isinstance(value, list | tuple) else []
    if "prefixItems" in field:
        now = [*now, *[None] * len(field["prefixItems"])]
        return [drawn(each, now[i], rng) for i, each in enumerate(field["prefixItems"])]
    low = field.get("minItems", 0)
    length = rng.randint(low, min(field.get("maxItems", low + 3), low + 3))
    return [drawn(field.get("items", {}), now[i] if i < len(now) else None, rng) for i in range(length)]


def drawn_integer(field: Mapping[str, Any], value: Any, rng: random.Random) -> int:
    now = value if isinstance(value, int) else 2
    each = field.get("multipleOf", 1)
    low = field.get("minimum", -3)
    high = field.get("maximum", math.inf)
    tries = [low, low, low + 1, rng.randint(low, low + FEW), now // 2, now - 1, now + 1, rng.randint(0, max(now, 2))]
    tries += [high] if high <= 20 else []
    number = rng.choice([n for n in tries if low <= n <= high] or [now])
    return int(number // each * each)


def drawn_number(field: Mapping[str, Any], value: Any, rng: random.Random) -> float:
    now = float(value) if isinstance(value, int | float) else 0.5
    low = field.get("minimum", field.get("exclusiveMinimum"))
    high = field.get("maximum", field.get("exclusiveMaximum"))
    tries = [now / 10, now * 10, now / 2, now * 2, 0.0, 1.0, rng.random(), 10 ** rng.uniform(-6, 2)]
    for end, sign in ((low, 1), (high, -1)):
        if end is not None:
            tries += [end, end, end + sign * 1e-9, end + sign * 1e-3]
    if low is not None and high is not None:
        tries += [rng.uniform(low, high)] * 2
    if low is None:
        tries += [-now, -1.0]
    fitting = [n for n in tries if not check_value({**field, "x-value": False}, n, "here", CATALOG)]
    return float(rng.choice(fitting or [now]))


def place(document: Any, part: str, path: str = "") -> str | None:
    """Where a part stands in a document."""
    if isinstance(document, list):
        document = {str(i): value for i, value in enumerate(document)}
    if not isinstance(document, Mapping):
        return None
    if document.get("use") == part:
        return path
    inner = (place(value, part, f"{path}.{name}" if path else name) for name, value in document.items())
    return next((found for found in inner if found is not None), None)


def base_of(part: str) -> tuple[dict[str, Any], str]:
    """The part's example, every field of it written out, with two steps to train; and the part's place in it."""
    document = Recipe.of(CATALOG.example(part)).document
    at = place(document, part)
    assert at is not None
    document["budget"] = {"steps": 2} if document.get("budget", {}).get("steps", 1) else document["budget"]
    return document, at


def varied(part: str, number: int) -> tuple[Recipe, dict[str, Any]]:
    """The example of a part with a few of its settings drawn anew, and these."""
    rng = random.Random(zlib.crc32(f"{part} {number} {SEED}".encode()))
    document, at = base_of(part)
    recipe, entry = Recipe.of(document), CATALOG.parts[part]
    fields = [name for name, field in entry.schema["properties"].items() if not field.get("x-endpoint")]
    now = {**entry.defaults(), **recipe.get(at)}
    changes: dict[str, Any] = {}
    for name in rng.sample(fields, min(rng.choice([1, 1, 2, 3]), len(fields))):
        changes[name] = drawn(entry.schema["properties"][name], now.get(name), rng)
    for name, value in changes.items():
        if value is None:
            recipe.remove(f"{at}.{name}")  # TOML has no nothing: it is left out
        else:
            recipe.set(f"{at}.{name}", value)
    return recipe, changes


# -- carried out -------------------------------------------------------------------------------------------------------


def carried_out(recipe: Recipe) -> list[str]:
    """Checks, previews and trains a recipe; the sentences by which it was refused, if it was."""
    problems = recipe.check(CATALOG)
    if problems:
        return [problem.message for problem in problems]
    found = preview(recipe.text())["problems"]
    if found:
        return [problem["message"] for problem in found]
    try:
        document = filled(recipe, CATALOG)
        if document["search"]:
            search(document)
        elif document["study"]:
            study(document)
        else:
            outcome = train(document, Memory())
            assert outcome.state in ("done", "diverged"), outcome.message
    except RecipeError as error:
        return [problem.message for problem in error.problems]
    except AthanorError as error:
        return [str(error)]
    return []


def search(document: Mapping[str, Any]) -> None:
    """Asks a search for all that it wants, told how each went; a part of that where it wants much."""
    searching = build_search(document)
    searching.start(torch.Generator().manual_seed(0))
    for turn in range(60):
        asks = searching.ask(3)
        for number, ask in enumerate(asks):
            value = math.inf if (turn + number) % 5 == 4 else float(number - turn)
            searching.tell(Report(ask.id, value, curve=[(1, 1.0)], steps=2))
        if not asks:
            break
    searching.result()


def study(document: Mapping[str, Any]) -> None:
    asking = build_study(document)
    asking.report([Row(ask.labels, state="diverged") for ask in planned(document, asking)])


def is_sentence(message: str) -> bool:
    """Whether a refusal was written for a person, and not by a library's innards."""
    return len(message) > 8 and message.rstrip().endswith((".", "?", '"', ")"))


@pytest.mark.parametrize("number", range(DRAWS))
def test_what_the_form_accepts_works_or_is_refused_in_a_sentence(part: str, number: int) -> None:
    recipe, changes = varied(part, number)
    try:
        with soon():
            refusals = carried_out(recipe)
    except (Exception, Hang) as error:
        pytest.fail(f"{part} with {changes}: {type(error).__name__}: {error}")
    for sentence in refusals:
        assert is_sentence(sentence), f"{part} with {changes}: {sentence}"


# -- a person's own hand -----------------------------------------------------------------------------------------------

WORDS = ["", " ", "x" * 10_000, "NaN", "-1", "run:", "'; drop table runs; --", "\x00", "../../etc/passwd"]
NUMBERS = [math.nan, math.inf, -math.inf, 1e300, -1e300, 10**30, -(10**30), 10**400]
HOSTILE: list[Any] = [*WORDS, *NUMBERS, -1, -1e-9, 0, True, [], [[]], [{}], ["x"], {}, {"use": ""}, {"use": 3}]
HOSTILE += [{"value": "x"}, {"value": math.nan}, {"value": 1, "schedule": {}}, {"low": 1}, [math.nan], [10**30]]


def must_refuse(field: Mapping[str, Any], value: Any) -> bool:
    """Whether no field of this type takes the value, whatever its limits are."""
    kinds = {option.get("type") for option in field.get("anyOf", [field])}
    if kinds & {None, "object"} or field.get("x-value"):
        return False
    number, text = kinds & {"number", "integer"}, "string" in kinds
    if isinstance(value, bool):
        return "boolean" not in kinds
    if isinstance(value, int | float):
        return not number or not abs(value) < 1e38 or (kinds == {"integer"} and isinstance(value, float))
    if isinstance(value, str):
        return not text
    return "array" not in kinds if isinstance(value, list) else True


def refused_by_name(recipe: Recipe, at: str, fields: Mapping[str, Any], value: Any) -> None:
    """A value of a person's own hand, written into every field of a table: each takes it, or is named."""
    for name in fields:
        recipe.set(f"{at}.{name}", value)
    problems = recipe.check(CATALOG)
    shown = repr(value)[:40]
    for name, field in fields.items():
        path = f"{at}.{name}"
        named = [p for p in problems if p.path == path or p.path.startswith((f"{path}.", f'{path}."'))]
        assert named or not must_refuse(field, value), f"{path} = {shown} is let through"
    for problem in problems:
        assert problem.path.startswith(f"{at}."), f"{shown}: {problem}"
        assert is_sentence(problem.message), f"{shown}: {problem}"
        assert len(problem.message) < 2000, f"{problem.path} = {shown} is shown at full length"


def test_what_a_hand_writes_is_refused_by_the_name_of_its_field(part: str) -> None:
    document, at = base_of(part)
    recipe = Recipe.of(document)
    for value in HOSTILE:
        refused_by_name(recipe, at, CATALOG.parts[part].schema["properties"], value)


@pytest.mark.parametrize("section", ["training", "budget"])
def test_so_it_is_in_the_sections_of_every_recipe(section: str) -> None:
    recipe = Recipe.of(base_of(CATALOG.default("procedure") or "")[0])
    for value in HOSTILE:
        refused_by_name(recipe, section, CATALOG.sections[section]["properties"], value)
