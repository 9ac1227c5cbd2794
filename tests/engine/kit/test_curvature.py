"""Curvature by products against dense matrices and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kit import curvature as c

SHAPES = ((3, 2), (4,), (2, 1, 2))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameters() -> list[Tensor]:
    return [torch.randn(s, generator=rng(i), dtype=torch.float64, requires_grad=True) for i, s in enumerate(SHAPES)]


def quadratic(eigenvalues: Tensor, over: list[Tensor]) -> tuple[Tensor, Tensor]:
    """1/2 w A w + b w with A of those eigenvalues, and A."""
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=rng(9), dtype=torch.float64))
    a = q @ torch.diag(eigenvalues) @ q.T
    w = c.flat(over)
    return 0.5 * w @ a @ w + w.sum(), a


EIGENVALUES = torch.tensor([-3.0, -0.5, 0.1, 0.2, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 9.0]).double()


def network_loss(over: list[Tensor]) -> Tensor:
    x = torch.randn(7, 2, generator=rng(3), dtype=torch.float64)
    hidden = torch.tanh(x @ over[0].T)
    return F.cross_entropy(
        hidden @ over[2].view(4, 1).repeat(1, 3)[:3] * over[1].sum() + over[1][:3], torch.arange(7) % 3
    )


def test_products_are_the_dense_hessian() -> None:
    over = parameters()
    product = c.hessian(network_loss(over), over)

    def flat_loss(w: Tensor) -> Tensor:
        return network_loss(c.like(w, over))

    expected = torch.autograd.functional.hessian(flat_loss, c.flat(over).detach())
    torch.testing.assert_close(c.dense(product, over), expected, rtol=0, atol=1e-12)
    assert float(expected.abs().max()) > 1e-3
    assert all(p.grad is None for p in over)


def test_a_product_can_be_differentiated_again() -> None:
    w = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    grads = c.gradient((w**4).sum(), [w], create_graph=True)
    (image,) = c.backproduct(grads, [w], [torch.ones(1).double()], create_graph=True)
    (third,) = torch.autograd.grad(image.sum(), w)
    torch.testing.assert_close(third, 24 * w.detach(), rtol=1e-14, atol=0)


def test_mixed_derivatives() -> None:
    w, decay = parameters()[0], torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    grads = c.gradient(0.5 * decay.exp() * w.square().sum(), [w], create_graph=True)
    v = [torch.randn_like(w)]
    (found,) = c.backproduct(grads, [decay], v)
    torch.testing.assert_close(found, (decay.exp() * (w * v[0]).sum()).detach(), rtol=1e-14, atol=0)


def test_what_the_value_does_not_depend_on_has_no_derivative() -> None:
    a, b, _ = parameters()
    first, second = c.gradient((a**2).sum(), [a, b])
    torch.testing.assert_close(first, 2 * a.detach(), rtol=0, atol=0)
    assert torch.equal(second, torch.zeros_like(b))
    frozen = torch.ones(3)
    assert torch.equal(c.gradient((a**2).sum(), [frozen, a])[0], torch.zeros(3))
    linear = c.hessian((a * 2).sum(), [a])
    assert torch.equal(linear([torch.ones_like(a)])[0], torch.zeros_like(a))


def test_power_iteration_finds_the_largest_with_its_sign() -> None:
    over = parameters()
    value, a = quadratic(-EIGENVALUES, over)
    top, vector = c.power_iteration(c.hessian(value, over), over, rng(), steps=60)
    assert float(top) == pytest.approx(-9.0, rel=1e-10)
    torch.testing.assert_close(a @ c.flat(vector), -9 * c.flat(vector), rtol=0, atol=1e-6)
    again, _ = c.power_iteration(c.hessian(value, over), over, rng(1), steps=1, start=vector)
    assert float(again) == pytest.approx(-9.0, rel=1e-10)


def test_lanczos_with_every_direction_is_exact() -> None:
    over = parameters()
    value, a = quadratic(EIGENVALUES, over)
    found = c.lanczos(c.hessian(value, over), over, rng(), steps=99)
    assert found.basis.shape == (14, 14)
    values, weights = found.ritz()
    torch.testing.assert_close(values, EIGENVALUES, rtol=0, atol=1e-9)
    assert float(weights.sum()) == pytest.approx(1.0)
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(14).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.basis @ a @ found.basis.T, found.matrix(), rtol=0, atol=1e-9)
    moments = [float((weights * values**k).sum()) for k in (1, 2)]
    start = found.basis[0]
    assert moments == pytest.approx([float(start @ a @ start), float(start @ a @ a @ start)])


def test_lanczos_finds_the_ends_of_the_spectrum_early() -> None:
    over = parameters()
    value, _ = quadratic(EIGENVALUES, over)
    low, high = c.extreme_eigenvalues(c.hessian(value, over), over, rng(), steps=10)
    assert float(low) == pytest.approx(-3.0, abs=1e-2) and float(high) == pytest.approx(9.0, abs=1e-6)


def test_lanczos_of_a_map_with_few_eigenvalues_stays_finite() -> None:
    some = [torch.zeros(6, dtype=torch.float64)]
    found = c.lanczos(lambda v: c.scaled(v, 2.0), some, rng(), steps=4)
    assert float(found.diagonal[0]) == pytest.approx(2.0)
    assert bool(torch.isfinite(found.matrix()).all())


def test_conjugate_gradients_solve_in_as_many_steps_as_eigenvalues() -> None:
    over = parameters()
    value, a = quadratic(EIGENVALUES.abs(), over)
    right = [torch.randn(s, generator=rng(5), dtype=torch.float64) for s in SHAPES]
    product = c.hessian(value, over)
    solved = c.conjugate_gradient(product, right, steps=16)
    torch.testing.assert_close(c.flat(solved.x), torch.linalg.solve(a, c.flat(right)), rtol=1e-7, atol=1e-7)
    assert float(solved.residual) < 1e-7 and solved.products == 16

    rough = c.conjugate_gradient(product, right, steps=99, tolerance=1e-2)
    assert rough.products < 14
    true = torch.linalg.vector_norm(a @ c.flat(rough.x) - c.flat(right))
    assert float(true) == pytest.approx(float(rough.residual), rel=1e-6)
    assert float(true) <= 1e-2 * float(c.norm(right))

    warm = c.conjugate_gradient(product, right, steps=99, tolerance=1e-6, start=solved.x)
    assert warm.products == 1


def test_a_good_preconditioner_saves_steps() -> None:
    scale = torch.logspace(0, 4, 14, dtype=torch.float64)
    right = [torch.ones(14, dtype=torch.float64)]

    def product(v: object) -> list[Tensor]:
        return [scale * v[0]]  # type: ignore[index]

    exact = c.conjugate_gradient(product, right, steps=1, preconditioner=lambda r: [r[0] / scale])
    torch.testing.assert_close(exact.x[0], 1 / scale, rtol=1e-12, atol=0)
    assert float(c.conjugate_gradient(product, right, steps=3).residual) > 1e-3


def test_conjugate_gradients_do_not_follow_a_direction_that_curves_down() -> None:
    right = [torch.tensor([1.0, 0.0], dtype=torch.float64)]
    solved = c.conjugate_gradient(lambda v: c.scaled(v, -1.0), right, steps=5)
    assert torch.equal(solved.x[0], torch.zeros(2).double())
    nothing = c.conjugate_gradient(lambda v: list(v), [torch.zeros(2)], steps=3)
    assert torch.equal(nothing.x[0], torch.zeros(2))


def test_neumann_is_its_partial_sum_and_tends_to_the_inverse() -> None:
    over = parameters()
    value, a = quadratic(EIGENVALUES.abs(), over)
    right = [torch.randn(s, generator=rng(5), dtype=torch.float64) for s in SHAPES]
    product, b = c.hessian(value, over), c.flat(right)
    step = torch.eye(14).double() - 0.1 * a
    partial = 0.1 * (b + step @ b + step @ step @ b)
    torch.testing.assert_close(c.flat(c.neumann(product, right, 0.1, steps=2)), partial, rtol=1e-10, atol=1e-12)
    far = c.flat(c.neumann(product, right, 0.2, steps=2000))
    torch.testing.assert_close(far, torch.linalg.solve(a, b), rtol=1e-8, atol=1e-8)


def test_damping() -> None:
    over = parameters()
    value, a = quadratic(EIGENVALUES, over)
    found = c.dense(c.damped(c.hessian(value, over), 3.5), over)
    torch.testing.assert_close(found, a + 3.5 * torch.eye(14).double(), rtol=0, atol=1e-12)


def test_hutchinson_is_exact_for_a_diagonal_map() -> None:
    some = [torch.zeros(5, dtype=torch.float64)]
    diagonal = torch.arange(5.0).double() - 2

    def product(v: object) -> list[Tensor]:
        return [diagonal * v[0]]  # type: ignore[index]

    torch.testing.assert_close(c.hutchinson_diagonal(product, some, rng())[0], diagonal, rtol=0, atol=0)
    mean, error = c.hutchinson_trace(product, some, rng(), samples=3)
    assert float(mean) == 0.0 and float(error) == 0.0
    assert math.isnan(float(c.hutchinson_trace(product, some, rng())[1]))


def test_hutchinson_errors_shrink_with_the_root_of_the_samples() -> None:
    over = parameters()
    value, a = quadratic(EIGENVALUES, over)
    product = c.hessian(value, over)

    def error(samples: int) -> float:
        runs = [c.flat(c.hutchinson_diagonal(product, over, rng(seed), samples)) for seed in range(20)]
        return float(torch.stack([(r - a.diagonal()).square().sum() for r in runs]).mean().sqrt())

    few, many = error(4), error(64)
    assert 3.0 < few / many < 5.3
    # The variance of entry i is the sum of the squares of row i beside the diagonal (exact for random signs).
    exact = math.sqrt(float((a.square().sum() - a.diagonal().square().sum()) / 64))
    assert many == pytest.approx(exact, rel=0.25)
    mean, spread = c.hutchinson_trace(product, over, rng(), samples=400)
    assert abs(float(mean) - float(EIGENVALUES.sum())) < 4 * float(spread)
    off = 2 * float(a.square().sum() - a.diagonal().square().sum())
    assert float(spread) == pytest.approx(math.sqrt(off / 400), rel=0.15)


def test_random_directions() -> None:
    some = [torch.zeros(50, 40), torch.zeros(200)]
    z = c.flat(c.signs(some, rng()))
    assert set(z.unique().tolist()) == {-1.0, 1.0} and abs(float(z.mean())) < 0.08
    assert torch.equal(z, c.flat(c.signs(some, rng()))) and not torch.equal(z, c.flat(c.signs(some, rng(1))))
    assert float(c.norm(c.gaussian(some, rng(), unit=True))) == pytest.approx(1.0, rel=1e-6)
    assert float(c.flat(c.gaussian(some, rng())).std()) == pytest.approx(1.0, rel=0.05)


def test_list_arithmetic_is_vector_arithmetic() -> None:
    a, b = parameters(), [torch.randn(s, generator=rng(7), dtype=torch.float64) for s in SHAPES]
    x, y = c.flat(a), c.flat(b)
    torch.testing.assert_close(c.dot(a, b), x @ y, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(c.norm(a), x.norm(), rtol=1e-14, atol=0)
    for by in (0.5, torch.tensor(0.5, dtype=torch.float64)):
        torch.testing.assert_close(c.flat(c.plus(a, b, by)), x + 0.5 * y, rtol=1e-14, atol=1e-14)
    assert all(torch.equal(p, q) for p, q in zip(c.like(y, b), b, strict=True))


def test_the_gram_of_the_jacobian_has_the_kernels_eigenvalues() -> None:
    over = parameters()
    x = torch.randn(4, sum(t.numel() for t in over), dtype=over[0].dtype, generator=rng(5))
    output = torch.tanh(x @ c.flat(over)).view(2, 2)
    rows = [c.flat(torch.autograd.grad(value, over, retain_graph=True)) for value in output.flatten()]
    j = torch.stack(rows)
    gram = c.dense(c.jacobian_gram(output, over), over)
    torch.testing.assert_close(gram, j.T @ j, rtol=1e-10, atol=1e-12)
    kernel = torch.linalg.eigvalsh(j @ j.T)
    torch.testing.assert_close(torch.linalg.eigvalsh(gram)[-len(kernel) :], kernel, rtol=1e-8, atol=1e-10)
