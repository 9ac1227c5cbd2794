"""Differences against exact gradients and curvature; reused features against whole passes; masks and queries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.methods.procedures import deepzero as dz
from engine.parts import Batch, Terms
from engine.training.loop import Trainer
from tests.engine.methods.short import ready, train


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def everything(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.arange(t.numel()) for name, t in params.items()}


def test_on_a_quadratic_a_difference_is_the_gradient_and_half_the_curvature() -> None:
    a = torch.randn(7, 7, generator=rng(), dtype=torch.float64)
    a = a @ a.T
    w = {"w": torch.randn(7, generator=rng(1), dtype=torch.float64)}

    def loss(rows: Tensor) -> Tensor:
        return 0.5 * (rows @ a * rows).sum(-1)

    mu = 0.01
    found = dz.coordinatewise(lambda _, rows: loss(rows), w, everything(w), loss(w["w"]), mu, chunk=3)
    torch.testing.assert_close(found["w"], a @ w["w"] + mu / 2 * a.diagonal(), rtol=1e-10, atol=1e-10)
    kept = {"w": torch.tensor([1, 4])}
    part = dz.coordinatewise(lambda _, rows: loss(rows), w, kept, loss(w["w"]), mu, chunk=3)["w"]
    assert part.nonzero().flatten().tolist() == [1, 4]
    torch.testing.assert_close(part[[1, 4]], found["w"][[1, 4]], rtol=0, atol=0)


def test_a_layer_of_which_nothing_is_probed_has_no_gradient() -> None:
    w = {"w": torch.ones(4), "v": torch.ones(2)}
    kept = {"w": torch.tensor([], dtype=torch.long), "v": torch.tensor([1])}
    asked: list[str] = []

    def value(name: str, rows: Tensor) -> Tensor:
        asked.append(name)
        return rows.sum(-1)

    found = dz.coordinatewise(value, w, kept, torch.tensor(2.0), 0.5, chunk=9)
    assert asked == ["v"] and found["w"].tolist() == [0, 0, 0, 0] and found["v"].tolist() == [0.0, 1.0]


def test_random_directions_are_the_gradient_over_the_size_on_average() -> None:
    g = {"a": torch.randn(3, 2, generator=rng(), dtype=torch.float64), "b": torch.randn(5, generator=rng(1)).double()}
    zero = {name: torch.zeros_like(t) for name, t in g.items()}

    def linear(moved: dict[str, Tensor]) -> Tensor:
        return sum((moved[name] * g[name]).flatten(1).sum(1) for name in g)  # type: ignore[return-value]

    along = dz.unit_directions(g, 40000, rng(2))
    torch.testing.assert_close(along["a"].flatten(1).norm(dim=1), torch.ones(40000).double())
    found = dz.random_directions(linear, zero, along, torch.tensor(0.0).double(), 0.1, chunk=10000)
    for name, grad in g.items():
        torch.testing.assert_close(found[name] * grad.numel(), grad, rtol=0, atol=0.1)


def test_ratios_come_from_one_threshold_over_all() -> None:
    scores = {"a": torch.tensor([[0.1, -5.0], [0.2, 6.0]]), "b": torch.tensor([0.3, -0.4, 7.0, 8.0, 9.0, 0.05])}
    assert dz.layerwise_ratios(scores, 0.5) == {"a": 0.5, "b": 0.5}
    assert dz.layerwise_ratios(scores, 0.2) == {"a": 0.25, "b": pytest.approx(1 / 6)}
    assert dz.layerwise_ratios(scores, 0.0) == {"a": 0.0, "b": 0.0}


def test_drawn_counts_are_those_of_the_ratios() -> None:
    params = {"w": torch.zeros(7, 9), "v": torch.zeros(11, 3), "b": torch.zeros(5)}
    kept = dz.draw_kept(params, {"w": 0.83, "v": 0.1}, rng())
    assert [len(kept[n]) for n in "wvb"] == [63 - round(0.83 * 63), 33 - round(0.1 * 33), 5]
    assert len(set(kept["w"].tolist())) == len(kept["w"])
    assert not torch.equal(kept["w"], dz.draw_kept(params, {"w": 0.83, "v": 0.1}, rng(1))["w"])


def objective(output: Tensor, batch: Batch) -> Terms:
    return {"task": F.cross_entropy(output, batch.target, reduction="none")}


def chain(dropout: float = 0.0) -> tuple[nn.Sequential, list[tuple[str, nn.Module]]]:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(dropout))
    other = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(dropout))
    model = nn.Sequential(block, other, nn.Linear(5, 3)).double()
    return model, [(str(i), m) for i, m in enumerate(model)]


def some_batch() -> Batch:
    return Batch({"x": torch.randn(8, 4, generator=rng(3)).double()}, torch.arange(8) % 3, torch.arange(8))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_reused_features_give_the_loss_of_a_whole_pass(dropout: float) -> None:
    model, stages = chain(dropout)
    batch = some_batch()
    reused, whole = dz.Staged(stages, objective), dz.Staged([("", model)], objective)
    torch.manual_seed(5)
    base = reused.start(batch)
    torch.manual_seed(5)
    assert torch.equal(whole.start(batch), base)
    after = torch.get_rng_state()
    statistics = model[0][1].running_mean.clone()  # type: ignore[index]
    for name, parameter in model.named_parameters():
        rows = parameter.detach() + 0.1 * torch.randn(4, *parameter.shape, generator=rng(), dtype=torch.float64)
        a, b = reused.losses({name: rows}), whole.losses({name: rows})
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        assert float((a - base).abs().min()) > 0 or name == "0.0.bias", "the norm takes that bias away"
        for row, found in zip(rows, a, strict=True):  # one by one, by hand, on the same draw
            kept = parameter.detach().clone()
            buffers = {n: v.clone() for n, v in model.named_buffers()}
            with torch.no_grad():
                parameter.copy_(row)
                torch.manual_seed(5)
                by_hand = objective(model(batch.x), batch)["task"].mean()
                parameter.copy_(kept)
                for n, v in model.named_buffers():
                    v.copy_(buffers[n])
            torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-12)
    torch.set_rng_state(after)
    reused.losses({"2.bias": torch.zeros(1, 3).double()})
    assert torch.equal(torch.get_rng_state(), after), "the draws of the run go on as if nothing was asked"
    assert torch.equal(model[0][1].running_mean, statistics)  # type: ignore[index]


def test_directions_through_all_stages_at_once() -> None:
    model, stages = chain()
    batch = some_batch()
    reused, whole = dz.Staged(stages, objective), dz.Staged([("", model)], objective)
    reused.start(batch)
    whole.start(batch)
    moved = {
        n: p.detach() + 0.1 * torch.randn(3, *p.shape, generator=rng()).double() for n, p in model.named_parameters()
    }
    torch.testing.assert_close(reused.losses(moved), whole.losses(moved), rtol=0, atol=1e-12)


MOONS: dict[str, Any] = {"model": {"use": "mlp", "hidden": [5, 4]}, "optimizer": {"use": "sgd", "lr": 0.1}}


def test_stages_are_found_and_a_network_that_is_no_chain_stays_whole() -> None:
    run, _ = ready(**MOONS)
    inputs = (run.columns("train")["x"][:5],)
    paths = [path for path, _ in dz.stages_of(run.model, run.anatomy, inputs)]
    assert paths == ["stem", "blocks.0", "blocks.1", "head"]
    run.model.forward = lambda x: run.model.head(run.model.blocks(x)) * 2  # type: ignore[assignment, operator, union-attr]
    assert dz.stages_of(run.model, run.anatomy, inputs) == [("", run.model)]


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_in_a_run_dense_differences_are_the_gradient(norm: str) -> None:
    """From the same start and batch, the step is backpropagation's but for the curvature and the rounding."""
    changes = {**MOONS, "model": {"use": "mlp", "hidden": [5, 4], "norm": norm, "activation": "tanh"}}
    plain, _ = ready(**changes)
    run, _ = ready(**changes, procedure={"use": "deepzero", "sparsity": 0.0, "mu": 0.002})
    start = [p.detach().clone() for p in plain.model.parameters()]
    Trainer(plain)._step()
    Trainer(run)._step()
    parts = [
        torch.cat([(p.detach() - s).flatten() for p, s in zip(r.model.parameters(), start, strict=True)])
        for r in (plain, run)
    ]
    assert float((parts[0] - parts[1]).norm()) < 0.03 * float(parts[0].norm())
    assert run.counts["oracle-calls"] == 1 + len(parts[0]) and run.counts["gradient-passes"] == 0
    for (name, a), (_, b) in zip(plain.model.named_buffers(), run.model.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=f"{name} was updated otherwise than once")


def test_a_sparse_step_probes_what_is_kept_and_moves_nothing_else() -> None:
    run, _ = ready(**MOONS, procedure={"use": "deepzero", "sparsity": 0.8, "grasp_directions": 6, "mask_interval": 2})
    trainer, procedure = Trainer(run), run.procedure
    assert isinstance(procedure, dz.DeepZero)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    trainer._step()
    kept = sum(len(index) for index in procedure.kept.values())
    assert run.counts["oracle-calls"] == (2 * 6 + 1) + kept + 1
    weights = {n: p.numel() for n, p in run.model.named_parameters() if p.dim() > 1}
    assert sum(procedure.ratios[n] * size for n, size in weights.items()) == pytest.approx(
        round(0.8 * sum(weights.values()))
    )
    for name, parameter in run.model.named_parameters():
        moved = set((parameter.detach() != before[name]).flatten().nonzero().flatten().tolist())
        assert moved <= set(procedure.kept[name].tolist())
        assert len(procedure.kept[name]) == parameter.numel() - round(
            procedure.ratios.get(name, 0.0) * parameter.numel()
        )
    first = {n: index.clone() for n, index in procedure.kept.items()}
    calls = run.counts["oracle-calls"]
    trainer._step()
    assert run.counts["oracle-calls"] - calls == kept + 1
    assert all(torch.equal(first[n], index) for n, index in procedure.kept.items())
    while run.step < 2 * run.steps_per_epoch + 1:
        trainer._step()
    assert not all(torch.equal(first[n], index) for n, index in procedure.kept.items()), "drawn anew after two epochs"
    assert run.counts["oracle-calls"] == 13 + run.step * (kept + 1)


def test_it_trains_without_a_backward_pass() -> None:
    changes = {"optimizer": {"use": "sgd", "lr": 0.3, "momentum": 0.9}, "budget": {"steps": 150}}
    zero = {"use": "deepzero", "sparsity": 0.5, "grasp_directions": 8, "mask_interval": 1}
    run, _, outcome = train(**changes, procedure=zero)
    assert run.counts["gradient-passes"] == 0 and outcome.metrics["train/loss"] < 0.4
    clip = [{"use": "gradient-clipping", "limit": 0.01}]
    _, log, _ = train(procedure=zero, techniques=clip)
    assert max(log.points["gradient-clipping/kept"][1]) < 1.0, "what acts on gradients acts on these"


def test_random_directions_train_too() -> None:
    zero = {"use": "deepzero", "estimator": "directions", "directions": 30}
    run, log, outcome = train(optimizer={"use": "sgd", "lr": 0.1}, procedure=zero, budget={"steps": 80})
    assert run.counts["oracle-calls"] == 80 * 31
    assert log.points["train/loss"][1][-1] < 0.75 * log.points["train/loss"][1][0] and outcome.state == "done"


def test_after_surgery_the_new_weights_are_probed() -> None:
    run, _ = ready(
        model={"use": "mlp", "hidden": [5]}, procedure={"use": "deepzero", "sparsity": 0.5, "grasp_directions": 4}
    )
    trainer, procedure = Trainer(run), run.procedure
    assert isinstance(procedure, dz.DeepZero)
    trainer._step()
    model: Any = run.model
    model.blocks[0][0], model.head = nn.Linear(2, 8), nn.Linear(8, 2)
    run.add_role("main", model)
    procedure.on_surgery(run, {})
    before = [p.detach().clone() for p in model.parameters()]
    trainer._step()
    assert sum(procedure.ratios[n] * p.numel() for n, p in model.named_parameters() if p.dim() > 1) == pytest.approx(16)
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
