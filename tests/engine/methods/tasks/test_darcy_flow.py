"""Darcy flow: solutions against a solver written out, a series and conservation; fields that are random but smooth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scipy.sparse import lil_array
from scipy.sparse.linalg import spsolve

from engine.figures import problems
from engine.methods.models.cnn import CNN
from engine.methods.models.field_cnn import FieldCNN
from engine.methods.models.mlp import MLP
from engine.methods.tasks.darcy_flow import DarcyFlow, pressure, random_fields
from engine.parts import Batch

RNG = np.random.default_rng(0)


def written_out(a: np.ndarray) -> np.ndarray:
    """Each cell's balance: what flows to its four neighbours, or over the border, is what wells up in it."""
    n = len(a)
    matrix = lil_array((n * n, n * n))
    for i in range(n):
        for j in range(n):
            for k, m in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if 0 <= k < n and 0 <= m < n:
                    flow = 1 / (0.5 / a[i, j] + 0.5 / a[k, m])  # two half cells in a row
                    matrix[i * n + j, k * n + m] -= flow
                else:
                    flow = 1 / (0.5 / a[i, j])
                matrix[i * n + j, i * n + j] += flow
    return spsolve(matrix.tocsr(), np.full(n * n, 1 / n**2)).reshape(n, n)


def test_the_band_is_solved_as_the_balance_of_every_cell() -> None:
    a = RNG.uniform(1, 10, (9, 9))
    np.testing.assert_allclose(pressure(a), written_out(a), rtol=1e-10)


def test_even_ground_gives_the_series() -> None:
    """-laplace u = 1 on the square: a sum over odd sines, second order in the cells' width."""
    errors = []
    for n in (16, 32):
        x = (np.arange(n) + 0.5) / n
        k = np.arange(1, 400, 2)
        sines = np.sin(np.pi * np.outer(k, x))
        weight = 16 / (math.pi**4 * np.outer(k, k) * (k[:, None] ** 2 + k**2))
        errors.append(np.abs(pressure(np.ones((n, n))) - sines.T @ weight @ sines).max())
    assert errors[1] < 2e-4 and errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    a = RNG.uniform(1, 10, (8, 8))
    np.testing.assert_allclose(pressure(7 * a), pressure(a) / 7)
    np.testing.assert_allclose(pressure(a.T), pressure(a).T)
    np.testing.assert_allclose(pressure(a[::-1]), pressure(a)[::-1])


def test_the_random_fields_have_the_spectrum_that_they_should() -> None:
    fields = random_fields(np.random.default_rng(1).standard_normal((4000, 8, 8)))
    k = np.arange(8)
    variance = (np.pi**2 * (k[:, None] ** 2 + k**2) + 9) ** -2.0
    variance[0, 0] = 0
    found = (dctn(fields, axes=(1, 2), norm="ortho") ** 2).mean(0)
    np.testing.assert_allclose(found, variance, rtol=0.12, atol=1e-12)


def test_the_splits() -> None:
    task = DarcyFlow(size=8, samples=30, held_out=6, contrast=5.0)
    task.load()
    assert [task.size(split) for split in ("train", "val", "test")] == [30, 6, 6]
    train = task.columns("train")
    assert train["x"].shape == train["target"].shape == (30, 1, 8, 8)
    assert len(train["x"].unique()) == 2 and abs(train["x"].mean()) < 1e-6
    low, _ = train["x"].unique().tolist()
    ground = np.where(train["x"][3, 0].numpy() > low, 15.0, 3.0)
    np.testing.assert_allclose(train["target"][3, 0].numpy(), pressure(ground), rtol=1e-5)
    assert not torch.equal(train["x"][:6], task.columns("test")["x"])
    mean, std = task.offer.about["scale"]["mean"], task.offer.about["scale"]["std"]
    torch.testing.assert_close((train["target"] - mean).div(std).square().mean(0), torch.ones(1, 8, 8))
    again, other = DarcyFlow(size=8, samples=30, held_out=6), DarcyFlow(size=8, samples=30, held_out=6, data_seed=1)
    again.load()
    other.load()
    assert torch.equal(again.columns("val")["x"] > 0, task.columns("val")["x"] > 0)
    assert not torch.equal(other.columns("val")["x"], again.columns("val")["x"])


def test_what_is_measured_and_drawn() -> None:
    task = DarcyFlow(size=8, samples=10, held_out=4)
    task.load()
    columns = task.columns("val")
    batch = Batch({"x": columns["x"]}, columns["target"], torch.arange(4), "val")
    found = task.metrics(1.1 * columns["target"], batch)
    torch.testing.assert_close(found["relative-l2"], torch.full((4,), 0.1))
    torch.testing.assert_close(found["relative-h1"], torch.full((4,), 0.1))
    rippled = columns["target"] + 0.01 * columns["target"].mean() * torch.tensor([1.0, -1.0]).repeat(4)
    found = task.metrics(rippled, batch)
    assert (found["relative-h1"] > 2 * found["relative-l2"]).all(), "ripples cost more"
    torch.testing.assert_close(task.objective(rippled, batch)["task"], found["relative-l2"])
    drawn = task.figures(lambda batch: torch.zeros_like(batch.x), torch.Generator())
    assert len(drawn) == 3 and all(figure["title"] == "Pressure, 100.0% off" for figure in drawn.values())
    assert [problems(figure) for figure in (*drawn.values(), task.figure())] == [[]] * 4


def test_models_without_a_picture_to_answer_are_refused_or_answer_one() -> None:
    task = DarcyFlow(size=8, samples=10, held_out=4)
    task.load()
    with pytest.raises(ValueError, match="answers one row of numbers"):
        CNN(task.offer)
    assert MLP(task.offer, hidden=[4])(task.columns("val")["x"]).shape == (4, 1, 8, 8)


def test_the_plain_network_is_blind_beyond_its_layers() -> None:
    task = DarcyFlow(size=8, samples=10, held_out=4)
    torch.manual_seed(0)
    for kernel, depth, sees in ((3, 1, 2), (5, 0, 2), (3, 3, 4)):
        model = FieldCNN(task.offer, width=3, depth=depth, kernel=kernel).double()
        x = torch.zeros(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
        model(x)[0, 0, 0, 0].backward()
        assert x.grad is not None and (x.grad[0, 0] != 0).nonzero().max().item() == sees
    with pytest.raises(ValueError, match="has no middle"):
        FieldCNN(task.offer, kernel=4)
