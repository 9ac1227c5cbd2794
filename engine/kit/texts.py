"""Text where the engine has tensors: samples, answers, and the module that holds a text which is learned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.parts import Batch, Task


def pack(texts: Sequence[str]) -> Tensor:
    """Texts as their UTF-8 bytes, one row each, filled up with zeros: the form of samples and answers."""
    rows = [text.replace("\0", "").encode(errors="replace") for text in texts]
    width = max((len(row) for row in rows), default=0)
    whole = b"".join(row.ljust(width, b"\0") for row in rows)
    return torch.frombuffer(bytearray(whole), dtype=torch.uint8).view(len(rows), width) if whole else _empty(len(rows))


def unpack(codes: Tensor) -> list[str]:
    """The texts in packed rows."""
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in codes.cpu().tolist()]


def _empty(rows: int) -> Tensor:
    return torch.zeros(rows, 0, dtype=torch.uint8)


class Texts(nn.Module):
    """Texts by name, saved and loaded with a model's weights. They have no parameters: nothing descends them."""

    def __init__(self, texts: Mapping[str, str]):
        super().__init__()
        self.texts = dict(texts)

    def __getitem__(self, name: str) -> str:
        return self.texts[name]

    def __setitem__(self, name: str, text: str) -> None:
        self.texts[name] = text

    def get_extra_state(self) -> Tensor:
        """The bytes of all of them: tensors are what checkpoints and fingerprints take."""
        return torch.frombuffer(bytearray(json.dumps(self.texts).encode()), dtype=torch.uint8).clone()

    def set_extra_state(self, state: Tensor) -> None:
        self.texts = json.loads(bytes(state.cpu().tolist()))

    def forward(self, *inputs: Tensor) -> Any:
        """The question itself: whoever answers it is no part of this module."""
        return inputs[0] if inputs else None


class TextTask(Task):
    """A task whose samples and answers are text. `text` of a batch's inputs and of answers are packed rows.

    Beside `metrics` a subclass says in words what a language model must know: `role` (what an answer is), `instruction`
    (how a critic is to judge one; it must name what `metrics` measures), `prompt_role` and `start` (what a system
    prompt for the task is, and one to begin with). `facts` are what can be checked of an answer by a program, such as
    the tests that it fails, in words that the critic may read.
    """

    has_objective = False
    role: str
    instruction: str
    prompt_role: str = "the system prompt that tells a language model how to answer"
    start: str = "Answer the question."

    def facts(self, questions: Sequence[str], answers: Sequence[str], batch: Batch) -> list[str]:
        """What is known of each answer; empty where the critic must see for itself."""
        return ["" for _ in answers]


def questions_of(batch: Batch) -> list[str]:
    """The texts that a batch asks."""
    return unpack(batch.x)
