"""Which ablations are measured."""

from __future__ import annotations

import argparse

import pytest

from engine.commands.cli import run
from engine.commands.evidence import FOLDER, choose
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


def test_the_page_of_what_was_measured_is_that_of_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evidence", "--markdown"], lambda *_: 99) == 0
    page = capsys.readouterr().out
    kept = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert page == kept, "python main.py evidence --markdown > resources/evidence/README.md"
    assert page.count("\n| ") == len(list(FOLDER.glob("*.json"))) + 2
