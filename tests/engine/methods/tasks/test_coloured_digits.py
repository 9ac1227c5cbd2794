"""Domains, wrong labels and colours as often as said, and nothing of the test in the training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.errors import RecipeError
from engine.methods.tasks.coloured_digits import ColouredDigits
from tests.engine.methods.short import ready


def loaded(**settings: Any) -> ColouredDigits:
    made = ColouredDigits(**settings)
    made.load()
    return made


def agreement(columns: dict[str, torch.Tensor], domain: int) -> float:
    rows = columns["meta.domain"] == domain
    return float((columns["meta.colour"] == columns["target"])[rows].double().mean())


def test_each_domain_has_its_colours_and_labels() -> None:
    made = loaded()
    train, val, test = (made.columns(split) for split in ("train", "val", "test"))
    assert [made.size(s) for s in ("train", "val", "test")] == [1300, 130, 1797 - 1430]
    assert [int((train["meta.domain"] == d).sum()) for d in range(3)] == [650, 650, 0]
    assert set(val["meta.domain"].tolist()) == {0, 1} and set(test["meta.domain"].tolist()) == {2}
    assert agreement(train, 0) == pytest.approx(0.9, abs=0.04) and agreement(train, 1) == pytest.approx(0.8, abs=0.05)
    assert agreement(test, 2) == pytest.approx(0.1, abs=0.05)
    for columns in (train, test):
        wrong = float((columns["target"] != columns["meta.clean"]).double().mean())
        assert wrong == pytest.approx(0.25, abs=0.06)


def test_the_colour_is_the_channel_and_the_shape_is_the_digits() -> None:
    made = loaded(rows=100, label_noise=0.0, agreement=[1.0, 0.0, 0.5])
    train = made.columns("train")
    lit = train["x"].flatten(2).sum(2) > 0
    assert torch.equal(lit[:, 1].long(), train["meta.colour"]) and bool((lit.sum(1) == 1).all())
    assert torch.equal(train["target"], train["meta.clean"])
    assert [agreement(train, d) for d in (0, 1)] == [1.0, 0.0]
    grey = train["x"].sum(1)
    other = loaded(rows=100, label_noise=0.3, agreement=[0.2, 0.2, 0.2]).columns("train")
    assert torch.equal(grey, other["x"].sum(1)), "the digits of a domain do not depend on the colours"


def test_what_cannot_be_is_refused() -> None:
    for wrong in ({"agreement": [0.5, 1.5]}, {"agreement": []}):
        with pytest.raises(RecipeError, match="one for each domain"):
            ready(task={"use": "coloured-digits", **wrong})
    with pytest.raises(ValueError, match="lower rows"):
        loaded(rows=900)
