"""Five rules that a sentence may keep or break: each can be checked, said in words, and mended by a program."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Rule:
    """A rule: what it asks for, what is wrong where it is broken, whether a sentence keeps it, and one that does."""

    name: str
    words: str
    complaint: str
    holds: Callable[[str], bool]
    mend: Callable[[str], str]


def _capital(text: str) -> str:
    start = len(text) - len(text.lstrip())
    return text[:start] + text[start : start + 1].upper() + text[start + 1 :]


def _stop(text: str) -> str:
    return text.rstrip().rstrip(".!?,;").rstrip() + "."


def _spaces(text: str) -> str:
    return " ".join(text.split())


def _very(text: str) -> str:
    return re.sub(r"(?i)\bvery\b ?", "", text)


def _digits(text: str) -> str:
    return re.sub(r"\d", lambda found: DIGITS[int(found[0])], text)


RULES = (
    Rule(
        "capital",
        "Begin with a capital letter.",
        "it does not begin with a capital letter",
        lambda text: text.lstrip()[:1].isupper(),
        _capital,
    ),
    Rule(
        "stop",
        "End with a full stop.",
        "it does not end with a full stop",
        lambda text: text.rstrip().endswith("."),
        _stop,
    ),
    Rule(
        "spaces",
        "Put one space between words.",
        "it has more than one space in a row",
        lambda text: text == _spaces(text),
        _spaces,
    ),
    Rule(
        "very",
        "Leave out the word very.",
        "it uses the word very",
        lambda text: re.search(r"(?i)\bvery\b", text) is None,
        _very,
    ),
    Rule(
        "figures",
        "Write single digits as words.",
        "it writes a digit as a figure",
        lambda text: re.search(r"\d", text) is None,
        _digits,
    ),
)


def named(text: str) -> list[Rule]:
    """The rules that a text asks for, in their own order; case and line breaks do not matter."""
    plain = " ".join(text.lower().split())
    return [rule for rule in RULES if rule.words.lower().rstrip(".") in plain]


def broken(text: str) -> list[Rule]:
    """The rules that a sentence does not keep."""
    return [rule for rule in RULES if not rule.holds(text)]


def complained(text: str) -> list[Rule]:
    """The rules that a criticism says are broken."""
    plain = " ".join(text.lower().split())
    return [rule for rule in RULES if rule.complaint in plain]
