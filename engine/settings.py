"""Checks and fills the settings of a part from its JSON schema, without importing the part.

A schema is the standard JSON Schema of the constructor's signature with a few extensions: ``x-part`` (the value names
another part of that kind), ``x-parts`` (a list of them), ``x-value`` (a number, or one that follows a schedule),
``x-source`` (the value names something trained elsewhere),
``x-space`` (paths of the recipe with what they may be), ``x-live`` (such paths that are learned inside a run).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from engine import sources
from engine.errors import Problem

if TYPE_CHECKING:
    from engine.catalog import Catalog, Entry

WORDS = {
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "string": "text",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}
ARTICLES = {"optimizer": "an optimizer"}
LONGEST = 200  # characters of a value in a sentence
HUGE_WHOLE = 2**63  # more than any count, seed or size
HUGE = 3.4e38  # the largest number of tensors; not-a-number is not smaller
# Keys of a part's table that are no settings of it: the part's id, whether it is switched on, and, of a technique, the
# roles that it acts on.
RESERVED = ("use", "enabled", "on")


def a_kind(kind: str) -> str:
    """The kind with its article: 'a model', 'an optimizer'."""
    return ARTICLES.get(kind, f"a {kind}")


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A hint at the closest choice, or nothing."""
    close = difflib.get_close_matches(str(word), list(choices), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def show(value: Any) -> str:
    """A value as a recipe would write it; the beginning of a long one."""
    if isinstance(value, bool):
        return "true" if value else "false"
    shown = repr(value) if not isinstance(value, str) else f'"{value}"'
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]} ..."


def describe(schema: Mapping[str, Any]) -> str:
    """What a field takes, in words: 'a number greater than 0'."""
    if "x-part" in schema:
        return f'{a_kind(schema["x-part"])}, as {{ use = "..." }}'
    if "x-parts" in schema:
        return f'a list of {schema["x-parts"]} parts, each {{ use = "..." }}'
    if schema.get("x-live"):
        return 'what to learn and its range, such as { "techniques.0.rate" = { low = 0, high = 0.9 } }'
    if schema.get("x-space"):
        return 'what to vary, such as { "optimizer.lr" = [0.001, 0.01] }'
    if schema.get("x-source"):
        return f"a source, such as {sources.FORMS}"
    if "enum" in schema:
        return "one of " + ", ".join(show(choice) for choice in schema["enum"])
    if "const" in schema:
        return show(schema["const"])
    if "anyOf" in schema:
        return " or ".join(describe(option) for option in schema["anyOf"] if option.get("type") != "null")
    if schema.get("type") == "array":
        return _describe_array(schema)
    words = WORDS.get(schema.get("type", ""), "a value") + _describe_range(schema)
    if "pattern" in schema:
        words += f" that matches {schema['pattern']}"
    if schema.get("x-value"):
        words += ", or { value = ..., schedule = { use = ... } }"
    return words


def _describe_range(schema: Mapping[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    words = []
    if low is not None:
        words.append(f"of at least {low:g}")
    if above is not None:
        words.append(f"greater than {above:g}")
    if high is not None:
        words.append(f"of at most {high:g}")
    if below is not None:
        words.append(f"less than {below:g}")
    return (" " + " and ".join(words)) if words else ""


def _describe_array(schema: Mapping[str, Any]) -> str:
    if "prefixItems" in schema:
        return f"a list of {len(schema['prefixItems'])}: " + ", ".join(describe(s) for s in schema["prefixItems"])
    words = f"a list, each {describe(schema['items'])}" if schema.get("items") else "a list"
    if schema.get("minItems"):
        words += f" (at least {schema['minItems']})"
    return words


def check_settings(
    schema: Mapping[str, Any], settings: Mapping[str, Any], path: str, catalog: Catalog, owner: str
) -> list[Problem]:
    """Every problem of a table of settings against a part's schema; `owner` is the part's name in sentences."""
    fields = schema.get("properties", {})
    problems = []
    for name, value in settings.items():
        where = f"{path}.{name}" if path else name
        if name not in fields:
            known = f" It has {', '.join(fields)}." if fields else " It has no settings."
            problems.append(
                Problem(where, value, f"{owner} has no field {name!r}.{did_you_mean(name, fields) or known}")
            )
        else:
            problems += check_value(fields[name], value, where, catalog)
    for name in schema.get("required", ()):
        if name not in settings:
            right = describe(fields[name])
            problems.append(Problem(f"{path}.{name}", None, f"{owner} needs {name!r}: {right}."))
    return problems


def check_value(schema: Mapping[str, Any], value: Any, path: str, catalog: Catalog) -> list[Problem]:
    """Every problem of one value against its field's schema."""
    if value is None and any(option.get("type") == "null" for option in schema.get("anyOf", ())):
        return []
    schema = unwrapped(schema)
    if "x-part" in schema:
        return check_use(value, schema["x-part"], path, catalog)
    if "x-parts" in schema:
        if not isinstance(value, list):
            return [_wrong(schema, value, path)]
        return [p for i, v in enumerate(value) for p in check_use(v, schema["x-parts"], f"{path}.{i}", catalog)]
    if schema.get("x-value") and isinstance(value, Mapping):
        return _check_over_time(schema, value, path, catalog)
    if schema.get("x-source"):
        return _check_source(value, path)
    if "anyOf" in schema:
        tried = [check_value(option, value, path, catalog) for option in schema["anyOf"]]
        return [] if any(not problems for problems in tried) else [_wrong(schema, value, path)]
    if schema.get("type") == "array" and isinstance(value, list):
        return _check_array(schema, value, path, catalog)
    return [] if fits(schema, value) else [_wrong(schema, value, path)]


def unwrapped(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of an optional field's value; any other schema as it is."""
    options = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    return options[0] if len(options) == 1 else schema


def _check_over_time(schema: Mapping[str, Any], value: Mapping[str, Any], path: str, catalog: Catalog) -> list[Problem]:
    extra = [key for key in value if key not in ("value", "schedule")]
    if extra or "value" not in value:
        return [_wrong(schema, dict(value), path)]
    number = {key: limit for key, limit in schema.items() if key != "x-value"}
    problems = check_value(number, value["value"], f"{path}.value", catalog)
    if "schedule" in value:
        problems += check_use(value["schedule"], "schedule", f"{path}.schedule", catalog)
    return problems


def _check_source(value: Any, path: str, many: bool = False) -> list[Problem]:
    try:
        named = sources.parse(value)
    except ValueError as error:
        return [Problem(path, value, str(error))]
    if named.kind == "tag" and not many:
        return [Problem(path, value, f'"{value}" stands for any number of runs, and one is needed here: "run:ID".')]
    return []


def _check_array(schema: Mapping[str, Any], value: list[Any], path: str, catalog: Catalog) -> list[Problem]:
    each = schema.get("prefixItems") or [schema.get("items", {})] * len(value)
    low, high = schema.get("minItems", 0), schema.get("maxItems", math.inf)
    if len(each) != len(value) or not low <= len(value) <= high:
        return [_wrong(schema, value, path)]
    if schema.get("items", {}).get("x-source"):
        return [p for i, v in enumerate(value) for p in _check_source(v, f"{path}.{i}", many=True)]
    return [
        p
        for i, (item, v) in enumerate(zip(each, value, strict=True))
        for p in check_value(item, v, f"{path}.{i}", catalog)
    ]


def check_use(value: Any, kind: str, path: str, catalog: Catalog) -> list[Problem]:
    """Every problem of a table ``{use = ..., settings}`` that must name a part of a kind."""
    if not isinstance(value, Mapping):
        return [Problem(path, value, f'{show(value)} is not {a_kind(kind)}; write {{ use = "..." }}.')]
    use = value.get("use")
    of_kind = {entry.id: entry for entry in catalog.of_kind(kind)}
    if not isinstance(use, str):
        right = f"name {a_kind(kind)}: use = one of {', '.join(of_kind) or 'none that is installed'}."
        return [Problem(f"{path}.use", use, right if use is None else f"{show(use)} is not text; {right}")]
    entry = of_kind.get(use)
    if entry is None:
        return [Problem(f"{path}.use", use, _unknown(use, kind, of_kind, catalog))]
    if entry.lacks and value.get("enabled", True):
        return [Problem(f"{path}.use", use, entry.lacks)]
    reserved = RESERVED if kind == "technique" else RESERVED[:2]
    settings = {name: setting for name, setting in value.items() if name not in reserved}
    problems = check_settings(entry.schema, settings, path, catalog, entry.id)
    if "on" in value and kind == "technique":
        on = value["on"]
        if not (isinstance(on, list) and on and all(isinstance(role, str) and role for role in on)):
            right = 'a list of roles, such as ["main"]'
            problems.append(Problem(f"{path}.on", on, f"{show(on)} is not {right}."))
    if not isinstance(value.get("enabled", True), bool):
        problems.append(Problem(f"{path}.enabled", value["enabled"], f"{show(value['enabled'])} is not true or false."))
    return problems


def _unknown(use: str, kind: str, of_kind: Mapping[str, Entry], catalog: Catalog) -> str:
    if use in catalog.parts:
        return f"{show(use)} is {a_kind(catalog.parts[use].kind)}, not {a_kind(kind)}."
    hint = did_you_mean(use, of_kind) or f" There are {', '.join(of_kind)}."
    return f"there is no {kind} {show(use)}.{hint}"


def _wrong(schema: Mapping[str, Any], value: Any, path: str) -> Problem:
    return Problem(path, value, f"{show(value)} is not {describe(schema)}.")


def fits(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether one plain value (no part, no list) fits its schema."""
    if "enum" in schema:
        return any(value == choice and type(value) is type(choice) for choice in schema["enum"])
    if "const" in schema:
        return bool(value == schema["const"])
    kind = schema.get("type")
    if kind in ("number", "integer"):
        return _is_number(value, kind) and _in_range(schema, value)
    plain = {"boolean": bool, "string": str, "array": list, "object": Mapping}
    if kind == "null":
        return value is None
    if kind == "string" and isinstance(value, str) and "pattern" in schema:
        return re.search(schema["pattern"], value) is not None
    return kind not in plain or isinstance(value, plain[kind])


def _is_number(value: Any, kind: str) -> bool:
    """Whether it is a number that can be reckoned with: in 64 bits if it is whole, in 32 bits if it is not."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int) and abs(value) >= HUGE_WHOLE:
        return False
    return isinstance(value, int) or (kind == "number" and isinstance(value, float) and abs(value) <= HUGE)


def _in_range(schema: Mapping[str, Any], value: float) -> bool:
    return (
        value >= schema.get("minimum", -math.inf)
        and value <= schema.get("maximum", math.inf)
        and value > schema.get("exclusiveMinimum", -math.inf)
        and value < schema.get("exclusiveMaximum", math.inf)
    )


def fill(schema: Mapping[str, Any], settings: Mapping[str, Any], catalog: Catalog) -> dict[str, Any]:
    """The settings with every default written out, also in the parts that they name."""
    filled = {}
    for name, field in schema.get("properties", {}).items():
        if name in settings:
            filled[name] = fill_value(field, settings[name], catalog)
        elif "default" in field:
            filled[name] = fill_value(field, field["default"], catalog)
    return filled


def fill_value(schema: Mapping[str, Any], value: Any, catalog: Catalog) -> Any:
    """One value with the defaults of whatever parts it names."""
    schema = unwrapped(schema)
    if "x-part" in schema and isinstance(value, Mapping):
        return fill_use(value, catalog)
    if "x-parts" in schema and isinstance(value, list):
        return [fill_use(each, catalog) for each in value]
    if schema.get("x-value") and isinstance(value, Mapping) and "schedule" in value:
        return {**value, "schedule": fill_use(value["schedule"], catalog)}
    return value


def fill_use(value: Mapping[str, Any], catalog: Catalog) -> dict[str, Any]:
    """A table ``{use = ..., settings}`` with every default written out."""
    entry = catalog.parts.get(str(value.get("use")))
    rest = {name: setting for name, setting in value.items() if name not in RESERVED}
    kept = {name: value[name] for name in RESERVED if name in value}
    return {**kept, **(fill(entry.schema, rest, catalog) if entry else rest)}
