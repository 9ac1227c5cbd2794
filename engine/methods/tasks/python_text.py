"""The Python standard library's own sources, byte by byte."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from engine.fields import Whole
from engine.kit.supervised import Supervised, seeded
from engine.parts import Offer, task

SHARES = {"test": 0.1, "val": 0.1}
ASCII = 128
AWAY = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
SMALLEST = 2000  # a file below this is mostly imports


@task(
    name="Python text",
    example={"task": {"characters": 20000, "length": 32}, "model": {"use": "recurrent", "width": 16}},
)
class PythonText(Supervised):
    """Predicts the next character of Python source code. The text is the standard library of the Python that runs this.

        x = bytes t .. t + length - 1;  target = bytes t + 1 .. t + length;  bits = -log2 p(target), a mean over bytes

    Helps: Language models, recurrent nets and whatever is said to help them.
    Hurts: Other Python versions have other sources: numbers compare only on one installation.
    Cost: A second to read a million characters.

    Choices: Files of plain ASCII bytes, chosen and ordered at random; each split takes whole files, cut into windows
    that do not overlap.

    Args:
        length: Characters in one sample.
        characters: Characters in all splits together, as far as there are so many.
        split_seed: Seed of the choice of files.
        outer: Share of the characters kept apart for tuning hyperparameters inside a run.
    """

    def __init__(
        self,
        length: Annotated[int, Field(ge=2)] = 64,
        characters: Annotated[int, Field(ge=10000)] = 500_000,
        split_seed: Whole = 0,
        outer: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
    ):
        self.length, self.characters, self.split_seed, self.outer = length, characters, split_seed, outer
        self.offer = Offer("tokens", (length,), "next-token", ASCII, vocabulary=ASCII)

    def load(self) -> None:
        shares = {name: share for name, share in {**SHARES, "outer": self.outer}.items() if share}
        sizes = {name: round(self.characters * share) for name, share in shares.items()}
        sizes["train"] = self.characters - sum(sizes.values())
        files = iter(sources(self.split_seed))
        self.splits = {name: self._windows(files, size) for name, size in sizes.items()}

    def _windows(self, files: Any, size: int) -> dict[str, Tensor]:
        """Whole files until there are enough characters; the last one is cut."""
        found: list[bytes] = []
        have = 0
        while have < size + 1 and (path := next(files, None)) is not None:
            text = path.read_bytes()
            if text.isascii() and len(text) >= SMALLEST:
                found.append(text[: size + 1 - have])
                have += len(found[-1])
        text = b"".join(found)
        count = (len(text) - 1) // self.length
        if count < 1:
            raise ValueError(
                f"The standard library's sources hold too little text for {self.characters} characters in windows of "
                f"{self.length}. Write fewer characters or a shorter length."
            )
        bytes_ = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
        end = count * self.length
        return {"x": bytes_[:end].view(count, -1), "target": bytes_[1 : end + 1].view(count, -1)}

    def figure(self) -> dict[str, Any]:
        rows = self.splits["train"]["x"][:8]
        text = "\n\n".join(bytes(row.tolist()).decode("ascii") for row in rows)
        return {"kind": "text", "title": "Training samples", "text": text}


def sources(seed: int) -> list[Path]:
    """The standard library's source files, tests left out, in an order that the seed decides."""
    found = []
    for folder, inner, names in os.walk(sysconfig.get_path("stdlib")):
        inner[:] = [name for name in inner if name not in AWAY]  # not walked: there can be very many installed packages
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    found.sort()
    order = torch.randperm(len(found), generator=seeded(seed)).tolist()
    return [found[i] for i in order]
