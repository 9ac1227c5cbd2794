"""ConR against loops that follow the formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import RecipeError
from engine.methods.regularizers.conr import contrast, pairs, rarity
from engine.recipe import Recipe
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer, train
from engine.training.recorder import Memory, Recorder
from engine.training.run import Run

RNG = torch.Generator().manual_seed(0)
N = 14
F_ = torch.randn(N, 6, generator=RNG, dtype=torch.float64)
Y = torch.rand(N, 1, generator=RNG, dtype=torch.float64)
A = Y + 0.4 * torch.randn(N, 1, generator=RNG, dtype=torch.float64)
RHO = torch.rand(N, generator=RNG, dtype=torch.float64) + 0.5
W, TAU, PUSH = 0.25, 0.2, 1.3


def fast(f: Tensor, y: Tensor, a: Tensor, rho: Tensor, push: float = PUSH, **settings: Any) -> Tensor:
    positive, negative, apart = pairs(y, a, W)
    unit = F.normalize(f, dim=1)
    return contrast(unit @ unit.T / TAU, positive, negative, rho.log().unsqueeze(1) + push * apart, **settings)


def slow(push: float = PUSH, published: bool = False) -> list[float]:
    found = []
    unit = [row / row.norm() for row in F_]
    for i in range(N):
        s = [float(unit[i] @ unit[j]) / TAU for j in range(N)]
        dl = [float((Y[i] - Y[j]).abs()) for j in range(N)]
        dp = [float((A[i] - A[j]).abs()) for j in range(N)]
        positives = [j for j in range(N) if j != i and dl[j] <= W]
        negatives = [j for j in range(N) if dl[j] > W and dp[j] <= W]
        if not positives or not negatives:
            found.append(0.0)
            continue
        below = sum(math.exp(s[k]) for k in positives) + (N - len(positives) if published else 0)
        below += sum(float(RHO[i]) * math.exp(push * dl[n]) * math.exp(s[n]) for n in negatives)
        found.append(-sum(math.log(math.exp(s[p]) / below) for p in positives) / len(positives))
    return found


@pytest.mark.parametrize("published", [False, True])
def test_it_is_the_formula(published: bool) -> None:
    expected = slow(published=published)
    assert sum(value > 0 for value in expected) > 5 and len(set(expected)) > 5
    found = fast(F_, Y, A, RHO, reference_sum=published)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_with_equal_weights_it_is_a_supervised_contrast_over_positives_and_negatives() -> None:
    positive, negative, _ = pairs(Y, A, W)
    unit = F.normalize(F_, dim=1)
    s = unit @ unit.T / TAU
    found = contrast(s, positive, negative, torch.zeros(N, N, dtype=torch.float64))
    for i in range(N):
        if not (positive[i].any() and negative[i].any()):
            continue
        kept = positive[i] | negative[i]
        log_p = s[i][kept].log_softmax(0)
        expected = -log_p[positive[i][kept]].mean()
        torch.testing.assert_close(found[i], expected)


def test_without_negatives_loss_and_gradient_are_exactly_zero() -> None:
    f = F_.clone().requires_grad_()
    found = fast(f, Y, 100 * torch.arange(N).double(), RHO)
    assert torch.equal(found, torch.zeros(N, dtype=torch.float64))
    (grad,) = torch.autograd.grad(found.sum(), f)
    assert torch.equal(grad, torch.zeros_like(grad))


def test_order_does_not_matter_and_no_gradient_reaches_the_answers() -> None:
    order = torch.randperm(N, generator=RNG)
    torch.testing.assert_close(fast(F_[order], Y[order], A[order], RHO[order]), fast(F_, Y, A, RHO)[order])
    answers, f = A.clone().requires_grad_(), F_.clone().requires_grad_()
    (grad,) = torch.autograd.grad(fast(f, Y, answers, RHO).sum(), f)
    assert torch.isfinite(grad).all() and grad.abs().sum() > 0
    assert torch.autograd.grad(fast(f, Y, answers, RHO).sum(), answers, allow_unused=True)[0] is None


def test_a_negative_that_is_farther_in_label_costs_more() -> None:
    f = torch.eye(3, dtype=torch.float64)
    costs = [
        float(fast(f, torch.tensor([[0.0], [0.1], [far]]), torch.zeros(3, 1), torch.ones(3).double())[0])
        for far in (0.3, 0.5, 0.9)
    ]
    assert costs[0] < costs[1] < costs[2]


def test_labels_with_several_numbers_are_compared_by_their_distance() -> None:
    y = torch.tensor([[0.0, 0.0], [0.15, 0.15], [0.2, 0.2], [0.0, 0.24]])
    positive, negative, apart = pairs(y, torch.zeros(4, 2), 0.25)
    assert positive[0].tolist() == [False, True, False, True] and negative[0].tolist() == [False, False, True, False]
    assert float(apart[0, 2]) == pytest.approx(0.2 * 2**0.5)


def test_rarity_counts_the_bin() -> None:
    y = torch.tensor([0.0, 0.01, 0.05, 0.09, 0.11, 0.95]).unsqueeze(1)
    for power in (0.0, 0.5, 1.0):
        raw = torch.tensor([4.0, 4, 4, 4, 1, 1]) ** -power
        torch.testing.assert_close(rarity(y, 0.1, power), raw / raw.mean())


BASE: dict[str, Any] = {
    "task": {"use": "imbalanced-regression", "samples": 100},
    "model": {"use": "mlp", "hidden": [16]},
    "optimizer": {"use": "sgd", "lr": 0.05},
    "training": {"batch_size": 32, "threads": 1, "evaluate_every": 0},
    "budget": {"steps": 4},
}


def ready(**changes: Any) -> Run:
    return assemble(filled(Recipe.of({**BASE, **changes})), Recorder(Memory()))


def test_a_step_sees_each_sample_in_two_views_and_adds_the_weighted_term() -> None:
    run = ready(techniques=[{"use": "conr", "beta": 2.0, "window": 0.1}])
    method: Any = run.techniques[0]
    seen = []
    terms = run.terms

    def spy(output: Tensor, batch: Any) -> Any:
        made = terms(output, batch)
        positive, negative, apart = pairs(batch.target, output, 0.1 * method._range)
        unit = F.normalize(run.features, dim=1)
        rho = method._rho[batch.index]
        log_push = rho.log().unsqueeze(1) + apart / method._range
        each = contrast(unit @ unit.T / 0.07, positive, negative, log_push)
        torch.testing.assert_close(made["penalty:conr"], 2.0 * rho * each)
        seen.append((len(batch), made["penalty:conr"].mean().item()))
        assert torch.equal(batch.index[: len(batch) // 2], batch.index[len(batch) // 2 :])
        return made

    run.terms = spy  # type: ignore[method-assign]
    Trainer(run).train()
    assert [n for n, _ in seen] == [64, 64, 64, 8] and max(value for _, value in seen) > 0
    target = run.columns("train")["target"]
    assert method._range == pytest.approx(float(target.max() - target.min()))


def test_without_weight_and_jitter_two_views_are_the_plain_step() -> None:
    plain = train(filled(Recipe.of(BASE))).metrics["val/mae"]
    still = [{"use": "conr", "beta": 0.0, "jitter": 0.0}]
    assert train(filled(Recipe.of({**BASE, "techniques": still}))).metrics["val/mae"] == pytest.approx(plain, rel=1e-5)
    moved = [{"use": "conr", "beta": 1.0, "jitter": 0.0}]
    assert train(filled(Recipe.of({**BASE, "techniques": moved}))).metrics["val/mae"] != pytest.approx(plain, rel=1e-5)


def test_what_it_cannot_work_on_is_refused() -> None:
    with pytest.raises(RecipeError, match="It compares numbers that are predicted"):
        ready(techniques=[{"use": "conr"}], task={"use": "two-moons"})
    with pytest.raises(RecipeError, match="Only images can be shifted"):
        ready(techniques=[{"use": "conr", "shift": 1}])
    with pytest.raises(RecipeError, match="conr couples the samples of a batch"):
        ready(techniques=[{"use": "conr"}], training={"batch_size": 32, "accumulate": 2})
