"""MgNO: a linear cycle, equal to a multigrid solver where its weights are one's, that treats every place alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.methods.models.mgno import MgNO, Prolongation, VCycle
from engine.parts import Offer
from engine.recipe import Recipe
from engine.training.assemble import filled
from engine.training.loop import train

FIELD = Offer("image", (2, 16, 16), "field", 256, answer=(1, 16, 16))
LAPLACE = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], dtype=float)
DAMPING = 0.8 / 4
FLAT = torch.ones(3, 3, dtype=torch.float64)
TENT = np.array([0.25, 0.5, 0.25])


def cycle(f: int = 2, u: int = 3, **settings: Any) -> VCycle:
    torch.manual_seed(0)
    return VCycle(f, u, [2, 1, 2], [1, 2, 0], **settings).double()


def fields(channels: int = 2, count: int = 3) -> Tensor:
    return torch.randn(count, channels, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("padding", ["zeros", "circular", "reflect"])
@pytest.mark.parametrize("use_residual", [False, True])
def test_the_cycle_is_linear(padding: Any, use_residual: bool) -> None:
    made = cycle(padding=padding, use_residual=use_residual)
    one, two = fields()[:1], fields()[1:2]
    both = made(2.5 * one - 0.5 * two)
    torch.testing.assert_close(both, 2.5 * made(one) - 0.5 * made(two), rtol=0, atol=1e-12)
    assert both.shape == (1, 3, 16, 16) and both.abs().max() > 0.01
    assert not any("bias" in name for name, _ in made.named_parameters())


@pytest.mark.parametrize("use_residual", [False, True])
def test_on_a_periodic_grid_shifts_by_a_coarsest_cell_commute(use_residual: bool) -> None:
    made = cycle(padding="circular", use_residual=use_residual)
    x = fields()

    def difference(shift: tuple[int, int]) -> float:
        moved = made(x.roll(shift, (2, 3))) - made(x).roll(shift, (2, 3))
        return (moved.abs().max() / made(x).abs().max()).item()

    assert difference((4, 0)) < 1e-12 and difference((8, 12)) < 1e-12
    assert difference((1, 0)) > 1e-3, "a finer shift is no shift of the coarsest grid"
    for module in made.modules():
        if isinstance(module, Prolongation):
            module.periodic = False
    assert difference((4, 0)) > 1e-2, "with zeros outside the border is no place like others"


def apply(stencil: np.ndarray, u: np.ndarray, stride: int = 1) -> np.ndarray:
    """A stencil at every (second) point, with zeros outside; written out."""
    out = np.zeros_like(u)
    for i in range(u.shape[0]):
        for j in range(u.shape[1]):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < u.shape[0] and 0 <= j + dj < u.shape[1]:
                        out[i, j] += stencil[di + 1, dj + 1] * u[i + di, j + dj]
    return out[::stride, ::stride]


def interpolate(u: np.ndarray) -> np.ndarray:
    """Points at 0, 2, 4 ...: between them the mean of two or four, with zeros outside."""
    n = len(u)
    wide = np.zeros((n + 1, n + 1))
    wide[:n, :n] = u
    out = np.zeros((2 * n, 2 * n))
    out[::2, ::2] = wide[:n, :n]
    out[1::2, ::2] = (wide[:n, :n] + wide[1:, :n]) / 2
    out[::2, 1::2] = (wide[:n, :n] + wide[:n, 1:]) / 2
    out[1::2, 1::2] = (wide[:n, :n] + wide[1:, :n] + wide[:n, 1:] + wide[1:, 1:]) / 4
    return out


def solver(u: np.ndarray, f: np.ndarray, pre: list[int], post: list[int]) -> np.ndarray:
    """A multigrid cycle for -laplace u = f, as a textbook has it."""
    for _ in range(pre[0]):
        u = u + DAMPING * (f - apply(LAPLACE, u))
    if len(pre) > 1:
        rest = 4 * apply(np.outer(TENT, TENT), f - apply(LAPLACE, u), 2)  # the coarse stencil is of twice the width
        u = u + interpolate(solver(np.zeros_like(rest), rest, pre[1:], post[1:]))
        for _ in range(post[0]):
            u = u + DAMPING * (f - apply(LAPLACE, u))
    return u


@torch.no_grad()
def test_with_the_weights_of_a_solver_it_is_one() -> None:
    pre, post = [2, 1, 3], [1, 2, 0]
    made = VCycle(1, 1, pre, post, use_residual=True).double()
    kernels = {"A": torch.from_numpy(LAPLACE), "R": 4 * torch.from_numpy(np.outer(TENT, TENT)), "Pi": 0 * FLAT}
    kernels["S"] = 0 * FLAT
    kernels["S"][1, 1] = DAMPING
    tap = torch.tensor([0.5, 1.0, 0.5, 0.0], dtype=torch.float64)
    kernels["conv"] = torch.outer(tap, tap)
    for name, module in made.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            role = "S" if name == "first" else next(part for part in reversed(name.split(".")) if not part.isdigit())
            module.weight.copy_(kernels[role])
    f = fields(1, 1)
    expected = solver(np.zeros((16, 16)), f[0, 0].numpy(), pre, post)
    np.testing.assert_allclose(made(f)[0, 0].numpy(), expected, rtol=0, atol=1e-12)
    flat = solver(np.zeros((16, 16)), f[0, 0].numpy(), [3], [0])
    assert np.abs(expected - flat).max() > 0.1


def test_smoothing_steps_are_as_many_as_said_and_share_no_weights() -> None:
    def convolutions(pre: list[int], post: list[int]) -> int:
        return sum(isinstance(m, nn.Conv2d) for m in VCycle(1, 1, pre, post).modules())

    assert convolutions([1], [5]) == 1, "the coarsest level smooths on the way down only"
    assert convolutions([3], [0]) == 1 + 2 * 2
    assert convolutions([1, 2, 4], [1, 2, 7]) == 1 + 2 * (2 + 4) + 2 * (1 + 2) + 2 * 2


def test_coarse_levels_see_the_whole_picture() -> None:
    for pre, sees in (([1], 1), ([3], 5), ([1, 1, 1], 15)):
        torch.manual_seed(0)
        made = VCycle(1, 1, pre, [0] * len(pre)).double()
        x = torch.zeros(1, 1, 16, 16, dtype=torch.float64, requires_grad=True)
        made(x)[0, 0, 0, 0].backward()
        assert x.grad is not None
        reach = (x.grad[0, 0] != 0).nonzero().max().item()
        assert reach >= sees if len(pre) > 1 else reach == sees


@pytest.mark.parametrize("padding", ["zeros", "circular", "reflect"])
def test_the_layers_are_cycles_beside_a_neuron_at_the_same_place(padding: Any) -> None:
    torch.manual_seed(0)
    model = MgNO(FIELD, layers=2, channels=3, pre=[1, 2], post=[1, 0], padding=padding, activation="tanh").double()
    x = fields()
    first, second = model.blocks
    h = torch.tanh(first.cycle(x) + torch.einsum("oi,bihw->bohw", first.local.weight[..., 0, 0], x) + bias(first))
    h = torch.tanh(second.cycle(h) + torch.einsum("oi,bihw->bohw", second.local.weight[..., 0, 0], h) + bias(second))
    torch.testing.assert_close(model(x), torch.einsum("oi,bihw->bohw", model.head.weight[..., 0, 0], h))
    assert first.cycle.first.in_channels == 2, "no lifting before the first layer"
    assert model.head.bias is None


def bias(neuron: Any) -> Tensor:
    return neuron.local.bias[:, None, None]


def test_it_answers_in_the_units_of_the_task() -> None:
    mean, std = torch.rand(1, 16, 16), torch.rand(1, 16, 16)
    offer = Offer("image", (2, 16, 16), "field", 256, answer=(1, 16, 16), about={"scale": {"mean": mean, "std": std}})
    torch.manual_seed(0)
    told = MgNO(offer, layers=1, channels=2, pre=[1], post=[0])
    torch.manual_seed(0)
    plain = MgNO(FIELD, layers=1, channels=2, pre=[1], post=[0])
    x = fields().float()
    torch.testing.assert_close(told(x), mean + std * plain(x))
    assert {"units.mean", "units.std"} <= set(told.state_dict()), "what it was scaled by is saved with it"


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="maps fields to fields"):
        MgNO(Offer("image", (1, 8, 8), "classes", 10))
    with pytest.raises(ValueError, match="cannot be halved 5 times"):
        MgNO(FIELD)
    with pytest.raises(ValueError, match="pre has 2 levels and post has 1"):
        MgNO(FIELD, pre=[1, 1], post=[0])
    with pytest.raises(ValueError, match="too small to be mirrored"):
        MgNO(FIELD, pre=[1] * 5, post=[0] * 5, padding="reflect")
    MgNO(FIELD, pre=[1] * 5, post=[0] * 5)


def test_a_few_steps_beat_the_mean_of_all_solutions() -> None:
    document = {
        "task": {"use": "darcy-flow", "size": 16, "samples": 50, "held_out": 10},
        "model": {"use": "mgno", "channels": 4, "layers": 2, "pre": [1, 1, 1], "post": [0, 0, 0]},
        "loss": {"use": "relative-h1"},
        "optimizer": {"use": "adamw", "lr": 5e-3},
        "training": {"batch_size": 10, "evaluate_every": 0},
        "budget": {"epochs": 8},
    }
    assert train(filled(Recipe.of(document))).metrics["test/relative-l2"] < 0.2
