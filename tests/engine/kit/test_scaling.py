"""Power laws with a floor: exact fits, the last crossing, and how often a range covers the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq, least_squares

from engine.kit.scaling import crossings, crossover, fit, predict, regime, spread

SIX = np.geomspace(16, 256, 6)
FOUR = np.array([16.0, 32.0, 64.0, 128.0])


def law(scale: float, exponent: float, floor: float) -> np.ndarray:
    return np.array([np.log(scale), np.log(exponent), np.log(floor)])


ONE, OTHER = law(3, 0.5, 1), law(6, 0.9, 1.233)
TRUTH = 63.9


def drawn(rng: np.random.Generator, curve: np.ndarray, sizes: np.ndarray, noise: float, seeds: int = 3) -> np.ndarray:
    return np.asarray(predict(curve, sizes)[:, None] * np.exp(noise * rng.standard_normal((len(sizes), seeds))))


@pytest.mark.parametrize("sizes", [SIX, FOUR])
@pytest.mark.parametrize("curve", [ONE, OTHER, law(0.8, 0.2, 0.3), law(50, 1.6, 2.0)])
def test_a_law_without_noise_is_found(sizes: np.ndarray, curve: np.ndarray) -> None:
    found = fit(sizes, predict(curve, sizes))
    assert found == pytest.approx(curve, abs=2e-3)
    assert predict(found, sizes) == pytest.approx(predict(curve, sizes), rel=1e-6)


def test_many_fits_at_once_are_as_good_as_a_library_one_by_one() -> None:
    rng = np.random.default_rng(0)
    losses = predict(ONE, SIX) * np.exp(0.01 * rng.standard_normal((20, 6)))
    found = fit(SIX, losses)
    for law_, loss in zip(found, losses, strict=True):

        def residual(theta: np.ndarray, loss: np.ndarray = loss) -> np.ndarray:
            return np.asarray(np.log(predict(theta, SIX)) - np.log(loss))

        best = min(
            (least_squares(residual, [np.log(3), p, c], max_nfev=2000).cost for p in (-1.5, -0.5, 0) for c in (-3, 0)),
        )
        assert 0.5 * np.square(residual(law_)).sum() <= best * (1 + 1e-4) + 1e-9


def test_the_last_crossing_is_taken_and_none_outside() -> None:
    def difference(size: float) -> float:
        return float((predict(ONE, np.array([size])) - predict(OTHER, np.array([size])))[0])

    first, last = brentq(difference, 5, 30), brentq(difference, 30, 200)
    assert first == pytest.approx(12.7, abs=0.1) and last == pytest.approx(TRUTH, abs=0.1)
    assert float(crossings(ONE, OTHER, 5, 2560)) == pytest.approx(last, rel=1e-9)
    assert float(crossings(ONE, OTHER, 5, 30)) == pytest.approx(first, rel=1e-9)
    assert np.isnan(crossings(ONE, OTHER, 16, 60)) and np.isnan(crossings(ONE, OTHER, 100, 2560))
    both = crossings(np.stack([ONE, OTHER, ONE]), np.stack([OTHER, ONE, ONE]), 16, 2560)
    assert both[:2] == pytest.approx([last, last]) and np.isnan(both[2])


def test_without_noise_the_crossover_is_exact() -> None:
    found = crossover(SIX, predict(ONE, SIX)[:, None], predict(OTHER, SIX)[:, None])
    assert found.at == pytest.approx(TRUTH, rel=0.01) and found.share == 1.0 and found.noise == 0.0
    assert found.low == pytest.approx(found.high, rel=1e-6) and found.wins == 1.0
    swapped = crossover(SIX, predict(OTHER, SIX)[:, None], predict(ONE, SIX)[:, None])
    assert swapped.at == pytest.approx(found.at, rel=1e-6) and swapped.wins == 0.0


def test_with_noise_it_is_near_and_its_range_covers_as_often_as_it_says() -> None:
    errors, covered = [], 0
    for number in range(100):
        rng = np.random.default_rng(number)
        one, other = (drawn(rng, curve, SIX, 0.002) for curve in (ONE, OTHER))
        found = crossover(SIX, one.tolist(), other.tolist(), refits=40, seed=number)
        errors.append(abs(found.at / TRUTH - 1))
        covered += found.low <= TRUTH <= found.high
    assert np.nanmedian(errors) < 0.05 and not np.isnan(errors).any()
    assert covered >= 65


def test_curves_that_run_beside_each_other_do_not_cross() -> None:
    false, single = 0, 0
    for number in range(100):
        rng = np.random.default_rng(1000 + number)
        one, other = drawn(rng, ONE, SIX, 0.002), 1.03 * drawn(rng, ONE, SIX, 0.002)
        false += crossover(SIX, one.tolist(), other.tolist(), refits=20).share > 0.5
        laws = [fit(FOUR, np.exp(np.log(factor * drawn(rng, ONE, FOUR, 0.01)).mean(1))) for factor in (1, 1.03)]
        single += bool(np.isfinite(crossings(laws[0], laws[1], 16, 1280)))
    assert false < 5
    assert single > 15, "one fit to four noisy sizes, believed as it stands, often shows a crossing that is none"


def test_the_noise_is_pooled_over_groups_of_unequal_size() -> None:
    groups = [[1.0, 2.0, 3.0], [10.0, 14.0], [5.0]]
    assert spread(groups) == pytest.approx(np.sqrt((2 + 8) / (2 + 1))) and spread([[1.0]]) == 0.0


def test_what_limits_a_run() -> None:
    assert regime(1, 2.00, 2.01) == "scaling-limited" and regime(0.5, 2.0, 1.99) == "scaling-limited"
    assert regime(200, 0.01, 0.4) == "generalization-limited"
    assert regime(1, 1.5, 2.0) == "between" and regime(3, 1.95, 2.0) == "between"
