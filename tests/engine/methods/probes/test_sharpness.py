"""The sharpness against the whole Hessian and closed forms, the kernel against the whole Jacobian."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.methods.probes.sharpness import Sharpness
from engine.recipe import Recipe
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer
from engine.training.recorder import Memory, Recorder
from engine.training.run import Run

RECIPE: dict[str, Any] = {
    "task": {"use": "tabular", "dataset": "diabetes"},
    "model": {"use": "mlp", "hidden": [8, 8], "activation": "tanh"},
    "loss": {"use": "half-squared-error"},
    "optimizer": {"use": "sgd", "lr": 0.1},
    "training": {"batch_size": 512, "threads": 1},
    "budget": {"epochs": 0, "steps": 2},
}


def run_of(**changes: Any) -> Run:
    return assemble(filled(Recipe.of({**RECIPE, **changes})), Recorder(Memory()))


def double(run: Run) -> list[torch.Tensor]:
    run.model.double()
    for split in ("train",):
        tensors = run.columns(split)
        tensors["x"], tensors["target"] = tensors["x"].double(), tensors["target"].double()
    return [p for p in run.model.parameters() if p.requires_grad]


def test_it_is_the_largest_eigenvalue_of_the_whole_hessian() -> None:
    run = run_of()
    weights = double(run)
    found = Sharpness(iterations=40, samples=200).look(run).scalars
    x, y = run.columns("train")["x"][:200], run.columns("train")["target"][:200]
    names = [name for name, _ in run.model.named_parameters()]

    def loss(*values: torch.Tensor) -> torch.Tensor:
        output = torch.func.functional_call(run.model, dict(zip(names, values, strict=True)), x)
        return (output - y).square().sum() / (2 * len(x))

    blocks = torch.autograd.functional.hessian(loss, tuple(weights))
    rows = [torch.cat([b.reshape(w.numel(), -1) for b in row], 1) for w, row in zip(weights, blocks, strict=True)]
    expected = float(torch.linalg.eigvalsh(torch.cat(rows)).max())
    assert found["sharpness"] == pytest.approx(expected, rel=1e-6)
    assert found["edge"] == pytest.approx(0.1 * expected, rel=1e-6)
    # The tangent kernel J J^T / n from the whole Jacobian.
    jacobians = torch.autograd.functional.jacobian(lambda *v: output_of(run, names, v, x), tuple(weights))
    j = torch.cat([part.reshape(200, -1) for part in jacobians], 1)
    kernel = torch.linalg.eigvalsh(j @ j.T / 200)
    assert found["kernel"] == pytest.approx(float(kernel.max()), rel=1e-6)
    gram = torch.linalg.eigvalsh(j.T @ j / 200)
    least = min(len(kernel), len(gram))
    torch.testing.assert_close(kernel[-least:], gram[-least:], rtol=1e-6, atol=1e-9)


def output_of(run: Run, names: list[str], values: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.func.functional_call(run.model, dict(zip(names, values, strict=True)), x).flatten()


def test_of_a_linear_model_it_is_that_of_the_inputs() -> None:
    """No hidden layer and no blocks: H = X^T X / n, with a column of ones for the bias; H is the kernel too."""
    run = run_of(model={"use": "mlp", "hidden": []})
    double(run)
    x = run.columns("train")["x"][:256]
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    expected = float(torch.linalg.eigvalsh(ones.T @ ones / len(x)).max())
    found = Sharpness(iterations=30, samples=256).look(run).scalars
    assert found["sharpness"] == pytest.approx(expected, rel=1e-9)
    assert found["kernel"] == pytest.approx(expected, rel=1e-9)


def test_looking_leaves_everything_as_it_was() -> None:
    probes = [{"use": "sharpness", "iterations": 3, "samples": 64}]
    training = {**RECIPE["training"], "evaluate_every": 1}
    runs = []
    for looks in (probes, []):
        runs.append(run_of(probes=looks, training=training, model={**RECIPE["model"], "norm": "batch", "dropout": 0.2}))
        Trainer(runs[-1]).train()
    looked, plain = runs
    sink = looked.recorder.sink
    assert isinstance(sink, Memory) and sink.points["probe/sharpness/edge"][0] == [1, 2]
    for one, other in zip(looked.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
