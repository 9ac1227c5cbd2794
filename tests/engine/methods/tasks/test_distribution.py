"""Distributions: their points are where they should be, and samples are judged by what they are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import figures
from engine.methods.tasks.distribution import Distribution, ring_centres
from engine.parts import Batch
from tests.engine.methods.short import ready


def loaded(**settings: Any) -> Distribution:
    made = Distribution(**settings)
    made.load()
    return made


def drawn(made: Distribution, n: int = 4000) -> Tensor:
    return made.draw(n, torch.Generator().manual_seed(5))["x"]


def test_the_ring_is_an_even_mixture_of_its_modes() -> None:
    made = loaded(scale=2.0, deviation=0.05)
    x = drawn(made)
    centres, deviation = made.mixture() or (x, 0.0)
    assert torch.allclose(centres.norm(dim=1), torch.tensor(2.0)) and deviation == 0.05
    distance, which = torch.cdist(x, centres).min(1)
    assert torch.allclose(torch.bincount(which) / len(x), torch.tensor(1 / 8), atol=0.02)
    assert float(distance.square().mean()) == pytest.approx(2 * 0.05**2, rel=0.05)


def test_the_others_lie_on_their_shapes() -> None:
    roll = drawn(loaded(shape="swiss-roll", deviation=0.0, scale=3.0))
    length = roll.norm(dim=1)
    angle = length / 3.0 * 4.5 * math.pi
    assert torch.allclose(roll, length[:, None] * torch.stack([angle.cos(), angle.sin()], 1), atol=1e-4)
    assert 0.99 < float(length.max()) / 3 <= 1 and 0.33 < float(length.min()) / 3 < 0.35
    moons = drawn(loaded(shape="two-moons", deviation=0.0))
    assert moons.abs().max() <= 1 and moons.max() > 0.99 and moons.min() < -0.99
    lines = drawn(loaded(shape="parallel-lines", deviation=0.0, scale=0.5))
    assert set(lines[:, 0].tolist()) == {-0.5, 0.5} and 0.49 < float(lines[:, 1].max()) <= 0.5
    digits = loaded(shape="digits", scale=0.5)
    assert digits.columns("train")["x"].abs().max() == 0.5 and digits.offer.answer == (1, 8, 8)
    assert [digits.size(split) for split in ("train", "val", "test")] == [1259, 179, 359]


def test_finite_samples_are_stored_and_fresh_ones_are_not() -> None:
    fresh, stored = loaded(), loaded(samples=30)
    assert (fresh.stream, fresh.size("train"), fresh.size("val")) == ("drawn", 0, 512)
    assert (stored.stream, stored.size("train")) == ("rows", 30)
    assert torch.equal(stored.columns("train")["x"], loaded(samples=30).columns("train")["x"])
    assert not torch.equal(stored.columns("train")["x"], loaded(samples=30, split_seed=1).columns("train")["x"])
    assert not torch.equal(stored.columns("val")["x"], stored.columns("test")["x"])


def judged(made: Distribution, samples: Tensor) -> dict[str, float]:
    def answer(batch: Batch) -> Tensor:
        assert not batch.inputs and len(batch) == 4 * min(made.judged, made.size("test"))
        return samples[: len(batch)]

    return made.judge("test", answer, torch.Generator())


def test_the_truth_is_near_and_what_misses_a_mode_is_told() -> None:
    made = loaded(scale=2.0)
    good = judged(made, drawn(made))
    assert good["w1"] < 0.35 and good["modes"] == 8 and good["stray"] < 0.01
    alone = judged(made, ring_centres(2.0)[:1].repeat(1024, 1))
    assert alone["modes"] == 1 and alone["stray"] == 0 and alone["w1"] > 2
    middle = judged(made, torch.zeros(1024, 2))
    assert middle["modes"] == 0 and middle["stray"] == 1 and middle["w1"] == pytest.approx(2.0, abs=0.02)
    rows = made.columns("test")["x"]
    assert judged(made, torch.cat([rows, rows]))["w1"] == pytest.approx(0, abs=1e-6)


def test_digits_are_told_by_the_nearest_training_image() -> None:
    made = loaded(shape="digits", judged=64)
    images, labels = made.known
    all_ten = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:256]]
    assert judged(made, all_ten.flatten(1))["modes"] == 10
    assert judged(made, images[labels == 3][:1].repeat(256, 1, 1, 1))["modes"] == 1


@pytest.mark.parametrize("shape", ["ring", "digits"])
def test_it_draws_what_a_person_looks_at(shape: Any) -> None:
    made = loaded(shape=shape)

    def answer(batch: Batch) -> Tensor:
        return torch.randn(len(batch), made.offer.size)

    drawn = {**made.figures(answer, torch.Generator()), "preview": made.figure()}
    assert not [problem for figure in drawn.values() for problem in figures.problems(figure)]
    assert drawn["samples"]["kind"] == ("image-grid" if shape == "digits" else "scatter")


def test_what_cannot_make_samples_is_refused() -> None:
    from engine.errors import RecipeError

    with pytest.raises(RecipeError, match="no loss to descend"):
        ready(task={"use": "distribution"})
