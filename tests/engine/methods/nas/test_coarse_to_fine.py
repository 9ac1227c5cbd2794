"""The search of children: bands, fronts, and an archive whose figures can be measured again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.kit.cost import cost_of
from engine.methods.nas.coarse_to_fine import Child, CoarseToFine, band_of, best_by_band, front
from tests.engine.methods.short import train


def test_bands_are_equally_wide_on_a_log_scale() -> None:
    assert [band_of(f, 1, 1000, 3) for f in (1, 9.9, 10.1, 99, 101, 1000)] == [0, 0, 1, 1, 2, 2]
    assert band_of(5, 5, 5, 4) == 0


def child(flops: int, score: float) -> Child:
    return Child({"size": flops}, flops, score)


def test_the_best_of_each_band_and_the_front() -> None:
    archive = [child(1, 0.1), child(2, 0.5), child(5, 0.5), child(20, 0.4), child(100, 0.9), child(1000, 0.9)]
    assert best_by_band(archive, 3) == {0: child(2, 0.5), 1: child(20, 0.4), 2: child(100, 0.9)}
    assert front(archive) == [child(1, 0.1), child(2, 0.5), child(100, 0.9)]
    brute = [a for a in archive if not any(b.flops <= a.flops and b.score >= a.score and b != a for b in archive)]
    assert front(archive) == brute


def test_an_archive_of_children_measured_once_each() -> None:
    run, _, _ = train(
        task={"use": "digits", "train_limit": 150},
        model={"use": "elastic-cnn", "widths": [4], "kernels": [3, 5]},
        procedure={"use": "bignas", "random_children": 1},
        training={"batch_size": 32, "normalization": "recalibrated", "calibration_batches": 2, "evaluate_every": 0},
        budget={"steps": 8},
    )
    model: Any = run.model
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state()
    probe = CoarseToFine(bands=2, mutants=3, rounds=2, rate=0.5)
    found, again = probe.look(run), CoarseToFine(bands=2, mutants=3, rounds=2, rate=0.5).look(run)
    assert found == again and model.config == model.largest()
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    children = found.figures["children"]["more"]
    grid = list(model.grid())
    assert [c["config"] for c in children[: len(grid)]] == grid
    assert len({str(sorted(c["config"].items())) for c in children}) == len(children) == found.scalars["children"]
    for each in children[:: len(children) // 4]:
        plain = model.extract(each["config"])
        assert each["flops"] == cost_of(plain, torch.zeros(1, 1, 8, 8)).flops
        with model.configured(each["config"]):
            assert run.evaluate("val")["accuracy"] == each["accuracy"]
    best = max(c["accuracy"] for c in children)
    assert max(v for name, v in found.scalars.items() if name.endswith("/accuracy")) == pytest.approx(best)
    few = CoarseToFine(rounds=0, most=4).look(run)
    assert few.scalars["children"] <= 5
