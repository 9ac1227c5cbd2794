"""The gated Toeplitz unit: its formula written out, token by token, and where it may go."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from engine.errors import RecipeError
from engine.methods.layers.gated_toeplitz import GatedToeplitz
from tests.engine.methods.short import train

TEXT: dict[str, Any] = {
    "task": {"use": "python-text", "characters": 10000, "length": 16},
    "model": {"use": "transformer", "width": 8, "heads": 2, "depth": 2},
    "optimizer": {"use": "adamw", "lr": 0.01},
    "techniques": [{"use": "replace", "layer": {"use": "gated-toeplitz", "rpe_dim": 4}, "sites": "attention"}],
}


def unit(**settings: Any) -> GatedToeplitz:
    torch.manual_seed(0)
    site: Any = SimpleNamespace(features=6)
    return GatedToeplitz(site, **settings).double()


def test_it_is_its_formula() -> None:
    made = unit(decay=0.8, expand=2)
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    u, gate = F.silu(made.value(x)), F.silu(made.gate(x))
    bare = torch.stack([made.positions(torch.tensor([float(i)], dtype=torch.float64))[0] for i in range(7)])
    t = torch.stack([0.8**i * bare[i] for i in range(7)])
    mixed = torch.stack([sum(t[i - j] * u[:, j] for j in range(i + 1)) for i in range(7)], 1)  # type: ignore[arg-type]
    assert t.shape == (7, 12) and torch.allclose(made.kernel(7), t, atol=1e-12)
    assert torch.allclose(made.kernel(7, decayed=False), bare, atol=1e-12)
    assert torch.allclose(made(x), made.out(gate * mixed), atol=1e-5)  # the convolution is in single precision


def test_token_by_token_it_is_the_same() -> None:
    made = unit().float()
    x = torch.randn(3, 9, 6)
    state, found = made.start(3), []
    for now in x.unbind(1):
        y, state = made.step(now, state)
        found.append(y)
    assert torch.allclose(torch.stack(found, 1), made(x), atol=1e-5)


def test_it_stands_for_causal_attention_alone() -> None:
    run, memory, _ = train(**TEXT)
    losses = memory.points["train/loss"][1]
    assert losses[-1] < losses[0]
    assert sum(isinstance(m, GatedToeplitz) for m in run.model.modules()) == 2
    with pytest.raises(RecipeError, match="no later positions"):
        train(**{**TEXT, "task": {"use": "digits", "train_limit": 100}})
    with pytest.raises(RecipeError, match="stands for attention"):
        train(**{**TEXT, "techniques": [{**TEXT["techniques"][0], "sites": "norm"}]})
