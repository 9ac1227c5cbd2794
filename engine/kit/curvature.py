"""Curvature without a matrix: what can be learned of a Hessian, or of any symmetric map, from its products alone.

Directions are lists of tensors, one a parameter. A product is a function from a direction to a direction:

    product = hessian(loss, parameters)               # one graph, as many products as wanted
    top, vector = power_iteration(product, parameters, rng)
    step, _ = conjugate_gradient(product, gradient, steps=20)

Random directions are drawn from a generator and on its device. Nothing waits for the device unless a tolerance is
given, and nothing here changes a parameter or its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Direction = list[Tensor]
Product = Callable[[Sequence[Tensor]], Direction]


# -- directions --------------------------------------------------------------------------------------------------------


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """The inner product over all tensors together."""
    return torch.stack([part.sum() for part in torch._foreach_mul(list(a), list(b))]).sum()


def norm(a: Sequence[Tensor]) -> Tensor:
    """The Euclidean length over all tensors together."""
    return torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(list(a)))))


def scaled(a: Sequence[Tensor], by: float | Tensor) -> Direction:
    """A multiple of a direction."""
    return list(torch._foreach_mul(list(a), by))


def plus(a: Sequence[Tensor], b: Sequence[Tensor], by: float | Tensor = 1.0) -> Direction:
    """``a + by b``."""
    if isinstance(by, Tensor):
        return list(torch._foreach_add(list(a), torch._foreach_mul(list(b), by)))
    return list(torch._foreach_add(list(a), list(b), alpha=by))


def flat(a: Sequence[Tensor]) -> Tensor:
    """All numbers of a direction in one vector."""
    return torch.cat([t.reshape(-1) for t in a])


def like(vector: Tensor, some: Sequence[Tensor]) -> Direction:
    """The inverse of `flat`: a vector cut into tensors of the shapes of `some`."""
    pieces = vector.split([t.numel() for t in some])
    return [piece.view(t.shape) for piece, t in zip(pieces, some, strict=True)]


def signs(some: Sequence[Tensor], rng: torch.Generator) -> Direction:
    """A random direction of +1 and -1, each as likely (Rademacher)."""
    drawn = (torch.empty(t.shape, dtype=t.dtype, device=rng.device).bernoulli_(0.5, generator=rng) for t in some)
    return [z.mul_(2).sub_(1).to(t.device) for z, t in zip(drawn, some, strict=True)]


def gaussian(some: Sequence[Tensor], rng: torch.Generator, unit: bool = False) -> Direction:
    """A random direction of standard normal numbers; `unit`: of length one, every direction as likely."""
    drawn = (torch.empty(t.shape, dtype=t.dtype, device=rng.device).normal_(generator=rng) for t in some)
    found = [z.to(t.device) for z, t in zip(drawn, some, strict=True)]
    return scaled(found, 1 / norm(found)) if unit else found


# -- products ----------------------------------------------------------------------------------------------------------


def gradient(value: Tensor, over: Sequence[Tensor], create_graph: bool = False, retain: bool = False) -> Direction:
    """The gradient of a number; zeros for what it does not depend on, and for what is frozen."""
    live = [t for t in over if t.requires_grad]
    if not value.requires_grad or not live:
        return [torch.zeros_like(t) for t in over]
    keep = retain or create_graph
    grads = torch.autograd.grad(value, live, create_graph=create_graph, retain_graph=keep, allow_unused=True)
    found = iter(grads)
    each = (next(found) if t.requires_grad else None for t in over)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(over, each, strict=True)]


@torch.enable_grad()
def hessian(value: Tensor, over: Sequence[Tensor]) -> Product:
    """The Hessian of a number as a product. The graph is built once and lives as long as the product does."""
    grads = gradient(value, over, create_graph=True)
    return lambda vectors: backproduct(grads, over, vectors)


@torch.enable_grad()
def backproduct(
    outputs: Sequence[Tensor], over: Sequence[Tensor], vectors: Sequence[Tensor], create_graph: bool = False
) -> Direction:
    """The transposed Jacobian of `outputs` with respect to `over`, times `vectors` (shaped like the outputs).

    With the gradient of a loss as outputs it is the Hessian's product, where `over` is what the gradient was taken
    over, and a mixed second derivative where it is something else (the hyperparameters of a loss).
    """
    inner = torch.stack([(g * v).sum() for g, v in zip(outputs, vectors, strict=True)]).sum()
    return gradient(inner, over, create_graph=create_graph, retain=True)


@torch.enable_grad()
def jacobian_gram(output: Tensor, over: Sequence[Tensor]) -> Product:
    """``J^T J`` of an output as a product. Its nonzero eigenvalues are those of the tangent kernel ``J J^T``."""
    pulled_by = torch.zeros_like(output, requires_grad=True)
    pulled = torch.autograd.grad(output, list(over), pulled_by, create_graph=True, allow_unused=True)
    back = [torch.zeros_like(t) if g is None else g for t, g in zip(over, pulled, strict=True)]  # linear in pulled_by

    def product(vectors: Sequence[Tensor]) -> Direction:
        inner = torch.stack([(g * v).sum() for g, v in zip(back, vectors, strict=True)]).sum()
        (pushed,) = gradient(inner, [pulled_by], retain=True)
        grads = torch.autograd.grad(output, list(over), pushed, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(over, grads, strict=True)]

    return product


def damped(product: Product, by: float | Tensor) -> Product:
    """The product of the map plus `by` times the identity."""
    return lambda vectors: plus(product(vectors), vectors, by)


def dense(product: Product, some: Sequence[Tensor]) -> Tensor:
    """The whole matrix, a product for each column: for small problems and for tests."""
    size = sum(t.numel() for t in some)
    unit = torch.eye(size, dtype=some[0].dtype, device=some[0].device)
    return torch.stack([flat(product(like(row, some))) for row in unit], dim=1)


# -- eigenvalues -------------------------------------------------------------------------------------------------------


def power_iteration(
    product: Product, some: Sequence[Tensor], rng: torch.Generator, steps: int = 50, start: Sequence[Tensor] = ()
) -> tuple[Tensor, Direction]:
    """The eigenvalue of largest size, with its sign, and a unit eigenvector; `start` goes on from an earlier one."""
    vector = scaled(start, 1 / norm(start)) if start else gaussian(some, rng, unit=True)
    tiny = torch.finfo(some[0].dtype).tiny
    for _ in range(steps):
        image = product(vector)
        vector = scaled(image, 1 / norm(image).clamp_min(tiny))
    return dot(vector, product(vector)), vector


class Tridiagonal(NamedTuple):
    """What `lanczos` finds: the diagonal, the diagonal beside it, and the basis, one row a step."""

    diagonal: Tensor
    beside: Tensor
    basis: Tensor

    def matrix(self) -> Tensor:
        """The small symmetric matrix that stands for the large one."""
        return torch.diag(self.diagonal) + torch.diag(self.beside, 1) + torch.diag(self.beside, -1)

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Estimated eigenvalues in rising order, and the weight of each in the spectral density (they sum to 1)."""
        values, vectors = torch.linalg.eigh(self.matrix())
        return values, vectors[0].square()


def lanczos(product: Product, some: Sequence[Tensor], rng: torch.Generator, steps: int = 30) -> Tridiagonal:
    """Lanczos from a random unit direction, every new direction made orthogonal to all before, twice.

    `steps` is limited by the number of parameters. The basis holds steps times the parameters' memory.
    """
    size = sum(t.numel() for t in some)
    steps = min(steps, size)
    current = flat(gaussian(some, rng, unit=True))
    basis = current.new_zeros(steps, size)
    diagonal, beside = current.new_zeros(steps), current.new_zeros(max(steps - 1, 0))
    tiny = torch.finfo(current.dtype).tiny
    for i in range(steps):
        basis[i] = current
        image = flat(product(like(current, some)))
        diagonal[i] = current @ image
        for _ in range(2):
            image = image - basis[: i + 1].T @ (basis[: i + 1] @ image)
        if i + 1 < steps:
            beside[i] = torch.linalg.vector_norm(image)
            current = image / beside[i].clamp_min(tiny)
    return Tridiagonal(diagonal, beside, basis)


def extreme_eigenvalues(
    product: Product, some: Sequence[Tensor], rng: torch.Generator, steps: int = 30
) -> tuple[Tensor, Tensor]:
    """The smallest and the largest eigenvalue, by Lanczos: fewer products than by power iteration."""
    values, _ = lanczos(product, some, rng, steps).ritz()
    return values[0], values[-1]


# -- linear systems ----------------------------------------------------------------------------------------------------


class Solved(NamedTuple):
    """An approximate solution, the length of what is left of the right side, and the products made."""

    x: Direction
    residual: Tensor
    products: int


def conjugate_gradient(
    product: Product,
    right: Sequence[Tensor],
    steps: int = 10,
    tolerance: float = 0.0,
    start: Sequence[Tensor] = (),
    preconditioner: Product | None = None,
) -> Solved:
    """Solves ``A x = right`` for a positive definite map by its products.

    Ends after `steps`, or when the residual is at most `tolerance` times the right side's length (which waits for the
    device once a step). A direction along which A does not curve up is not followed: x stays there.
    """
    right = list(right)
    x = list(start) or [torch.zeros_like(t) for t in right]
    residual = plus(right, product(x), -1.0) if start else [t.clone() for t in right]
    made = 1 if start else 0
    solve = preconditioner or list
    z = solve(residual)
    along = list(z)
    rho = dot(residual, z)
    limit = tolerance * norm(right)
    for _ in range(steps):
        if tolerance and bool(norm(residual) <= limit):
            break
        image = product(along)
        made += 1
        curvature = dot(along, image)
        ahead = curvature > 0
        size = torch.where(ahead, rho / torch.where(ahead, curvature, 1.0), 0.0)
        x = plus(x, along, size)
        residual = plus(residual, image, -size)
        z = solve(residual)
        fresh = dot(residual, z)
        along = plus(z, along, torch.where(rho > 0, fresh / torch.where(rho > 0, rho, 1.0), 0.0))
        rho = fresh
    return Solved(x, norm(residual), made)


def neumann(product: Product, right: Sequence[Tensor], rate: float, steps: int = 10) -> Direction:
    """An approximate ``A^-1 right``: ``rate sum_(i=0..steps) (I - rate A)^i right``.

    It tends to the solution where every eigenvalue of A lies between 0 and 2 / rate.
    """
    term = list(right)
    total = list(right)
    for _ in range(steps):
        term = plus(term, product(term), -rate)
        total = plus(total, term)
    return scaled(total, rate)


# -- diagonals and traces ----------------------------------------------------------------------------------------------


def hutchinson_diagonal(product: Product, some: Sequence[Tensor], rng: torch.Generator, samples: int = 1) -> Direction:
    """An unbiased estimate of the diagonal: the mean of ``z * A z`` over random signs z. Exact for a diagonal map."""
    total = [torch.zeros_like(t) for t in some]
    for _ in range(samples):
        z = signs(some, rng)
        total = plus(total, torch._foreach_mul(z, product(z)))
    return scaled(total, 1 / samples)


def hutchinson_trace(
    product: Product, some: Sequence[Tensor], rng: torch.Generator, samples: int = 1
) -> tuple[Tensor, Tensor]:
    """An unbiased estimate of the trace, and its standard error (NaN for one sample)."""
    each = []
    for _ in range(samples):
        z = signs(some, rng)
        each.append(dot(z, product(z)))
    values = torch.stack(each)
    error = values.std() / samples**0.5 if samples > 1 else values.new_tensor(float("nan"))
    return values.mean(), error
