"""SAPE: masks that open by the clock and stop by the loss, exact where they are open, and saved with the model."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.figures import problems
from engine.methods.models.fourier_features import FourierFeatures
from engine.methods.models.sape import SAPE, SpatialMask
from engine.methods.tasks.signal_at_coordinates import SignalAtCoordinates
from engine.parts import Batch, Offer, Progress
from engine.recipe import Recipe
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer
from engine.training.recorder import Memory, Recorder

LINE = SignalAtCoordinates(samples=32)
PLANE = SignalAtCoordinates("china")
for each in (LINE, PLANE):
    each.load()
STEPS = 128
SMALL: dict[str, Any] = {"num_frequencies": 16, "num_blocks": 8, "hidden": [8]}


def model(offer: Offer = LINE.offer, **settings: Any) -> SAPE:
    torch.manual_seed(0)
    return SAPE(offer, **{**SMALL, **settings}).double()


def batch_of(task: SignalAtCoordinates, rows: Tensor | None = None) -> Batch:
    x = task.columns("train")["x"].double()
    index = torch.arange(len(x)) if rows is None else rows
    return Batch({"x": x[index]}, None, index)


def play(made: SAPE, losses: Any, steps: int = STEPS, stop: int | None = None, task: Any = LINE) -> list[Tensor]:
    """The rows of the mask in each step, where `losses(step)` gives the samples' losses."""
    found, batch = [], batch_of(task)
    for step in range(steps if stop is None else stop):
        made.mask.tick(Progress(step, steps))
        found.append(made.mask.mask.clone())
        made.mask.observe(batch, torch.as_tensor(losses(step), dtype=torch.float64).expand(len(batch)))
    return found


@pytest.mark.parametrize("offer", [LINE.offer, PLANE.offer])
@pytest.mark.parametrize("mode", ["ramp", "grid"])
def test_with_open_masks_it_is_a_network_on_coordinates_and_waves(offer: Offer, mode: str) -> None:
    made = model(offer, mode=mode, grid_res=5)
    made.mask.mask.fill_(1.0)
    plain = FourierFeatures(offer, frequencies=16, hidden=[8], coordinates=True).double()
    plain.load_state_dict({n: t for n, t in made.state_dict().items() if not n.startswith("mask.")})
    x = torch.rand(50, offer.features, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 - 1.5
    assert torch.equal(made(x), plain(x))
    for each in (made, plain):
        each(x).square().sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(made.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("mode", ["ramp", "grid"])
def test_at_first_only_the_coordinates_pass(mode: str) -> None:
    made = model(mode=mode)
    made.mask.tick(Progress(0, STEPS))
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    first = made.blocks[0].linear
    expected = made.head(torch.relu(x * first.weight[:, 0] + first.bias))
    torch.testing.assert_close(made(x), expected)
    made.mask.mask[:, 0] = 0.5
    assert (made(x) - expected).abs().min() > 0


def test_waves_are_sorted_into_blocks() -> None:
    made = model(num_frequencies=7, num_blocks=3)
    lengths = made.waves.frequencies.norm(dim=1)
    assert (lengths.diff() >= 0).all()
    assert made.block.tolist() == [0] * 6 + [1] * 4 + [2] * 4, "sine and cosine of a wave open together"
    x = torch.tensor([[0.3]], dtype=torch.float64)
    phase = 2 * math.pi * 0.3 * made.waves.frequencies[:, 0]
    np.testing.assert_allclose(made.waves(x)[0, ::2].numpy(), phase.sin().numpy())
    np.testing.assert_allclose(made.waves(x)[0, 1::2].numpy(), phase.cos().numpy())


def test_powers_of_two_along_each_coordinate() -> None:
    made = model(PLANE.offer, encoding="positional", num_frequencies=3, num_blocks=3)
    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    expected = [f(2**k * math.pi * v) for k in range(3) for v in (0.3, -0.7) for f in (math.sin, math.cos)]
    np.testing.assert_allclose(made.waves(x)[0].numpy(), expected)
    assert made.block.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_epsilon_zero_is_the_schedule_for_all_places() -> None:
    made = model(epsilon=0.0)
    masks = play(made, lambda step: 1e-9)
    assert (masks[-1] == 1).all() and not made.mask.frozen.any()
    length = 3 * STEPS // (4 * 8)
    for step, mask in enumerate(masks):
        for block in range(8):
            expected = min(max((step - block * length) * 2 / length, 0), 1)
            torch.testing.assert_close(mask[:, block], torch.full((16,), expected, dtype=torch.float64))
    assert (masks[STEPS * 3 // 4][:, -1] == 1).all() and (masks[STEPS * 3 // 4 - length][:, -1] == 0).all()


def test_an_infinite_epsilon_freezes_at_the_first_chance() -> None:
    length = 3 * STEPS // (4 * 8)
    assert length == 12
    made = model(epsilon=math.inf)
    masks = play(made, lambda step: 1.0)
    torch.testing.assert_close(
        masks[-1][:, 0], torch.full((16,), 1 - 2 / length, dtype=torch.float64), atol=1e-7, rtol=0
    )
    assert (masks[-1][:, 1:] == 0).all()
    assert (masks[length // 2 - 1] == masks[-1]).all() and (masks[length // 2 - 2] != masks[-1]).any()


def test_in_grid_mode_blocks_open_at_once_where_the_mean_loss_is_high() -> None:
    made = model(mode="grid", grid_res=16, epsilon=math.inf)
    assert (play(made, lambda step: 1.0)[-1] == 0).all() and made.mask.frozen.all()
    made = model(mode="grid", grid_res=16, epsilon=0.0)
    masks = play(made, lambda step: 1.0)
    length = STEPS // (2 * 8)
    for step, mask in enumerate(masks):
        assert torch.equal(mask, (torch.arange(8) < step // length).double().expand(16, 8))
    made = model(mode="grid", grid_res=16, epsilon=1.0)
    play(made, lambda step: 3.0 if step < 3 * length // 2 else 0.5)
    half = made.mask.mask[0]
    assert torch.equal(made.mask.mask, half.expand(16, 8))
    assert half.tolist() == [1, 1, 0, 0, 0, 0, 0, 0], "the mean of the second window is above, that of the third below"


def test_a_row_freezes_after_half_a_window_without_a_loss_above() -> None:
    made = model(epsilon=0.5)
    bump = 20
    masks = play(made, lambda step: 1.0 if step < 10 or step == 14 or step > bump else 0.1)
    frozen = [i for i, (a, b) in enumerate(pairwise(masks)) if torch.equal(a, b) and i > bump]
    assert made.mask.frozen.all() and frozen, "six calm steps from 15 to 20; the four before 14 were not enough"
    torch.testing.assert_close(masks[-1], masks[bump])
    assert not torch.equal(masks[bump], masks[bump - 5])
    open_ = model(epsilon=0.5)
    play(open_, lambda step: 1.0 if step % 6 == 0 else 0.1)
    assert not open_.mask.frozen.any()


@pytest.mark.parametrize("mode", ["ramp", "grid"])
def test_masks_never_close_and_calm_places_stay_slow(mode: str) -> None:
    made = model(mode=mode, grid_res=16, epsilon=0.5)
    losses = torch.where(torch.arange(16) < 8, 0.1, 1.0)
    masks = play(made, lambda step: losses)
    assert all((b >= a).all() for a, b in pairwise(masks))
    rows = masks[-1].mean(1)
    assert (rows[:7] < 0.15).all() and (rows[9:] == 1).all(), "but for the blurred border between them"
    read = made.mask.at(torch.tensor([[-0.9], [0.9]], dtype=torch.float64)).mean(1)
    assert read[0] < 0.15 and read[1] == 1
    assert made.mask.frozen[:7].all() and not made.mask.frozen[9:].any()


@pytest.mark.parametrize("task", [LINE, PLANE])
def test_masks_are_read_blurred_and_between_their_rows(task: SignalAtCoordinates) -> None:
    made = model(task.offer)
    shape = task.offer.about["grid"]["shape"]
    rows = torch.rand(math.prod(shape), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made.mask.mask.copy_(rows)
    grid = rows.reshape(*shape, 8).numpy()
    wide = np.pad(grid, [(1, 1)] * len(shape) + [(0, 0)], mode="edge")
    windows = [tuple(slice(k, k + n) for k, n in zip(at, shape, strict=True)) for at in np.ndindex(*[3] * len(shape))]
    blurred = np.mean([wide[window] for window in windows], axis=0)
    at_rows = made.mask.at(batch_of(task).x)
    np.testing.assert_allclose(at_rows.numpy(), blurred.reshape(-1, 8), atol=1e-6)
    step = 2 / (task.sides[0] - 1)  # half the way to the next training sample
    middle = made.mask.at(batch_of(task, torch.tensor([0])).x + step)
    corner = blurred[tuple(slice(0, 2) for _ in shape)].reshape(-1, 8).mean(0)
    np.testing.assert_allclose(middle[0].numpy(), corner, atol=1e-6)
    outside = made.mask.at(torch.full((1, len(shape)), 5.0, dtype=torch.float64))
    np.testing.assert_allclose(outside[0].numpy(), blurred.reshape(-1, 8)[-1], atol=1e-6)


def test_losses_reach_the_rows_of_their_samples_in_any_order_and_part() -> None:
    whole, parts = model(epsilon=0.5), model(epsilon=0.5)
    losses = torch.rand(16, dtype=torch.float64)
    order = torch.randperm(16)
    whole.mask.observe(batch_of(LINE), losses)
    for rows in order.split(5):
        parts.mask.observe(batch_of(LINE, rows), losses[rows])
    torch.testing.assert_close(whole.mask.loss, losses)
    assert torch.equal(whole.mask.loss, parts.mask.loss)
    half = model(epsilon=math.inf)
    half.mask.observe(batch_of(LINE, torch.arange(4)), losses[:4])
    assert half.mask._blurred_loss().isfinite().tolist() == [True] * 5 + [False] * 11


def test_losses_of_a_cell_are_shared_by_interpolation_and_empty_cells_ask_their_neighbours() -> None:
    made = model(mode="grid", grid_res=4)  # cells of half a unit, their middles at -0.75, -0.25, 0.25, 0.75
    x = torch.tensor([[-0.75], [-0.375], [-2.0]], dtype=torch.float64)
    made.mask.observe(Batch({"x": x}, None, torch.arange(3)), torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    assert made.mask.loss.tolist() == [1 + 0.25 * 2 + 4, 0.75 * 2, 0, 0]
    assert made.mask.weight.tolist() == [2.25, 0.75, 0, 0]
    mean = [5.5 / 2.25, 2.0, 2.0]  # the third has that of its only known neighbour
    found = made.mask._blurred_loss().tolist()
    assert found[:2] == pytest.approx([(2 * mean[0] + mean[1]) / 3, sum(mean) / 3]) and found[3] == math.inf


def test_a_short_run_opens_several_blocks_together() -> None:
    made = model(num_frequencies=32, num_blocks=32, epsilon=0.0)
    assert made.mask.windows(1000) == (32, 23) and made.mask.windows(40) == (7, 4)
    assert (play(made, lambda step: 1.0, 40)[-1] == 1).all()
    assert model(mode="grid").mask.windows(1000) == (8, 62)


def test_what_is_saved_answers_the_same() -> None:
    made = model(epsilon=0.5)
    play(made, lambda step: torch.rand(16), stop=70)
    again = model(epsilon=0.5)
    again.load_state_dict(made.state_dict())
    x = torch.rand(40, 1, dtype=torch.float64)
    assert torch.equal(again(x), made(x)) and 0 < made.mask.mask.mean() < 1
    again.mask.tick(Progress(69, STEPS))  # once more with the last step's progress, as after a load
    for step in range(70, 90):
        losses = torch.rand(16, dtype=torch.float64)
        for each in (made, again):
            each.mask.tick(Progress(step, STEPS))
            each.mask.observe(batch_of(LINE), losses)
        assert torch.equal(made.mask.mask, again.mask.mask) and torch.equal(made.mask.frozen, again.mask.frozen)


@pytest.mark.parametrize("task", [LINE, PLANE])
def test_the_masks_can_be_looked_at(task: SignalAtCoordinates) -> None:
    made = model(task.offer)
    made.mask.mask[3, 2] = 0.75
    (figure,) = made.mask.figures().values()
    assert problems(figure) == []
    z = np.array(figure["z"] if task is LINE else figure["panels"][0]["z"])
    assert (z[2, 3] == 0.75 and z.shape == (8, 16)) if task is LINE else (z[0, 3] == 0.75 / 8 and z.shape == (32, 32))


def test_nothing_of_the_mask_is_trained() -> None:
    made = model()
    assert not any(name.startswith("mask") for name, _ in made.named_parameters())
    made.mask.tick(Progress(20, STEPS))
    made(batch_of(LINE).x).sum().backward()
    assert made.mask.mask.grad is None


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="mask over one to three coordinates"):
        SAPE(Offer("vector", (5,), "values", 1))
    with pytest.raises(ValueError, match="has no such grid"):
        SAPE(Offer("vector", (2,), "values", 1))
    with pytest.raises(ValueError, match="does not tell one"):
        SAPE(Offer("vector", (2,), "values", 1), mode="grid")
    with pytest.raises(ValueError, match="16 waves cannot open in 32 blocks"):
        SAPE(LINE.offer, num_frequencies=16)
    for kind in (SAPE, FourierFeatures):
        with pytest.raises(ValueError, match="takes coordinates"):
            kind(Offer("tokens", (4,), "classes", 2, 9))
    assert isinstance(SAPE(Offer("vector", (3,), "values", 1, span=(0, 1)), mode="grid", grid_res=3).mask, SpatialMask)


def test_a_run_feeds_it_the_losses_of_its_samples() -> None:
    document = {
        "task": {"use": "signal-at-coordinates", "samples": 32},
        "model": {"use": "sape", **SMALL, "epsilon": 0.05},
        "optimizer": {"use": "adamw", "lr": 5e-3},
        "training": {"batch_size": 16, "evaluate_every": 0},
        "budget": {"steps": 60},
    }
    run = assemble(filled(Recipe.of(document)), Recorder(Memory()))
    Trainer(run).train()
    mask: Any = run.model.mask
    flat = batch_of(LINE).x[:, 0] < 0
    rows = mask.mask.mean(1)
    assert rows[flat].mean() < rows[~flat].mean() - 0.2
    assert mask.frozen[flat].float().mean() > 0.5 and (mask.loss > 0).all()
