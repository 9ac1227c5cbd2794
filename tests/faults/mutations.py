"""Recipes and other texts, damaged in every way that a person, a program or a disk might."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomlkit

from engine.workspace import RESOURCES

ODD: list[Any] = [
    0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400, 0.0, -0.0, 1e308, 5e-324,
    float("nan"), float("inf"), float("-inf"), True, False, "", " ", "none", "nan", "\n", "a" * 5000,
    "ä€𝄞\u202e",
    "../../etc/passwd", "run:", "tag:x", "run:../..", "phase:a@", "[", "{}", "%s", "__import__('os').system('x')",
    [], [[]], [[[1]]], [1, "a", {}], {}, {"use": ""}, {"use": 1}, {"use": {"use": "x"}}, [{"use": []}],
    {"value": 1}, {"value": "x", "schedule": 3}, {"low": 0, "high": float("nan")}, {"": 1}, {"a.b": {"c": []}},
]  # fmt: skip
"""Values that seldom stand where they are put."""

TEXTS = [
    "9" * 5000, "[" * 3000, "a." * 2000 + "b = 1", "x = " + "[" * 2000, "x = " + "{a=" * 1500, "1979-05-27", "25:61:00",
    "-nan", "0x" + "f" * 3000, "1e99999", "'''", '"""', "\\u0000", "\x00", "\ufeff", "\r", "=", "]]", "[[", "#",
    "é" * 9, "= 1", "a = 1\na = 2\n", "[task]\n[task]\n", "[[task]]\n", "task.use = 1\n", "[a.b]\n[a]\nb = 1\n",
]  # fmt: skip
"""Pieces of text that break a parser sooner than others."""


def originals() -> list[str]:
    """The recipes that the program brings along: starters, and a few that name phases, searches and studies."""
    return [path.read_text(encoding="utf-8") for path in sorted(Path(RESOURCES / "recipes").rglob("*.toml"))]


def bytes_damaged(rng: random.Random, text: str) -> bytes:
    """Some bytes changed, gone, doubled or cut off."""
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del data[at : at + rng.randint(1, 30)]
        elif kind == 2:
            data[at:at] = rng.choice(TEXTS).encode(errors="surrogatepass")
        elif kind == 3:
            data[at:at] = data[at : at + rng.randint(1, 80)]
        elif kind == 4:
            data[at:at] = rng.choice("[]{}=.,\"'#\\\n-+_").encode()
        elif rng.random() < 0.2:
            del data[at:]
    return bytes(data)


def values_damaged(rng: random.Random, text: str) -> dict[str, Any]:
    """The document with odd values, keys and nesting."""
    document = tomlkit.parse(text).unwrap()
    for _ in range(rng.randint(1, 3)):
        _damage(rng, document)
    return document


def _damage(rng: random.Random, document: dict[str, Any]) -> None:
    holder, key = rng.choice(list(_places(document)))
    kind = rng.randrange(7)
    if kind <= 2:
        holder[key] = _odd(rng)
    elif kind == 3:
        del holder[key]
    elif kind == 4 and isinstance(holder, dict):
        holder[rng.choice([f"{key}x", "use", "on", "enabled", "schedule", "phases", "search", "study", ""])] = _odd(rng)
    elif kind == 5:
        other, where = rng.choice(list(_places(document)))
        holder[key] = _copied(other[where])
    else:
        holder[key] = {"use": _copied(holder[key])} if rng.random() < 0.5 else [_copied(holder[key])]


def _odd(rng: random.Random) -> Any:
    return _copied(rng.choice(ODD))


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place of a document: what holds it, and its key or number there."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
    found: list[tuple[Any, Any]] = [(value, key) for key, _ in pairs]
    for _, item in pairs:
        found += _places(item)
    return found or [({"": 0}, "")]


def said_well(message: str) -> bool:
    """Whether an error is something to read: a sentence, and no Python's."""
    return bool(message.strip()) and "Traceback" not in message and "object at 0x" not in message


Mutation = Callable[[random.Random, str], Any]
