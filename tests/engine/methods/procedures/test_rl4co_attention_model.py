"""Neural routing: its gradient against the exact one, the four baselines, and what it learns."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import ttest_rel
from torch import Tensor

from engine.errors import RecipeError
from engine.kit.routing import every_start, greedy, roll_out, sampler, tour_length
from engine.methods.procedures.rl4co_attention_model import NeuralRouting, better
from engine.training.run import Run
from tests.engine.methods.short import ready, resumed, train

RECIPE: dict[str, Any] = {
    "task": {"use": "tsp", "points": 6, "instances": 16},
    "model": {"use": "attention-model", "width": 16, "heads": 4, "layers": 1, "hidden": 32},
    "optimizer": {"use": "adamw", "lr": 1e-3, "weight_decay": 0.0},
    "training": {"batch_size": 16, "evaluate_every": 0, "threads": 1},
    "budget": {"steps": 6},
}


def recipe(**procedure: Any) -> dict[str, Any]:
    return {**RECIPE, "procedure": {"use": "rl4co-attention-model", **procedure}}


def steps(run: Run, count: int) -> list[dict[str, Tensor]]:
    """Takes some steps and returns the terms of the main role's updates."""
    seen: list[dict[str, Tensor]] = []
    update = run.update

    def kept(role: str, terms: dict[str, Tensor], *rest: Any) -> None:
        if role == "main":
            seen.append(terms)
        update(role, terms, *rest)

    run.update = kept  # type: ignore[method-assign, assignment]
    for _ in range(count):
        run.batch = batch = run.stream.next()  # type: ignore[union-attr]
        run.before_step()
        run.procedure.step(run, batch)
        run.step += 1
    run.update = update  # type: ignore[method-assign]
    return seen


def test_the_gradient_is_that_of_the_expected_length() -> None:
    """All 6 tours of 4 points from each given first one, weighted by their probabilities, against 225 times 4 drawn
    tours and their shared baseline: within 3 standard errors in (nearly) every direction."""
    run, _ = ready(**{**recipe(), "task": {"use": "tsp", "points": 4, "instances": 4}})
    model: Any = run.model.double().train()
    parameters = [p for name, p in model.named_parameters() if name != "before"]
    x = torch.rand(1, 4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    exact = torch.zeros((), dtype=torch.float64)
    for start in range(4):
        orders = torch.tensor([p for p in permutations(range(4)) if p[0] == start]).unsqueeze(0)
        rest = iter(orders[..., 1:].unbind(-1))
        found = roll_out(model, x, lambda scores, rest=rest: next(rest), orders[..., 0])  # type: ignore[misc]
        exact = exact + (found.log_prob.exp() * tour_length(x, orders)).sum() / 4
    truth = torch.cat([g.flatten() for g in torch.autograd.grad(exact, parameters)])
    rng = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(225):
        played = roll_out(model, x, sampler(rng), every_start(1, 4, x.device))
        lengths = tour_length(x, played.tours)
        # the shared mean holds the tour's own length too, which shrinks the gradient by (n - 1) / n
        loss = ((lengths - lengths.mean(1, keepdim=True)) * played.log_prob).mean() * 4 / 3
        estimates.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    each = torch.stack(estimates)
    error = each.std(0) / 15
    away = (each.mean(0) - truth).abs() / error.clamp_min(1e-12)
    assert (away[error > 1e-9] < 3).double().mean() > 0.98
    assert torch.nn.functional.cosine_similarity(each.mean(0), truth, dim=0) > 0.9


def test_shared_advantages_sum_to_nothing_and_the_loss_is_their_mean() -> None:
    run, memory = ready(**recipe())
    part: Any = run.procedure
    batch = run.stream.next()  # type: ignore[union-attr]
    before = run.rng("rl4co-attention-model").get_state()
    played = roll_out(run.model, batch.x, sampler(run.rng("rl4co-attention-model")), every_start(16, 6, run.device))  # type: ignore[arg-type]
    lengths = tour_length(batch.x, played.tours)
    advantage = lengths - part._expected(run, batch.x, lengths)
    assert advantage.sum(1).abs().max() < 1e-5 and advantage.abs().max() > 0.1
    run.rng("rl4co-attention-model").set_state(before)
    run.stream.load({"epoch": 0, "taken": 0})  # type: ignore[union-attr]
    run.stream.next = lambda: batch  # type: ignore[union-attr, method-assign]
    (terms,) = steps(run, 1)
    torch.testing.assert_close(terms["policy"], (advantage.detach() * played.log_prob).mean(1))
    assert memory is not None


def test_the_exponential_baseline_is_a_running_mean_of_lengths() -> None:
    run, memory = ready(**recipe(baseline="exponential", beta=0.7, starts=1))
    steps(run, 5)
    run.recorder.flush(wait=True)
    lengths = memory.points["train/length"][1]
    expected = lengths[0]
    for value in lengths[1:]:
        expected = 0.7 * expected + 0.3 * value
    assert float(run.procedure.expected) == pytest.approx(expected, rel=1e-5)  # type: ignore[attr-defined]


def test_a_better_policy_takes_the_place_of_the_frozen_one_and_a_worse_one_does_not() -> None:
    run, _ = ready(**recipe(baseline="rollout", starts=1, comparison=64))
    run.task.epoch_steps = 1
    part: Any = run.procedure
    x = run.stream.next().x  # type: ignore[union-attr]
    worse = part.frozen
    part._challenge(run, "points")
    assert part.frozen is worse and len(part.contest) == 64, "the same policy is no better"
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    with torch.no_grad(), run.evaluating():
        new, old = (tour_length(part.contest, m(part.contest)) for m in (run.model, worse))
    assert better(new, old, 0.05) != better(old, new, 0.05)
    part._challenge(run, "points")
    assert (part.frozen is not worse) == better(new, old, 0.05)
    run.step = 1  # after the first epoch its greedy tours are the baseline
    lengths = torch.ones(len(x), 1)
    assert torch.equal(part._expected(run, x, lengths)[:, 0], tour_length(x, part.frozen(x)))
    assert all(not p.requires_grad for p in part.frozen.parameters()) and not part.frozen.training


def test_the_comparison_is_a_one_sided_paired_t_test() -> None:
    rng = torch.Generator().manual_seed(0)
    old = torch.rand(50, generator=rng)
    for shift in (-0.05, -0.01, 0.0, 0.05):
        new = old + shift + 0.1 * torch.randn(50, generator=rng)
        expected = ttest_rel(new.numpy(), old.numpy(), alternative="less").pvalue < 0.05
        assert better(new, old, 0.05) == expected
    assert not better(old, old, 0.05)


def test_the_critic_learns_the_lengths() -> None:
    run, _ = ready(**recipe(baseline="critic", starts=1))
    critic: Any = run.roles["critic"].module
    x = torch.rand(200, 6, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = tour_length(x, roll_out(run.model, x, greedy).tours).mean()  # type: ignore[arg-type]
        before = (critic(x).mean() - target).abs()
    steps(run, 60)
    assert (critic(x).mean().detach() - target).abs() < 0.5 * before


def test_the_shared_baseline_has_the_quieter_gradient() -> None:
    """At fixed weights and with the same tours, against the mean over batches."""
    run, _ = ready(**recipe())
    model: Any = run.model
    parameters = [p for name, p in model.named_parameters() if name != "before"]
    rng = torch.Generator().manual_seed(0)
    found: dict[str, list[Tensor]] = {"shared": [], "mean": []}
    for _ in range(40):
        x = torch.rand(4, 6, 2, generator=rng)
        played = roll_out(model, x, sampler(rng), every_start(4, 6, x.device))
        lengths = tour_length(x, played.tours)
        for name, expected in (("shared", lengths.mean(1, keepdim=True)), ("mean", lengths.mean())):
            loss = ((lengths - expected) * played.log_prob).mean()
            grads = torch.autograd.grad(loss, parameters, retain_graph=True)
            found[name].append(torch.cat([g.flatten() for g in grads]))
    shared, mean = (torch.stack(each).var(0).sum() for each in found.values())
    assert shared < 0.8 * mean


def test_the_answer_begins_where_training_did() -> None:
    run, _ = ready(**recipe())
    batch = next(run.batches("test"))
    assert (run.predict(batch)[:, 0] == 0).all()
    alone, _ = ready(**recipe(baseline="exponential", starts=1))
    assert torch.equal(alone.predict(batch), alone.model.eval()(batch.x))


def test_it_learns_to_make_short_tours() -> None:
    """Drawn at first as good as at random, which is about 3.1 long for six points, and the best ones 2.1."""
    _, memory, outcome = train(**{**recipe(), "budget": {"steps": 60}})
    lengths = memory.points["train/length"][1]
    first, last = sum(lengths[:5]) / 5, sum(lengths[-5:]) / 5
    assert 2.7 < first < 3.3 and last < 0.9 * first
    assert 0 <= outcome.metrics["test/gap"] < 0.1 and outcome.metrics["count/samples"] == 960


def test_it_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="mean over several tours"):
        NeuralRouting(starts=1)
    with pytest.raises(RecipeError, match=r"points|tour"):
        ready(procedure={"use": "rl4co-attention-model"})
    with pytest.raises(RecipeError, match="takes vector or image"):
        ready(**{**recipe(), "model": {"use": "mlp"}})


@pytest.mark.parametrize("baseline", ["exponential", "rollout", "critic"])
def test_it_goes_on_with_the_baseline_that_it_had(
    baseline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.methods.tasks.tsp.Tsp.epoch_steps", 2)
    whole, again = resumed(tmp_path, 3, **recipe(baseline=baseline, comparison=32, level=0.9))
    assert whole.weights == again.weights and whole.metrics == again.metrics


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"optimizer": {"use": "lbfgs"}}, "asks for the loss of a batch again"),
        ({"techniques": [{"use": "super-convergence-rate"}]}, "asks for the loss of a batch again"),
        ({"techniques": [{"use": "experience-replay"}]}, "no stored rows"),
    ],
)
def test_what_wants_a_stored_sample_or_its_loss_again_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        ready(**{**recipe(), **changes})


def test_other_layers_and_averages_fit_into_the_policy() -> None:
    """Every weight of it is called as a layer is."""
    layers = {"use": "replace", "sites": "linear", "layer": {"use": "weight-norm"}}
    average = {"use": "switch-ema", "decay": 0.5}
    run, _, outcome = train(**{**recipe(), "techniques": [layers, average]})
    assert outcome.metrics["test/gap"] > 0 and outcome.metrics["test@ema/gap"] > 0
    assert type(run.model.of_graph).__name__ == "WeightNorm"
