"""Views: what is repeated stays together, and each copy is changed in its own way."""

from __future__ import annotations

import torch

from engine.kit.views import jitter, repeated, shifted, views
from engine.parts import Batch


def batch() -> Batch:
    x = torch.arange(3 * 2 * 4 * 5, dtype=torch.float32).view(3, 2, 4, 5)
    index = torch.tensor([7, 3, 9])
    meta = {"group": torch.tensor([1, 0, 1])}
    return Batch({"x": x, "more": index * 2.0}, index + 0.5, index, "train", index * 1.0, None, meta)


def test_every_field_is_repeated_copy_after_copy() -> None:
    one, made = batch(), repeated(batch(), 3)
    for copy in range(3):
        rows = slice(3 * copy, 3 * copy + 3)
        assert torch.equal(made.x[rows], one.x) and torch.equal(made.inputs["more"][rows], one.inputs["more"])
        assert torch.equal(made.target[rows], one.target) and torch.equal(made.index[rows], one.index)
        assert torch.equal(made.weight[rows], one.weight) and torch.equal(made.meta["group"][rows], one.meta["group"])
    assert len(made) == 9 and made.mask is None and made.split == "train"


def test_views_are_numbered_and_differ() -> None:
    rng = torch.Generator().manual_seed(0)
    made = views(batch(), 2, rng, noise=0.5)
    assert made.meta["view"].tolist() == [0, 0, 0, 1, 1, 1] and torch.equal(made.index[:3], made.index[3:])
    change = made.x - repeated(batch(), 2).x
    assert not torch.equal(change[:3], change[3:])
    big = views(Batch({"x": torch.zeros(5000, 4)}, None, torch.arange(5000)), 2, rng, noise=0.5)
    assert abs(float(big.x.std()) - 0.5) < 0.01 and abs(float(big.x.mean())) < 0.01
    assert torch.equal(views(batch(), 2, rng).x, repeated(batch(), 2).x)


def test_images_move_by_whole_pixels_and_zeros_come_in() -> None:
    x = batch().x + 1
    by = torch.tensor([[1, 0, -2], [0, -1, 2]])
    made = shifted(x, by, 2)
    assert made.shape == x.shape
    for n in range(3):
        down, right = by[:, n].tolist()
        for row in range(4):
            for column in range(5):
                old_row, old_column = row - down, column - right
                inside = 0 <= old_row < 4 and 0 <= old_column < 5
                expected = x[n, :, old_row, old_column] if inside else torch.zeros(2)
                assert torch.equal(made[n, :, row, column], expected)


def test_shifts_are_drawn_evenly_up_to_the_most() -> None:
    x = torch.zeros(4000, 1, 5, 5)
    x[:, 0, 2, 2] = 1
    places = jitter(x, torch.Generator().manual_seed(1), shift=1).sum(0)[0]
    assert places.sum() == 4000 and (places[1:4, 1:4] - 4000 / 9).abs().max() < 4.5 * (4000 / 9) ** 0.5
