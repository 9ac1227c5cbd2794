"""What tests of optimizers share: the same gradients, given to two optimizers, and the weights they reach."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor

SHAPES = ((4, 3), (4,), (2, 4), (1, 1, 3))


def start(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def gradients(steps: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
        for _ in range(steps)
    ]


def follow(
    make: Callable[[Sequence[Tensor]], torch.optim.Optimizer], first: list[Tensor], given: list[list[Tensor]]
) -> list[list[Tensor]]:
    """The weights before the first and after every step, for gradients that do not depend on the weights."""
    weights = [torch.nn.Parameter(w.clone()) for w in first]
    optimizer = make(weights)
    path = [[w.detach().clone() for w in weights]]
    for step in given:
        for w, g in zip(weights, step, strict=True):
            w.grad = g.clone()
        optimizer.step()
        path.append([w.detach().clone() for w in weights])
    return path


def close(a: list[list[Tensor]], b: list[list[Tensor]], tolerance: float) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def resumes(make: Callable[[Sequence[Tensor]], torch.optim.Optimizer], dtype: torch.dtype = torch.float32) -> None:
    """Stopping after 3 of 6 steps, saving and loading the state, ends bit for bit where going on would."""
    given = gradients(6, dtype=dtype)
    whole = follow(make, start(dtype=dtype), given)[-1]
    first = [torch.nn.Parameter(w.clone()) for w in start(dtype=dtype)]
    second = [torch.nn.Parameter(torch.zeros_like(w)) for w in first]
    one, other = make(first), make(second)
    for number, step in enumerate(given):
        if number == 3:
            other.load_state_dict(deepcopy(one.state_dict()))
            for target, source in zip(second, first, strict=True):
                target.data.copy_(source.data)
        weights, optimizer = (first, one) if number < 3 else (second, other)
        for w, g in zip(weights, step, strict=True):
            w.grad = g.clone()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))
