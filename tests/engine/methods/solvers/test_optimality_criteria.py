"""Optimality criteria: the published number, and a rule that keeps volume and moves."""

from __future__ import annotations

import pytest
import torch

from engine.methods.solvers.optimality_criteria import moved
from tests.engine.methods.short import ready, train


def test_the_beam_comes_to_the_published_compliance() -> None:
    run, _, outcome = train(
        task={"use": "structural-design", "rows": 20, "columns": 60, "volume": 0.5, "filter_width": 1.0},
        procedure={"use": "optimality-criteria", "sensitivity_width": 2.4},
        training={"evaluate_every": 0},
        budget={"steps": 200},
    )
    assert outcome.metrics["test/compliance"] == pytest.approx(216.81, abs=0.1)
    assert outcome.metrics["test/volume"] == pytest.approx(0.5, abs=1e-9)
    assert run.step < 200 and "No density changes" in run.finished


def test_the_rule_keeps_volume_moves_and_bounds() -> None:
    rng = torch.Generator().manual_seed(0)
    density = torch.rand(6, 8, generator=rng, dtype=torch.float64)
    slope = -(torch.rand(6, 8, generator=rng, dtype=torch.float64) ** 3)
    inside = torch.ones(6, 8, dtype=torch.bool)
    inside[:2, :3] = False
    density = torch.where(inside, density, 0.0)
    volume = float(density[inside].mean())
    found = moved(density, slope, volume, inside, 0.2, 0.5)
    assert float(found[inside].mean()) == pytest.approx(volume, abs=1e-12) and not found[~inside].any()
    assert float((found - density).abs().max()) <= 0.2 + 1e-15
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    free = inside & ((found - density).abs() < 0.2 - 1e-9) & (found > 0) & (found < 1)
    level = (found / density)[free] ** 2 / -slope[free]  # 1 / lambda, the same wherever no bound holds
    assert int(free.sum()) > 10 and float(level.std() / level.mean()) < 1e-9


def test_it_starts_from_a_networks_first_design() -> None:
    net = {"use": "neural-structural-optimization", "filters": [4, 4, 3, 2, 1], "latent": 6, "dense_channels": 3}
    task = {"use": "structural-design", "rows": 8, "columns": 16}
    theirs, _ = ready(task=task, model=net)
    free, _ = ready(task=task, model={"use": "pixel-design", "start": net})
    ours, _ = ready(task=task, procedure={"use": "optimality-criteria", "start": net})
    expected = theirs.task.density(theirs.model())  # type: ignore[attr-defined]
    for run in (free, ours):
        torch.testing.assert_close(run.task.density(run.model()), expected, rtol=0, atol=1e-9)  # type: ignore[attr-defined]
