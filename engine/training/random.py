"""Random streams by name: adding a part does not change what another one draws."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def derive_seed(seed: int, name: str) -> int:
    """A seed for one named stream, the same in every process (Python's own hash is salted)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little") >> 1


class Streams:
    """The generators that a run owns, made when first asked for."""

    def __init__(self, seed: int, device: torch.device):
        self.seed = seed
        self.device = device
        self._streams: dict[str, torch.Generator] = {}

    def get(self, name: str, device: torch.device | None = None) -> torch.Generator:
        key = f"{name}@{device.type}" if device is not None else name
        if key not in self._streams:
            made = torch.Generator(device=device or self.device)
            made.manual_seed(derive_seed(self.seed, name))
            self._streams[key] = made
        return self._streams[key]

    def state(self) -> dict[str, torch.Tensor]:
        return {key: stream.get_state() for key, stream in self._streams.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        for key, value in state.items():
            name, _, device = key.partition("@")
            self.get(name, torch.device(device) if device else None).set_state(value.cpu())


def global_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of the generators that torch's own layers (dropout) draw from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_global_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


@contextmanager
def forked(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """A stretch whose draws from the global generators leave no trace; seeded when a seed is given."""
    before = global_state(device)
    if seed is not None:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        set_global_state(before, device)


@contextmanager
def replayed(state: dict[str, Any], device: torch.device) -> Iterator[None]:
    """A stretch that draws what was drawn from `state` on, and leaves the generators as they were."""
    before = global_state(device)
    set_global_state(state, device)
    try:
        yield
    finally:
        set_global_state(before, device)
