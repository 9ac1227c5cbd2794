"""The words that name something trained elsewhere: `run:ID@best`, `recipe:FILE`, `phase:NAME@200`, `tag:zoo`.

Here they are only read; what they name is found, or trained first, by `engine.training.sources`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.workspace import RESOURCES, Workspace

KINDS = ("run", "recipe", "phase", "tag")
MOMENTS = ("best", "last", "init")
FORMS = '"run:ID", "recipe:FILE", "phase:NAME" or "tag:NAME"'


@dataclass(frozen=True)
class Named:
    """A source's text, read. `moment` is best, last, init, or a step; `follow`: trained with the seed of who asks."""

    kind: str
    name: str
    moment: str | int = "last"
    follow: bool = False

    def __str__(self) -> str:
        at = "" if self.moment == "last" and "@" not in self.name else f"@{self.moment}"
        return f"{self.kind}:{self.name}{at}{'?seed=follow' if self.follow else ''}"


LONGEST = 200  # characters of a text in a sentence


def parse(text: Any) -> Named:
    """Reads a source's text. Raises ValueError with a sentence."""
    if not isinstance(text, str):
        raise ValueError(f"{str(text)[:LONGEST]} is not a source; write {FORMS}.")
    shown = f'"{text[:LONGEST]}{"..." if len(text) > LONGEST else ""}"'
    kind, colon, rest = text.strip().partition(":")
    if not colon or kind not in KINDS:
        raise ValueError(f"{shown} is not a source; write {FORMS}.")
    rest, question, option = rest.partition("?")
    if question and (kind, option) != ("recipe", "seed=follow"):
        raise ValueError(f'{shown} ends in ?{option}; only a recipe can have one: "recipe:FILE?seed=follow".')
    name, at, moment = rest.rpartition("@") if "@" in rest else (rest, "", "last")
    if not name.strip():
        raise ValueError(f"{shown} names no {kind}; write {FORMS}.")
    if kind == "tag" and at:
        raise ValueError(f"{shown} names a moment, but a tag stands for runs as they are at their end.")
    return Named(kind, name.strip(), _moment(moment, kind, text), bool(question))


def _moment(word: str, kind: str, text: str) -> str | int:
    if re.fullmatch(r"\d+", word):
        return int(word)
    allowed = ("last",) if kind == "phase" else MOMENTS
    if word not in allowed:
        raise ValueError(f'"{text}" asks for the moment "{word}"; write {", ".join(allowed)} or a step.')
    return word


def named_in(document: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a document that reads as a source, with its path. Names and notes do not count."""
    pairs: Any = document.items() if isinstance(document, Mapping) else ()
    if isinstance(document, list | tuple):
        pairs = enumerate(document)
    for key, value in pairs:
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, str):
            if where not in ("name", "notes") and re.match(rf"({'|'.join(KINDS)}):\S", value):
                yield where, value
        else:
            yield from named_in(value, where)


def recipe_file(name: str, workspace: Workspace | None = None) -> Path:
    """The file that `recipe:FILE` means: as it stands, or in the workspace, or among the recipes that come along."""
    path = Path(name).expanduser()
    if path.is_absolute():
        return path
    places = [workspace.folder] if workspace is not None else []
    tried = [place / path for place in (*places, RESOURCES / "recipes")]
    return next((file for file in tried if file.is_file()), tried[-1])
