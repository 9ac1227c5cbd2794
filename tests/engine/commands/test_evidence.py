"""Which ablations are measured."""

from __future__ import annotations

import argparse

import pytest

from engine.commands.evidence import choose
from engine.errors import AthanorError

KNOWN = ["a", "b", "c", "d", "e"]


def options(
    ids: tuple[str, ...] = (), all: bool = False, sample: int | None = None, seed: int = 0
) -> argparse.Namespace:
    return argparse.Namespace(ids=list(ids), all=all, sample=sample, seed=seed)


def test_named_ones_once_in_the_order_asked() -> None:
    assert choose(KNOWN, options(("c", "a", "c"))) == ["c", "a"]
    assert choose(KNOWN, options(all=True)) == KNOWN
    with pytest.raises(AthanorError, match="There are: a, b"):
        choose(KNOWN, options(("x",)))


def test_a_sample_is_drawn_by_its_seed() -> None:
    draws = {tuple(choose(KNOWN, options(sample=2, seed=seed))) for seed in range(50)}
    assert len(draws) > 5 and all(len(set(draw)) == 2 for draw in draws)
    assert choose(KNOWN, options(sample=2, seed=3)) == choose(KNOWN, options(sample=2, seed=3))
    assert choose(KNOWN, options(sample=99)) == KNOWN
