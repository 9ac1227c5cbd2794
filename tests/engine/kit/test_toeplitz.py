"""Long convolutions and their modes: against sums written out, for odd and even lengths and in both precisions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.kit.toeplitz import Recurrence, causal, impulse, modes_of


def kernel_of(n: int, channels: int = 3) -> Tensor:
    return torch.randn(n, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(n))


def test_the_convolution_is_the_sum_over_what_came_before() -> None:
    u = torch.randn(2, 9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = kernel_of(9)
    slow = torch.stack([sum(t[i - j] * u[:, j] for j in range(i + 1)) for i in range(9)], 1)  # type: ignore[arg-type]
    assert torch.allclose(causal(u, t), slow, atol=1e-12)
    u[:, 5:] = 7.0
    assert torch.allclose(causal(u, t)[:, :5], slow[:, :5], atol=1e-12), "what comes later changes nothing"


@pytest.mark.parametrize(("n", "double", "single"), [(64, 1e-13, 1e-5), (65, 1e-13, 1e-5), (1024, 2e-12, 1e-4)])
def test_the_kernel_is_rebuilt_by_running_the_recurrence(n: int, double: float, single: float) -> None:
    t = kernel_of(n)
    for dtype, allowed in ((torch.complex128, double), (torch.complex64, single)):
        modes = modes_of(t, dtype=dtype)
        error = (impulse(Recurrence(modes, n), n).double() - t).norm() / t.norm()
        assert error < allowed
        assert modes.closing < 1e-12


def test_the_longest_kernel() -> None:
    t = kernel_of(4096, 1)
    errors = [
        float((impulse(Recurrence(modes_of(t, dtype=dtype), 4096), 4096).double() - t).norm() / t.norm())
        for dtype in (torch.complex128, torch.complex64)
    ]
    assert errors[0] < 5e-12 and 1e-7 < errors[1] < 2e-4


@pytest.mark.parametrize("n", [1, 2, 7, 8, 33])
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_half_of_the_modes_are_enough_whatever_the_length(n: int, decay: float) -> None:
    t = kernel_of(n)
    u = torch.randn(2, n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    half, full = (Recurrence(modes_of(t, decay, half), n) for half in (True, False))
    assert len(full.weights) == n and len(half.weights) == (n + 1) // 2
    expected = causal(u, t * (decay ** torch.arange(n).double()).unsqueeze(1))
    for each in (half, full):
        assert torch.allclose(each(u), expected, rtol=1e-10, atol=1e-10)
        state, found = each.start(2), []
        for now in u.unbind(1):
            y, state = each.step(now, state)
            found.append(y)
        assert torch.allclose(torch.stack(found, 1), expected, rtol=1e-10, atol=1e-10), "token by token"


def test_behind_its_length_the_kernel_would_come_back() -> None:
    t = kernel_of(6)
    longer = impulse(Recurrence(modes_of(t), 6), 13)
    assert torch.allclose(longer[6], -t.sum(0), atol=1e-12) and torch.allclose(longer[7:], t, atol=1e-12)
    recurrence = Recurrence(modes_of(t), 6)
    with pytest.raises(ValueError, match="exact for 6 tokens"):
        recurrence(torch.zeros(1, 7, 3))
    state = recurrence.start(1)
    for _ in range(6):
        _, state = recurrence.step(torch.ones(1, 3), state)
    with pytest.raises(ValueError, match="exact for 6 tokens"):
        recurrence.step(torch.ones(1, 3), state)


def test_the_decay_in_the_rates_is_more_exact_than_in_the_kernel() -> None:
    n, decay = 1024, 0.99
    t = kernel_of(n)
    decayed = t * (decay ** torch.arange(n).double()).unsqueeze(1)
    errors = [
        float((impulse(made, n).double() - decayed).norm() / decayed.norm())
        for made in (
            Recurrence(modes_of(t, decay, dtype=torch.complex64), n),
            Recurrence(modes_of(decayed, dtype=torch.complex64), n),
        )
    ]
    assert errors[0] < errors[1] / 5


def test_descending_to_the_modes_comes_nowhere_near() -> None:
    """As many modes, their rates and weights learned: more than ten times the error."""
    n = 32
    t = kernel_of(n, 1)
    torch.manual_seed(0)
    size, angle = torch.rand(n // 2, 1) + 2.0, 6.28 * torch.rand(n // 2, 1)
    weights = torch.randn(2, n // 2, 1) / n
    learned = [each.double().requires_grad_() for each in (size, angle, weights)]
    optimizer = torch.optim.Adam(learned, 0.03)
    power = torch.arange(n, dtype=torch.float64)
    for _ in range(250):
        modulus, phase = learned[0].sigmoid() ** power, learned[1] * power
        real, imaginary = learned[2]
        found = (modulus * (real * phase.cos() - imaginary * phase.sin())).sum(0)
        loss = (found - t[:, 0]).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fitted = float((found.detach() - t[:, 0]).norm() / t.norm())
    exact = float((impulse(Recurrence(modes_of(t), n), n) - t).norm() / t.norm())
    assert fitted > 10 * exact and exact < 1e-12
