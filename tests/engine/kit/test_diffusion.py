"""The process and its way back: moments, Tweedie's formula, and samples of a Gaussian whose score is known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate

from engine.kit.diffusion import Process


def times(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_what_is_kept_and_what_is_spread() -> None:
    process = Process(0.1, 20.0)
    for t in (0.01, 0.3, 1.0):
        whole, _ = integrate.quad(lambda s: 0.1 + 19.9 * s, 0, t)
        assert float(process.kept(times(t))) == pytest.approx(math.exp(-whole / 2), rel=1e-12)
        assert float(process.spread(times(t))) == pytest.approx(1 - math.exp(-whole), rel=1e-12)
    assert float(process.rate(times(0.25))) == pytest.approx(0.1 + 19.9 / 4)
    assert 1e5 < float(process.weight(times(0.01))) < 4e5, "the weight explodes where hardly any noise is"


def test_noised_samples_have_the_moments_and_follow_the_equation() -> None:
    """Small steps of the process itself lead to the same distribution."""
    process = Process()
    rng = torch.Generator().manual_seed(0)
    x = torch.full((100_000,), 1.5)
    t = torch.full((100_000,), 0.4)
    there = process.noised(x, t, torch.randn(100_000, generator=rng))
    assert float(there.mean()) == pytest.approx(1.5 * float(process.kept(t[:1])), abs=0.01)
    assert float(there.var()) == pytest.approx(float(process.spread(t[:1])), rel=0.02)
    walked, length = x[:20_000].clone(), 0.4 / 400
    for i in range(400):
        g = float(process.rate(torch.tensor((i + 0.5) * length)))
        walked += -g / 2 * walked * length + math.sqrt(g * length) * torch.randn(20_000, generator=rng)
    assert float(walked.mean()) == pytest.approx(float(there.mean()), abs=0.02)
    assert float(walked.var()) == pytest.approx(float(there.var()), rel=0.03)


def gaussian_guess(process: Process, mean: float, var: float):  # type: ignore[no-untyped-def]
    """E[X_0 | X_t] where X_0 is normal."""

    def guess(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a, h = process.kept(t).view(-1, 1), process.spread(t).view(-1, 1)
        return mean + a * var / (a**2 * var + h) * (x - a * mean)

    return guess


def test_tweedie_of_a_gaussian() -> None:
    process = Process()
    x, t = torch.randn(50, 1, dtype=torch.float64), process.first + torch.rand(50, dtype=torch.float64) * 0.9
    a, h = process.kept(t)[:, None], process.spread(t)[:, None]
    score = process.score(gaussian_guess(process, 0.7, 0.3)(x, t), x, t)
    assert torch.allclose(score, -(x - a * 0.7) / (a**2 * 0.3 + h), atol=1e-9)


@pytest.mark.parametrize("noisy", [True, False])
def test_the_way_back_ends_in_the_data(noisy: bool) -> None:
    process = Process(first=1e-3)
    rng = torch.Generator().manual_seed(1)
    x = process.back(gaussian_guess(process, 2.0, 0.25), torch.randn(20_000, 1, generator=rng), 300, rng, noisy, 2.0)
    assert float(x.mean()) == pytest.approx(2.0, abs=0.02) and float(x.var()) == pytest.approx(0.25, rel=0.06)


def test_without_noise_a_start_has_one_end() -> None:
    process, start = Process(), torch.randn(5, 1)
    guess = gaussian_guess(process, 0.0, 1.0)
    ends = [process.back(guess, start, 20, torch.Generator().manual_seed(s), noisy=False) for s in (0, 1)]
    assert torch.equal(*ends)
    calls: list[int] = []
    process.back(lambda x, t: calls.append(1) or guess(x, t), start, 7, torch.Generator())  # type: ignore[func-returns-value]
    assert len(calls) == 8
