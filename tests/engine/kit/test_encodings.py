"""Waves of coordinates: sorted, in every direction alike, with the lengths that they should have."""

from __future__ import annotations

import torch
from scipy.stats import halfnorm, kstest

from engine.kit.encodings import Waves


def test_random_waves_have_even_directions_and_the_lengths_of_a_normal_number() -> None:
    torch.manual_seed(0)
    waves = Waves(2, 4000, 7.0)
    length = waves.frequencies.norm(dim=1)
    assert (length.diff() >= 0).all() and waves.channels == 8000
    assert kstest(length.numpy(), halfnorm(scale=7.0).cdf).pvalue > 0.01
    angle = torch.atan2(waves.frequencies[:, 1], waves.frequencies[:, 0]) / (2 * torch.pi) + 0.5
    assert kstest(angle.numpy(), "uniform").pvalue > 0.01


def test_they_are_sines_and_cosines_in_pairs() -> None:
    waves = Waves(3, 5, 2.0).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    found = waves(x).unflatten(1, (5, 2))
    torch.testing.assert_close(found.square().sum(-1), torch.ones(4, 5, dtype=torch.float64))
    phase = torch.atan2(found[..., 0], found[..., 1])
    expected = 2 * torch.pi * x @ waves.frequencies.T
    torch.testing.assert_close((phase - expected).cos(), torch.ones(4, 5, dtype=torch.float64))
