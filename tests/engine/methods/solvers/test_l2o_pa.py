"""L2O-PA: its update by hand, permuted coordinates, one update a stretch, and what training is worth."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.kit.learned import Problems, fista
from engine.methods.solvers.l2o_pa import L2OPA, StructuredRule, iterates
from engine.methods.tasks.sparse_problems import SparseProblems
from engine.parts import Batch
from tests.engine.methods.short import ready, train

TASK = {"use": "sparse-problems", "rows": 8, "columns": 12, "nonzero": 3, "instances": 16}


def problems(count: int = 2, seed: int = 0, **settings: Any) -> Problems:
    task = SparseProblems(rows=8, columns=12, nonzero=3, instances=2, **settings)
    task.load()
    drawn = task.draw(count, torch.Generator().manual_seed(seed))
    return Problems(task.family, drawn["a"], drawn["b"], task.penalty)


def rule(seed: int = 0, **settings: Any) -> StructuredRule:
    torch.manual_seed(seed)
    return StructuredRule(hidden=5, **settings).double()


@pytest.mark.parametrize("use_b", [False, True])
def test_an_iteration_is_the_written_formula(use_b: bool) -> None:
    of, net = problems(), rule(use_b=use_b)
    rng = torch.Generator().manual_seed(1)
    x, z = (torch.randn(of.size, generator=rng, dtype=torch.float64) for _ in range(2))
    step, state = 0.9999 / of.smoothness(), net.lstm.start(24, rng)
    found_x, found_z, _ = net(of, x, z, step, state)
    outputs, _ = net.lstm(torch.stack([of.gradient(x), x], -1).view(-1, 2), state)
    p, a, *b = (2 * outputs.sigmoid()).T.reshape(-1, *of.size)
    for i in range(2):
        from_x = x[i] - p[i] * step[i] * of.gradient(x)[i]
        from_z = z[i] - p[i] * step[i] * of.gradient(z)[i]
        u = b[0][i] * from_x + (1 - b[0][i]) * from_z if use_b else from_x
        after = u.sign() * (u.abs() - of.penalty * p[i] * step[i]).clamp_min(0)
        torch.testing.assert_close(found_z[i], after, rtol=0, atol=1e-12)
        torch.testing.assert_close(found_x[i], after + a[i] * (after - z[i]), rtol=0, atol=1e-12)


def test_at_its_start_lengths_and_momenta_are_near_1() -> None:
    of, net = problems(), rule()
    factors, _ = net.factors(of.gradient(0 * of.a[:, 0]), 0 * of.a[:, 0], net.lstm.start(24, torch.Generator()))
    for each in (factor.detach() for factor in factors.values()):
        assert float(each.min()) > 0.5 and float(each.max()) < 1.5 and float(each.std()) > 0


def test_without_what_is_learned_it_is_ista() -> None:
    of, net = problems(), rule(use_p=False, use_a=False, use_b=True)
    with torch.no_grad():
        net.lstm.heads.weight.zero_()
        net.lstm.heads.bias.zero_()  # b = 1
    found = iterates(net, of, 20, torch.Generator(), safety=1.0)
    torch.testing.assert_close(found, torch.stack(list(fista(of, 20, momentum=False)), 1), rtol=0, atol=1e-12)


def test_permuted_coordinates_give_permuted_iterates() -> None:
    of, net = problems(1), rule()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    other = Problems(of.family, of.a[:, :, order], of.b, of.penalty)
    step = 0.9999 / of.smoothness()
    state = net.lstm.start(12, torch.Generator().manual_seed(4))
    theirs = [(h[order], c[order]) for h, c in state]
    x = z = y = w = torch.zeros(1, 12, dtype=torch.float64)
    for _ in range(10):
        x, z, state = net(of, x, z, step, state)
        y, w, theirs = net(other, y, w, step, theirs)
        torch.testing.assert_close(y, x[:, order], rtol=0, atol=1e-10)
    assert float(x.abs().max()) > 0.1


def test_a_step_makes_one_update_a_stretch_with_the_gradient_of_that_stretch() -> None:
    run, _ = ready(
        task=TASK, procedure={"use": "l2o-pa", "horizon": 5, "unroll": 2, "lstm_hidden": 4},
        training={"batch_size": 3}, optimizer={"use": "sgd", "lr": 1e-3, "momentum": 0.0}, budget={"steps": 1},
    )  # fmt: skip
    procedure: Any = run.procedure
    batch = run.stream.next()  # type: ignore[union-attr]
    seen: list[Tensor] = []
    updated = run.update

    def update(role: str, terms: dict[str, Tensor], *rest: Any) -> None:
        seen.append(terms["task"].detach().clone())
        updated(role, terms, *rest)
        seen.append(torch.cat([p.detach().flatten() for p in run.model.parameters()]))

    run.update = update  # type: ignore[method-assign, assignment]
    net: Any = copy.deepcopy(run.model)
    start = run.rng("l2o-pa").get_state()
    procedure.step(run, batch)
    assert len(seen) == 6 and run.counts["oracle-calls"] == 5 * 3

    of = Problems("lasso", batch.inputs["a"], batch.inputs["b"], 0.1)
    rng = torch.Generator()
    rng.set_state(start)
    x = z = torch.zeros(of.size, dtype=torch.float64)
    state, step = net.lstm.start(36, rng), 0.9999 / of.smoothness()
    for number, length in enumerate((2, 2, 1)):
        x, z, state = x.detach(), z.detach(), [(h.detach(), c.detach()) for h, c in state]
        total = 0
        for _ in range(length):
            x, z, state = net(of, x, z, step, state)
            total = total + of.value(x) / length
        net.zero_grad()
        total.mean().backward()  # type: ignore[attr-defined]
        torch.testing.assert_close(seen[2 * number], total.detach())  # type: ignore[attr-defined]
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= 1e-3 * parameter.grad  # type: ignore[operator]
        after = torch.cat([p.detach().flatten() for p in net.parameters()])
        torch.testing.assert_close(seen[2 * number + 1], after, rtol=0, atol=1e-14)


def test_the_inputs_of_the_network_carry_no_gradient() -> None:
    of, net = problems(), rule()
    x = torch.zeros(of.size, dtype=torch.float64).requires_grad_()
    factors, _ = net.factors(of.gradient(x), x, net.lstm.start(24, torch.Generator()))
    assert torch.autograd.grad(factors["p"].sum(), x, allow_unused=True) == (None,)


def test_what_learns_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="use_p"):
        L2OPA(use_p=False, use_a=False)


def test_some_training_brings_it_below_ista() -> None:
    task = {**TASK, "early": 10}
    procedure = {"use": "l2o-pa", "horizon": 10, "unroll": 10, "lstm_hidden": 8}
    optimizer = {"use": "adamw", "lr": 0.02, "weight_decay": 0.0}
    gaps = {}
    for steps in (1, 40):
        _, _, outcome = train(
            task=task, procedure=procedure, optimizer=optimizer, training={"batch_size": 8}, budget={"steps": steps}
        )
        gaps[steps] = outcome.metrics["test/gap"]
    ista = train(
        task=task, procedure={"use": "proximal-gradient", "momentum": False, "horizon": 10}, budget={"steps": 0}
    )
    assert gaps[40] < 0.7 * ista[2].metrics["test/gap"] and gaps[40] < gaps[1]


@pytest.mark.parametrize("family", ["lasso", "logistic"])
def test_gaps_are_measured_from_the_minimum(family: str) -> None:
    task = SparseProblems(family=family, rows=8, columns=12, nonzero=3, instances=3)  # type: ignore[arg-type]
    task.load()
    stored = task.columns("test")
    batch = Batch({name: column[1:] for name, column in stored.items()}, None, torch.tensor([1, 2]), "test")
    of = task.problems(batch)
    iterates_ = torch.stack(list(fista(of, 2000, restart=True)), 1)
    gaps = task.gaps(iterates_, batch)
    assert float(gaps.min()) > -1e-12 and float(gaps[:, -1].max()) < 1e-10 and float(gaps[:, 0].min()) > 1e-3
    found = task.metrics(iterates_, batch)
    torch.testing.assert_close(found["early_gap"], gaps[:, 19])
    fresh = task.draw(5, torch.Generator().manual_seed(9))
    assert {name: c.shape for name, c in fresh.items()} == {n: (5, *c.shape[1:]) for n, c in stored.items()}
    if family == "lasso":
        torch.testing.assert_close(fresh["a"].square().sum(1), torch.ones(5, 12, dtype=torch.float64))
    else:
        assert set(fresh["b"].unique().tolist()) == {-1.0, 1.0}
