"""Structures: stiffness, solve, derivative, volume and filter against independent slow versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from engine.kit.structures import SOFTEST, Structure, cone, element_stiffness, with_volume
from engine.methods.tasks.structural_design import stated


def structure(problem: str = "mbb-beam", rows: int = 4, columns: int = 6, weight: float = 0.0) -> Structure:
    return Structure(*stated(problem, rows, columns), weight)


def density(at: Structure, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 0.2 + 0.7 * torch.rand(at.shape, generator=rng, dtype=torch.float64)


def dense_compliance(at: Structure, x: Tensor) -> float:
    """Written anew: nodes along the rows, a dense matrix, element by element."""
    rows, columns = at.shape
    k = element_stiffness()
    node = lambda r, c: r * (columns + 1) + c  # noqa: E731
    size = 2 * (rows + 1) * (columns + 1)
    whole, force, held = np.zeros((size, size)), np.zeros(size), np.zeros(size, dtype=bool)
    for r in range(rows + 1):
        for c in range(columns + 1):
            force[2 * node(r, c) : 2 * node(r, c) + 2] = at.loads[r, c]
            held[2 * node(r, c) : 2 * node(r, c) + 2] = at.held[r, c]
    for r in range(rows):
        for c in range(columns):
            corners = [node(r, c), node(r, c + 1), node(r + 1, c + 1), node(r + 1, c)]
            place = [2 * n + d for n in corners for d in (0, 1)]
            whole[np.ix_(place, place)] += (SOFTEST + float(x[r, c]) ** at.penalty * (1 - SOFTEST)) * k
            for n in corners:
                force[2 * n + 1] += at.weight * float(x[r, c]) / 4
    free = ~held
    return float(force[free] @ np.linalg.solve(whole[np.ix_(free, free)], force[free]))


def test_an_elements_stiffness_is_the_published_one() -> None:
    nu = 0.3
    k = np.array(
        [
            *(1 / 2 - nu / 6, 1 / 8 + nu / 8, -1 / 4 - nu / 12, -1 / 8 + 3 * nu / 8),
            *(-1 / 4 + nu / 12, -1 / 8 - nu / 8, nu / 6, 1 / 8 - 3 * nu / 8),
        ]
    ) / (1 - nu**2)
    order = [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [1, 0, 7, 6, 5, 4, 3, 2],
        [2, 7, 0, 5, 6, 3, 4, 1],
        [3, 6, 5, 0, 7, 2, 1, 4],
        [4, 5, 6, 7, 0, 1, 2, 3],
        [5, 4, 3, 2, 1, 0, 7, 6],
        [6, 3, 4, 1, 2, 7, 0, 5],
        [7, 2, 1, 4, 3, 6, 5, 0],
    ]
    np.testing.assert_allclose(element_stiffness(nu), k[np.array(order)], rtol=0, atol=1e-14)


def test_an_element_resists_no_rigid_motion() -> None:
    k = element_stiffness()
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=float)
    turned = np.stack([-corners[:, 1], corners[:, 0]], 1).ravel()
    for motion in (np.tile([1.0, 0.0], 4), np.tile([0.0, 1.0], 4), turned):
        np.testing.assert_allclose(k @ motion, 0, atol=1e-14)
    assert np.linalg.matrix_rank(k) == 5


@pytest.mark.parametrize("shape", [(4, 6), (7, 3)])
@pytest.mark.parametrize("problem", ["mbb-beam", "cantilever", "bridge", "multistorey", "l-bracket", "arch"])
def test_the_compliance_is_that_of_a_dense_solve(problem: str, shape: tuple[int, int]) -> None:
    at = structure(problem, *shape, weight=0.1)
    for x in (torch.full(at.shape, 0.4, dtype=torch.float64), density(at)):
        assert float(at.compliance(x)) == pytest.approx(dense_compliance(at, x), rel=1e-9)


def test_the_stiffness_is_symmetric_and_the_bands_hold_all_of_it() -> None:
    at = structure(rows=4, columns=6)
    modulus = at.modulus(density(at)).flatten().numpy()
    size = at.held.size
    i, j = np.repeat(at.freedoms, 8, axis=1).ravel(), np.tile(at.freedoms, (1, 8)).ravel()
    whole = sparse.coo_array((at.entries(modulus), (i, j)), shape=(size, size)).toarray()
    np.testing.assert_allclose(whole, whole.T, atol=1e-15)
    factor = at.factor(modulus)
    lower = np.zeros((len(at.free), len(at.free)))
    for below, band in enumerate(factor):
        lower[np.arange(below, len(lower)), np.arange(len(lower) - below)] = band[: len(lower) - below]
    np.testing.assert_allclose(lower @ lower.T, whole[np.ix_(at.free, at.free)], atol=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_gradient_by_logits_is_that_of_central_differences(weight: float) -> None:
    at = structure("cantilever", 4, 6, weight)
    inside = torch.from_numpy(at.inside)
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(at.shape, generator=rng, dtype=torch.float64)

    def value(given: Tensor) -> Tensor:
        return at.compliance(cone(with_volume(given, 0.4, inside), 2.0, inside))

    logits.requires_grad_()
    (slope,) = torch.autograd.grad(value(logits), logits)
    for direction in torch.randn(6, *at.shape, generator=rng, dtype=torch.float64):
        step = 1e-5 * direction
        with torch.no_grad():
            expected = (value(logits + step) - value(logits - step)) / 2e-5
        assert float((slope * direction).sum()) == pytest.approx(float(expected), rel=1e-5)
    assert abs(float(slope.sum())) < 1e-9 * float(slope.abs().sum()), "a constant over all logits changes nothing"


def test_the_volume_is_kept_and_a_constant_changes_nothing() -> None:
    at = structure("l-bracket", 8, 8)
    inside = torch.from_numpy(at.inside)
    for scale in (0.0, 1.0, 50.0):
        logits = scale * torch.randn(at.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        found = with_volume(logits, 0.3, inside)
        assert float(found[inside].mean()) == pytest.approx(0.3, abs=1e-9)
        assert not found[~inside].any()
        torch.testing.assert_close(with_volume(logits + 7.0, 0.3, inside), found, rtol=0, atol=1e-9)


def slow_cone(x: Tensor, width: float, inside: Tensor) -> Tensor:
    found = torch.zeros_like(x)
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            total = weights = 0.0
            for i in range(x.shape[0]):
                for j in range(x.shape[1]):
                    weight = max(0.0, width - ((r - i) ** 2 + (c - j) ** 2) ** 0.5) * bool(inside[i, j])
                    total, weights = total + weight * float(x[i, j]), weights + weight
            found[r, c] = total / weights if inside[r, c] else 0.0
    return found


@pytest.mark.parametrize("width", [1.0, 2.0, 2.4, 3.0])
def test_the_filter_is_that_of_a_slow_loop(width: float) -> None:
    at = structure("l-bracket", 6, 8)
    inside = torch.from_numpy(at.inside)
    x = density(at) * inside
    torch.testing.assert_close(cone(x, width, inside), slow_cone(x, width, inside), rtol=1e-12, atol=0)


def test_the_filter_moves_the_mean_at_the_walls() -> None:
    x = torch.zeros(16, 24, dtype=torch.float64)
    x[0] = x[-1] = 1.0
    assert float(x.mean()) == 0.125
    assert float(cone(x, 2.0, torch.ones(16, 24, dtype=torch.bool)).mean()) == pytest.approx(0.114, abs=5e-4)
