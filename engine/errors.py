"""The errors that a person may meet. Each says what happened, why, and what would be right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class AthanorError(Exception):
    """The base of every error that is shown to a person as one sentence, without a traceback."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe: the field's path, the value there, and a sentence that says what is right."""

    path: str
    value: Any
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class RecipeError(AthanorError):
    """A recipe that cannot be trained; `problems` lists every reason found."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class PartError(AthanorError, ValueError):
    """A part's ValueError in the middle of a run: what it was given cannot be worked with."""


class LogError(AthanorError):
    """The workspace's database cannot be read or written."""


class ServiceError(AthanorError):
    """The background engine could not start, answer or carry out a command."""


class CheckpointError(AthanorError):
    """A checkpoint is missing, damaged or belongs to another recipe."""


class ContactError(AthanorError):
    """A language model could not be asked: its host is not allowed, a secret is missing, or it gave no answer."""
