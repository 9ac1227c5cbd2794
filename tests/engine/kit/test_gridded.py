"""Norms of fields against closed forms and sums that are written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from engine.kit.gridded import InUnits, gradient_norm, plain_norm, relative
from engine.parts import Offer


@pytest.mark.parametrize(("kx", "ky"), [(0, 0), (1, 0), (3, 2), (4, 4)])
@pytest.mark.parametrize("size", [8, 9])
def test_the_norm_of_a_wave_grows_with_its_slope(kx: int, ky: int, size: int) -> None:
    place = torch.arange(size, dtype=torch.float64) * 2 * math.pi / size
    wave = (kx * place[None, :] + ky * place[:, None]).cos()[None, None]
    expected = plain_norm(wave) * (1 + kx**2 + ky**2) ** 0.5
    torch.testing.assert_close(gradient_norm(wave), expected)


def test_the_norm_is_the_sum_over_all_wave_numbers() -> None:
    field = torch.randn(3, 2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    k, m = np.fft.fftfreq(6, 1 / 6), np.fft.fftfreq(7, 1 / 7)
    power = np.abs(np.fft.fft2(field.numpy(), norm="ortho")) ** 2 * (1 + k[:, None] ** 2 + m**2)
    np.testing.assert_allclose(gradient_norm(field).numpy(), np.sqrt(power.sum((1, 2, 3))))
    np.testing.assert_allclose(plain_norm(field).numpy(), np.sqrt((field.numpy() ** 2).sum((1, 2, 3))))


@pytest.mark.parametrize("norm", [plain_norm, gradient_norm])
def test_relative_errors_do_not_see_the_size(norm: object) -> None:
    target = torch.randn(4, 1, 6, 6)
    scale = torch.tensor([0.01, 1.0, 5.0, 100.0]).view(-1, 1, 1, 1)
    found = relative(1.25 * scale * target, scale * target, norm)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.full((4,), 0.25))


def test_units() -> None:
    offer = Offer("image", (1, 2, 2), "field", 4, answer=(1, 2, 2))
    x = torch.randn(3, 1, 2, 2)
    assert torch.equal(InUnits(offer)(x), x)
