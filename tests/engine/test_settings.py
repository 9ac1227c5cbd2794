"""Settings against their schema: every wrong value is refused in one sentence, every right one is filled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.catalog import Catalog, Entry
from engine.settings import check_settings, check_use, describe, did_you_mean, fill, fill_use, fits, show, unwrapped

NUMBER = {"type": "number", "exclusiveMinimum": 0, "default": 1.0}
WHOLE = {"type": "integer", "minimum": 1, "maximum": 8, "default": 2}
PAIR = {"type": "array", "minItems": 2, "maxItems": 2, "prefixItems": [{"type": "number", "minimum": 0}] * 2}
OVER_TIME = {"type": "number", "minimum": 0, "x-value": True, "default": 0.5}
FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "lr": NUMBER,
        "steps": WHOLE,
        "pair": {**PAIR, "default": [1, 2]},
        "mode": {"type": "string", "enum": ["on", "off"], "default": "on"},
        "level": OVER_TIME,
        "inner": {"x-part": "layer", "default": {"use": "plain"}},
        "chain": {"x-parts": "layer", "default": []},
        "maybe": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}], "default": None},
        "optional": {"anyOf": [{"x-part": "layer"}, {"type": "null"}], "default": None},
        "name": {"type": "string", "pattern": "^[a-z]+$", "default": "a"},
        "needed": {"type": "boolean"},
    },
    "required": ["needed"],
}


def entry(id: str, kind: str, **properties: Any) -> Entry:
    schema = {"type": "object", "properties": properties, "required": []}
    return Entry(id=id, name=id, slot=kind, kind=kind, summary="", import_="m:C", schema=schema)


CATALOG = Catalog(
    [
        entry("plain", "layer", width=WHOLE),
        entry("deep", "layer", inner={"x-part": "layer", "default": {"use": "plain"}}),
        entry("ramp", "schedule", floor=NUMBER),
        entry("a-task", "task"),
    ]
)


def problems(**settings: Any) -> list[str]:
    return [str(p) for p in check_settings(FORM, {"needed": True, **settings}, "part", CATALOG, "thing")]


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 1},
        {"lr": 1e-9},
        {"steps": 8},
        {"pair": [0, 0.5]},
        {"mode": "off"},
        {"level": 0},
        {"level": {"value": 2}},
        {"level": {"value": 2, "schedule": {"use": "ramp", "floor": 0.5}}},
        {"inner": {"use": "deep", "inner": {"use": "plain", "width": 3}}},
        {"chain": [{"use": "plain"}, {"use": "deep"}]},
        {"maybe": None},
        {"maybe": 3},
        {"optional": None},
        {"optional": {"use": "plain", "width": 1}},
    ],
)
def test_what_is_right_passes(settings: dict[str, Any]) -> None:
    assert problems(**settings) == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lr": 0}, "part.lr: 0 is not a number greater than 0."),
        ({"lr": True}, "part.lr: true is not a number greater than 0."),
        ({"lr": float("nan")}, "part.lr: nan is not a number greater than 0."),
        ({"lr": float("inf")}, "part.lr: inf is not a number greater than 0."),
        ({"steps": 9}, "part.steps: 9 is not a whole number from 1 to 8."),
        ({"steps": 2.0}, "part.steps: 2.0 is not a whole number from 1 to 8."),
        ({"pair": [1]}, "part.pair: [1] is not a list of 2: a number of at least 0, a number of at least 0."),
        ({"pair": [1, -1]}, "part.pair.1: -1 is not a number of at least 0."),
        ({"mode": "up"}, 'part.mode: "up" is not one of "on", "off".'),
        ({"level": -1}, "part.level: -1 is not a number of at least 0, or { value = ..., schedule = { use = ... } }."),
        ({"level": {"value": -1}}, "part.level.value: -1 is not a number of at least 0."),
        ({"level": {"schedule": {"use": "ramp"}}}, "part.level: "),
        ({"level": {"value": 1, "schedule": {"use": "plain"}}}, "part.level.schedule.use: "),
        ({"level": {"value": 1, "schedule": {"use": "ramp", "floor": 0}}}, "part.level.schedule.floor: 0 is not"),
        ({"inner": "plain"}, 'part.inner: "plain" is not a layer; write { use = "..." }.'),
        ({"inner": {"use": "plian"}}, "part.inner.use: there is no layer \"plian\". Did you mean 'plain'?"),
        ({"inner": {"use": "ramp"}}, 'part.inner.use: "ramp" is a schedule, not a layer.'),
        ({"inner": {}}, "part.inner.use: name a layer: use = one of plain, deep."),
        ({"inner": {"use": "deep", "inner": {"use": "plain", "width": 0}}}, "part.inner.inner.width: 0 is not"),
        ({"chain": {"use": "plain"}}, "part.chain: {'use': 'plain'} is not a list of layer parts"),
        ({"chain": [{"use": "plain", "width": 0}]}, "part.chain.0.width: 0 is not a whole number from 1 to 8."),
        ({"maybe": 0}, "part.maybe: 0 is not a whole number of at least 1."),
        ({"optional": {"use": "plain", "width": 0}}, "part.optional.width: 0 is not a whole number from 1 to 8."),
        ({"name": "A"}, 'part.name: "A" is not text'),
        ({"stpes": 1}, "part.stpes: thing has no field 'stpes'. Did you mean 'steps'?"),
    ],
)
def test_what_is_wrong_is_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    found = problems(**settings)
    assert len(found) == 1 and found[0].startswith(sentence), found


def test_what_is_missing_is_named() -> None:
    found = check_settings(FORM, {}, "part", CATALOG, "thing")
    assert [str(p) for p in found] == ["part.needed: thing needs 'needed': true or false."]
    assert str(check_use({"use": 3}, "layer", "x", CATALOG)[0]).startswith("x.use: 3 is not text; name a layer")
    assert "enabled" in str(check_use({"use": "plain", "enabled": 1}, "layer", "x", CATALOG)[0])


def test_defaults_are_written_out_to_the_last_part() -> None:
    found = fill(
        FORM, {"needed": True, "optional": {"use": "deep"}, "level": {"value": 1, "schedule": {"use": "ramp"}}}, CATALOG
    )
    assert found == {
        "lr": 1.0,
        "steps": 2,
        "pair": [1, 2],
        "mode": "on",
        "level": {"value": 1, "schedule": {"use": "ramp", "floor": 1.0}},
        "inner": {"use": "plain", "width": 2},
        "chain": [],
        "maybe": None,
        "optional": {"use": "deep", "inner": {"use": "plain", "width": 2}},
        "name": "a",
        "needed": True,
    }
    assert fill(FORM, found, CATALOG) == found, "filled once is filled"
    kept = fill_use({"use": "plain", "enabled": False}, CATALOG)
    assert kept == {"use": "plain", "enabled": False, "width": 2}


def test_words_for_schemas_and_values() -> None:
    assert describe(FORM["properties"]["optional"]) == 'a layer, as { use = "..." }'
    assert describe({"type": "array", "items": WHOLE, "minItems": 1}).startswith(
        "a list, each a whole number from 1 to 8"
    )
    assert describe({"const": 3}) == "3" and describe({}) == "a value"
    assert [show(v) for v in (True, "a", 1.5)] == ["true", '"a"', "1.5"]
    assert did_you_mean("momentun", ["momentum", "lr"]) == " Did you mean 'momentum'?" and not did_you_mean("x", ["lr"])
    assert unwrapped(FORM["properties"]["maybe"]) == {"type": "integer", "minimum": 1} and unwrapped(NUMBER) is NUMBER
    assert fits({"enum": [1, 2]}, 1) and not fits({"enum": [1, 2]}, True), "true is no number"


def test_a_part_whose_package_is_missing_says_how_to_get_it() -> None:
    here = replace(entry("here", "loss"), packages=["json"])
    away = replace(entry("away", "loss"), packages=["json", "no_such_package"])
    catalog = Catalog([here, away])
    assert here.lacks == "" and check_use({"use": "here"}, "loss", "loss", catalog) == []
    (problem,) = check_use({"use": "away"}, "loss", "loss", catalog)
    assert problem.path == "loss.use" and "pip install no_such_package" in problem.message
    assert check_use({"use": "away", "enabled": False}, "loss", "loss", catalog) == []
