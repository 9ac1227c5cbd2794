"""ConFIG against its defining properties, the two-loss formula, and Adam."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import RecipeError
from engine.kit.curvature import flat
from engine.methods.gradients.config_gradients import ConfigGradientsMomentum, conflict_free
from engine.training.loop import Trainer
from tests.engine.methods.short import ready, train


def rows(m: int, n: int = 40, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, generator=g, dtype=torch.float64) * torch.logspace(-2, 3, m, dtype=torch.float64)[:, None]


def cosines(grads: Tensor, step: Tensor) -> Tensor:
    return F.cosine_similarity(grads, step.unsqueeze(0), dim=1)


@pytest.mark.parametrize("m", [2, 3, 6])
def test_all_cosines_are_equal_and_positive_and_the_length_is_the_sum_of_projections(m: int) -> None:
    for seed in range(5):
        grads = rows(m, seed=seed)
        step = conflict_free(grads)
        found = cosines(grads, step)
        torch.testing.assert_close(found, found[:1].expand(m), rtol=0, atol=1e-12)
        assert float(found[0]) > 0
        torch.testing.assert_close(step.norm(), (grads @ step / step.norm()).sum(), rtol=1e-12, atol=0)
        single = conflict_free(grads.float())
        torch.testing.assert_close(single.double(), step, rtol=1e-4, atol=1e-6 * float(step.norm()))


def test_weights_are_the_ratio_of_the_cosines() -> None:
    grads, weights = rows(3), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    found = cosines(grads, conflict_free(grads, weights))
    torch.testing.assert_close(found / found[0], weights, rtol=1e-10, atol=0)


def test_one_loss_is_its_gradient_and_orthogonal_equal_ones_add_up() -> None:
    one = rows(1)
    torch.testing.assert_close(conflict_free(one), one[0], rtol=1e-12, atol=1e-12)
    q, _ = torch.linalg.qr(torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    torch.testing.assert_close(conflict_free(3 * q.T), 3 * q.sum(1), rtol=1e-12, atol=1e-12)


def test_two_losses_have_a_formula_of_their_own() -> None:
    def beside(a: Tensor, b: Tensor) -> Tensor:
        left = a - (a @ b) / (b @ b) * b
        return left / left.norm()

    for seed in range(5):
        grads = rows(2, seed=seed)
        direction = beside(grads[0], grads[1]) + beside(grads[1], grads[0])
        unit = direction / direction.norm()
        torch.testing.assert_close(conflict_free(grads), (grads @ unit).sum() * unit, rtol=1e-9, atol=1e-9)


def test_a_pseudoinverse_of_the_wide_matrix_gives_the_same() -> None:
    grads = rows(4)
    units = grads / grads.norm(dim=1, keepdim=True)
    direction = torch.linalg.pinv(units) @ torch.ones(4, dtype=torch.float64)
    unit = direction / direction.norm()
    torch.testing.assert_close(conflict_free(grads), (grads @ unit).sum() * unit, rtol=1e-9, atol=1e-9)


def test_zero_and_opposite_gradients() -> None:
    grads = rows(3)
    grads[1] = 0
    torch.testing.assert_close(conflict_free(grads), conflict_free(grads[[0, 2]]), rtol=1e-12, atol=1e-12)
    a = rows(1)[0]
    for dtype in (torch.float32, torch.float64):
        assert float(conflict_free(torch.stack([a, -3 * a]).to(dtype)).norm()) < 1e-6 * float(a.norm())
    assert not bool(conflict_free(torch.zeros(2, 5)).any())
    torch.testing.assert_close(conflict_free(torch.stack([a, 2 * a])), 3 * a, rtol=1e-6, atol=1e-9)


def test_more_conflict_makes_a_shorter_step() -> None:
    angles = torch.linspace(0.2, 3.0, 8, dtype=torch.float64)
    pairs = [torch.tensor([[1.0, 0.0], [float(a.cos()), float(a.sin())]], dtype=torch.float64) for a in angles]
    lengths = [float(conflict_free(pair).norm()) for pair in pairs]
    assert lengths == pytest.approx([2 * float((a / 2).cos()) for a in angles], rel=1e-9)


TWO: dict[str, Any] = {"task": {"use": "digits-two-targets"}, "training": {"batch_size": 64}, "budget": {"steps": 12}}


def test_in_a_run_no_term_resists_the_step() -> None:
    run, log, _ = train(**TWO, techniques=[{"use": "config-gradients"}])
    steps, lowest = log.points["config-gradients/lowest-cosine"]
    assert steps == [0, 10] and min(lowest) > 0
    assert run.counts["gradient-passes"] == 24


def test_the_step_of_a_run_is_the_direction_from_its_terms() -> None:
    run, _ = ready(**TWO, techniques=[{"use": "config-gradients", "weights": [1.0, 3.0]}])
    twin, _ = ready(**TWO)
    assert twin.stream is not None
    batch = twin.stream.next()
    terms = twin.task.objective(batch.call(twin.model), batch)
    over = list(twin.model.parameters())
    grads = [
        flat([torch.zeros_like(p) if g is None else g for p, g in zip(over, found, strict=True)])
        for found in (torch.autograd.grad(t.mean(), over, retain_graph=True, allow_unused=True) for t in terms.values())
    ]
    expected = flat(over) - 0.1 * conflict_free(torch.stack(grads), torch.tensor([1.0, 3.0]))
    Trainer(run)._step()
    torch.testing.assert_close(flat(list(run.model.parameters())), expected, rtol=1e-5, atol=1e-7)


def test_wrong_weights_are_refused() -> None:
    with pytest.raises(RecipeError, match="greater than 0"):
        ready(**TWO, techniques=[{"use": "config-gradients", "weights": [1.0, 0.0]}])
    with pytest.raises(ValueError, match="3 numbers, and there are 2 terms: class, second"):
        train(**TWO, techniques=[{"use": "config-gradients", "weights": [1.0, 1.0, 1.0]}])


# -- with momentum -----------------------------------------------------------------------------------------------------


def test_momentum_with_one_loss_is_adam() -> None:
    w = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = w.clone().requires_grad_()
    adam = torch.optim.Adam([theirs], lr=0.01, eps=1e-8)
    made = ConfigGradientsMomentum()
    mine = w.clone()
    for step in range(20):
        g = torch.randn(30, generator=torch.Generator().manual_seed(step + 1), dtype=torch.float64)
        theirs.grad = g.clone()
        adam.step()
        found = made.learn(g, 0, ["task"])
        assert found is not None
        mine -= 0.01 * found
    torch.testing.assert_close(mine, theirs.detach(), rtol=1e-8, atol=1e-8)


def test_momentum_against_a_slow_version() -> None:
    m, b1, b2 = 3, 0.8, 0.95
    made = ConfigGradientsMomentum(b1, b2)
    history: list[list[Tensor]] = [[] for _ in range(m)]
    before, squares, combined = torch.zeros(12).double(), torch.zeros(12).double(), 0
    for t in range(14):
        g = torch.randn(12, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        history[t % m].append(g)
        found = made.learn(g, t % m, list("abc"))
        if t < m - 1:
            assert found is None, "nothing moves before every loss was seen"
            continue
        combined += 1
        means = []
        for seen in history:
            weights = torch.tensor([b1 ** (len(seen) - 1 - i) for i in range(len(seen))], dtype=torch.float64)
            means.append((weights[:, None] * torch.stack(seen)).sum(0) / weights.sum())
        step = conflict_free(torch.stack(means))
        undone = step * (1 - b1**combined)
        fresh = (undone - b1 * before) / (1 - b1)
        before = undone
        squares = b2 * squares + (1 - b2) * fresh**2
        expected = step / ((squares / (1 - b2**combined)).sqrt() + 1e-8)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_momentum_makes_one_backward_pass_a_step_and_waits_for_all_losses() -> None:
    plain = {"use": "sgd", "lr": 0.01, "momentum": 0.0}
    changes = {**TWO, "procedure": {"use": "config-gradients-momentum"}, "optimizer": plain}
    run, log = ready(**{**changes, "budget": {"steps": 60}})
    start = [p.detach().clone() for p in run.model.parameters()]
    trainer = Trainer(run)
    trainer._step()
    assert all(torch.equal(a, b) for a, b in zip(start, run.model.parameters(), strict=True))
    outcome = trainer.train()
    assert run.counts["gradient-passes"] == 60 and run.procedure.seen == [30, 30]  # type: ignore[attr-defined]
    losses = log.points["train/loss"][1]
    assert losses[-1] < 0.7 * losses[0] and outcome.state == "done"


def test_momentum_is_not_split_into_micro_batches() -> None:
    with pytest.raises(RecipeError, match="takes its steps on whole batches"):
        ready(**{**TWO, "training": {"accumulate": 2}}, procedure={"use": "config-gradients-momentum"})


def test_momentum_starts_anew_with_other_weights() -> None:
    made = ConfigGradientsMomentum()
    for _ in range(3):
        made.learn(torch.ones(4), 0, ["task"])
    made.on_surgery(None, {})  # type: ignore[arg-type]
    fresh = ConfigGradientsMomentum().learn(torch.ones(6), 0, ["task"])
    again = made.learn(torch.ones(6), 0, ["task"])
    assert again is not None and fresh is not None and torch.equal(again, fresh)
