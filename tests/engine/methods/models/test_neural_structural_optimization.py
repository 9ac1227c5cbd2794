"""Designs by a network: its shapes and start, the volume at each step, and L-BFGS beside that of a library."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional as F

from engine.methods.models.neural_structural_optimization import NeuralStructuralOptimization
from engine.methods.tasks.structural_design import StructuralDesign
from engine.parts import Offer
from tests.engine.methods.short import train

SMALL = {"filters": [6, 5, 4, 3, 1], "latent": 16, "dense_channels": 4}
LBFGS = {"use": "lbfgs", "max_iter": 20, "tolerance_grad": 0.0, "tolerance_change": 0.0}


def task(**settings: Any) -> StructuralDesign:
    made = StructuralDesign(**{"rows": 16, "columns": 24, **settings})
    made.load()
    return made


def network(seed: int = 0, **settings: Any) -> NeuralStructuralOptimization:
    torch.manual_seed(seed)
    return NeuralStructuralOptimization(task().offer, **{**SMALL, **settings})


def test_the_forward_pass_is_the_written_formula() -> None:
    net = network()
    with torch.no_grad():
        for stage in net.stages:
            stage.offset.normal_()  # type: ignore[union-attr]
    h = F.linear(net.z, net.dense.weight, net.dense.bias).reshape(1, 4, 2, 3)
    for stage, resize in zip(net.stages, (1, 2, 2, 2, 1), strict=True):
        h = torch.tanh(h)
        h = F.interpolate(h, scale_factor=resize, mode="bilinear", align_corners=False) if resize > 1 else h
        h = (h - h.mean()) / (((h - h.mean()) ** 2).mean() + 1e-6).sqrt()
        h = F.conv2d(h, stage.conv.weight, stage.conv.bias, padding=2) + 10 * stage.offset  # type: ignore[union-attr]
    torch.testing.assert_close(net(), h[0, 0], rtol=1e-4, atol=1e-5)
    assert net().shape == (16, 24)


def test_it_starts_as_it_should() -> None:
    net = network()
    units = 4 * 2 * 3
    gram = net.dense.weight.T @ net.dense.weight  # more outputs than inputs: orthogonal columns
    torch.testing.assert_close(gram, torch.eye(16) * units / 16, rtol=0, atol=1e-5)
    wide = network(latent=64, filters=[64, 64, 3, 2, 1])
    torch.testing.assert_close(wide.dense.weight @ wide.dense.weight.T, torch.eye(units), rtol=0, atol=1e-5)
    kernel = wide.stages[1].conv.weight.detach()  # type: ignore[union-attr]
    assert float(kernel.std()) == pytest.approx(1 / math.sqrt(64 * 25), rel=0.02)  # type: ignore[operator]
    assert float(kernel.abs().max()) <= 2 / 0.8796 / math.sqrt(64 * 25)  # type: ignore[operator]
    assert not any(stage.offset.any() for stage in net.stages)  # type: ignore[operator, union-attr]


@pytest.mark.parametrize(
    ("answer", "settings"), [((12, 24), {}), ((16, 24), {"filters": [4, 4, 1]}), ((16, 24), {"filters": [4] * 5})]
)
def test_it_refuses_what_it_cannot_make(answer: tuple[int, int], settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"multiples of 8|five numbers"):
        NeuralStructuralOptimization(Offer("none", (), "design", 1, answer=answer), **settings)
    with pytest.raises(ValueError, match="design"):
        NeuralStructuralOptimization(Offer("vector", (2,), "classes", 2))


def flat_minimum(net: torch.nn.Module, on: StructuralDesign, most: int) -> float:
    """The same descent by SciPy, on one flat vector of doubles."""
    parameters, seen = list(net.parameters()), []

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        if len(seen) == most:
            raise StopIteration
        pieces = torch.from_numpy(x.copy()).split([p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.data.copy_(piece.view_as(parameter))
            parameter.grad = None
        loss = on.objective(net(), None)["task"]  # type: ignore[arg-type]
        loss.backward()
        seen.append(loss.item())
        return seen[-1], torch.cat([p.grad.double().flatten() for p in parameters]).numpy()  # type: ignore[union-attr]

    start = torch.cat([p.detach().double().flatten() for p in parameters]).numpy()
    with suppress(StopIteration):
        minimize(value, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-16, "gtol": 1e-14, "maxfun": 10**6})
    return min(seen)


def test_the_optimizer_comes_as_far_as_that_of_a_library_and_keeps_the_volume() -> None:
    run, memory, outcome = train(
        task={"use": "structural-design", "rows": 16, "columns": 24},
        model={"use": "neural-structural-optimization", **SMALL},
        optimizer=LBFGS,
        training={"evaluate_every": 0.1},
        budget={"count": "gradient-passes", "amount": 60},
    )
    first = memory.points["train/loss"][1][0]
    theirs = flat_minimum(network(), task(), 60)
    assert outcome.metrics["val/compliance"] < 1.15 * theirs < 0.3 * first
    with torch.no_grad():
        assert float(run.task.density(run.model()).mean()) == pytest.approx(0.4, abs=0.02)  # type: ignore[attr-defined]
    compliances = memory.points["val/compliance"][1]
    assert len(compliances) >= 3 and compliances == sorted(compliances, reverse=True), "the last design is the best"
    assert outcome.metrics["count/gradient-passes"] >= 60
