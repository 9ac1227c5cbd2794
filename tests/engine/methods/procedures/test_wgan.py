"""Wasserstein GAN: the clip holds after each step, players move alone, and the losses are those of the paper."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import RecipeError
from engine.methods.procedures.wgan import critic_steps, critic_terms, estimate, generator_terms, plain_critic
from engine.parts import Offer
from engine.training.run import Run
from tests.engine.methods.short import ready, train

CLIP = 0.05 * (1 + 1e-6)  # in the critic's own precision
BASE: dict[str, Any] = {
    "task": {"use": "distribution", "held_out": 40, "judged": 16, "epoch_steps": 5},
    "procedure": {"use": "wgan", "latent": 3, "n_critic": 2, "critic_boost": 4, "boost_first": 1, "clip": 0.05},
    "model": {"use": "mlp", "hidden": [12]},
    "optimizer": {"use": "sgd", "lr": 0.3, "momentum": 0.0},
    "training": {"batch_size": 10},
    "budget": {"steps": 10},
}


def run_of(**changes: Any) -> Run:
    return ready(**{**BASE, **changes})[0]


def step(run: Run) -> None:
    assert run.stream is not None
    run.batch = run.stream.next()
    run.before_step()
    run.procedure.step(run, run.batch)
    run.step += 1


def critic_of(run: Run) -> Any:
    return run.roles["critic"].module


def largest(module: nn.Module) -> float:
    return max(float(p.detach().abs().max()) for p in module.parameters())


def test_no_weight_of_the_critic_is_ever_larger_than_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of()
    sizes: list[float] = []
    judge = run.procedure.judge  # type: ignore[attr-defined]

    def watched(run: Run, x: Tensor) -> Tensor:
        sizes.append(largest(critic_of(run)))
        return judge(run, x)

    monkeypatch.setattr(run.procedure, "judge", watched)
    for _ in range(4):
        step(run)
    assert len(sizes) > 16 and max(sizes) <= CLIP and largest(run.model) > CLIP
    assert any(float(p.detach().abs().max()) == pytest.approx(0.05) for p in critic_of(run).parameters()), (
        "the clip acts"
    )


def test_each_player_moves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of()
    moved: list[tuple[str, bool, bool]] = []
    update = run.update

    def watched(role: str, *arguments: Any, **more: Any) -> None:
        before = [copy.deepcopy(m.state_dict()) for m in (run.model, critic_of(run))]
        update(role, *arguments, **more)
        after = [m.state_dict() for m in (run.model, critic_of(run))]
        changed = [any(not torch.equal(b[n], a[n]) for n in a) for b, a in zip(before, after, strict=True)]
        moved.append((role, *changed))  # type: ignore[arg-type]
        assert all(p.grad is None for p in [*run.model.parameters(), *critic_of(run).parameters()])

    monkeypatch.setattr(run, "update", watched)
    step(run)
    step(run)
    critic, generator = ("critic", False, True), ("main", True, False)
    assert moved == [*[critic] * 4, generator, *[critic] * 2, generator]


def test_a_step_by_hand() -> None:
    """Two updates of the critic, each clipped and on a batch of its own, then one of the generator on new noise."""
    run, twin = (run_of(procedure={**BASE["procedure"], "boost_first": 0, "boost_every": 0}) for _ in range(2))
    step(run)
    assert twin.stream is not None
    critic, generator, rng = critic_of(twin), twin.model, twin.rng("wgan")
    batches = [twin.stream.next(), twin.stream_of("train", "wgan").next()]
    for batch in batches:
        made = generator(torch.randn(10, 3, generator=rng)).detach()
        loss = critic(made).mean() - critic(batch.x).mean()
        for p, g in zip(critic.parameters(), torch.autograd.grad(loss, list(critic.parameters())), strict=True):
            p.data = (p.data - 0.3 * g).clamp(-0.05, 0.05)
    loss = -critic(generator(torch.randn(10, 3, generator=rng))).mean()
    for p, g in zip(generator.parameters(), torch.autograd.grad(loss, list(generator.parameters())), strict=True):
        p.data -= 0.3 * g
    for mine, theirs in ((run.model, generator), (critic_of(run), critic)):
        for (name, one), other in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(one, other, atol=1e-6), name


def test_identical_batches_are_no_distance_apart() -> None:
    x = torch.randn(20)
    assert float(critic_terms(x, x, "wasserstein").sum()) == 0 and float(estimate(x, x, "wasserstein")) == 0


def test_the_classic_objective_is_the_cross_entropy_of_telling_real_from_made() -> None:
    real, fake = torch.randn(9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(real, torch.ones_like(real), reduction="none")
    expected = expected + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake), reduction="none")
    assert torch.allclose(critic_terms(real, fake, "jensen-shannon"), expected, atol=1e-12)
    trick = -torch.log(torch.sigmoid(fake))
    assert torch.allclose(generator_terms(fake, "jensen-shannon"), trick, atol=1e-12)


def test_point_masses_a_clipped_line_measures_their_distance_and_the_classic_game_does_not() -> None:
    """Data at 0, samples at theta: the best f(x) = w x with |w| <= c attains c |theta|; its gradient is c everywhere.
    A discriminator that is free is right about both, whatever theta is: the divergence is log 2."""
    c = 0.2
    for theta in (-3.0, -0.1, 0.1, 2.0):
        at = torch.tensor([theta], dtype=torch.float64, requires_grad=True)
        values = {w: float(estimate(torch.zeros(1), w * at.detach(), "wasserstein")) for w in torch.linspace(-c, c, 9)}
        best = max(values, key=lambda w: values[w])
        assert values[best] == pytest.approx(c * abs(theta))
        (gradient,) = torch.autograd.grad(generator_terms(best * at, "wasserstein").sum(), at)
        assert float(gradient) == pytest.approx(c * math.copysign(1, theta))  # descending it brings theta to 0
        sure = 50.0 * torch.ones(1, dtype=torch.float64)
        assert float(estimate(sure, -sure, "jensen-shannon")) / 2 == pytest.approx(math.log(2), abs=1e-12)


def test_the_critics_slope_is_bounded_by_its_weights() -> None:
    run = run_of(budget={"steps": 3})
    for _ in range(3):
        step(run)
    critic = critic_of(run)
    x, y = torch.randn(300, 2), torch.randn(300, 2)
    slope = ((critic(x) - critic(y)).abs().flatten() / (x - y).norm(dim=1)).max()
    bound = math.prod(float(torch.linalg.matrix_norm(m.weight.detach(), 2)) for m in critic if isinstance(m, nn.Linear))
    assert 0 < float(slope.detach()) <= bound * (1 + 1e-5)


def test_how_often_the_critic_learns() -> None:
    times = [critic_steps(step, 5, 100, 2, 10) for step in range(22)]
    assert [i for i, n in enumerate(times) if n == 100] == [0, 1, 10, 20] and set(times) == {5, 100}
    assert critic_steps(0, 5, 100, 0, 0) == 5


def test_it_logs_the_estimate_and_counts_what_it_took() -> None:
    run, memory, outcome = train(**BASE)
    updates = 4 + 9 * 2
    assert outcome.metrics["count/gradient-passes"] == updates + 10
    assert outcome.metrics["count/samples"] == updates * 10
    steps, values = memory.points["critic/estimate"]
    assert len(values) == updates and steps[:5] == [0, 0, 0, 0, 1]
    losses = memory.points["critic/loss"][1]
    assert values == pytest.approx([-loss for loss in losses], abs=1e-6)
    assert "estimate-correlation" in run.procedure.result(run)


def test_the_same_noise_at_every_evaluation() -> None:
    run = run_of()
    samples = run.task.figures(run.predict, torch.Generator())["samples"]["series"][1]["x"]
    assert samples == run.task.figures(run.predict, torch.Generator())["samples"]["series"][1]["x"]


def test_the_generators_objective_can_be_asked_again_whoever_asks() -> None:
    probes = [{"use": "sharpness", "samples": 20}]
    task = {**BASE["task"], "samples": 40}
    penalty = [{"use": "weight-penalty"}]
    changes = {"task": task, "probes": probes, "transforms": [{"use": "fold"}], "techniques": penalty}
    _, memory, outcome = train(**{**BASE, **changes})
    assert outcome.metrics["transform/fold/error"] < 1e-5 and outcome.metrics["probe/sharpness/sharpness"] >= 0
    assert "train/term/task" in memory.points and len([n for n in memory.points if n.startswith("train/term/")]) == 2
    run = run_of(task=task)
    batch = next(run.batches("train", 6))
    z = run.procedure.given(run, batch)
    made = run.model(z.inputs["z"])
    assert run.procedure.given(run, z) is z
    assert torch.allclose(run.oracle(batch).value(), -critic_of(run)(made).mean())


def test_a_line_search_for_the_generator_leaves_the_critic_alone() -> None:
    critic = {"use": "sgd", "lr": 0.1, "momentum": 0.0}
    run = run_of(optimizer={"use": "lbfgs"}, procedure={**BASE["procedure"], "critic_optimizer": critic})
    step(run)
    assert all(p.grad is None for p in critic_of(run).parameters())


def test_a_critic_and_an_optimizer_of_its_own() -> None:
    critic = {"use": "mlp", "hidden": [7], "activation": "tanh"}
    procedure = {**BASE["procedure"], "critic": critic, "critic_optimizer": {"use": "rmsprop", "lr": 0.01}}
    run = run_of(procedure=procedure)
    assert [m.out_features for m in critic_of(run).modules() if isinstance(m, nn.Linear)] == [7, 1]
    assert isinstance(run.roles["critic"].optimizer, torch.optim.RMSprop)
    assert isinstance(run.roles["main"].optimizer, torch.optim.SGD)
    assert largest(critic_of(run)) <= CLIP, "clipped from the start"


def test_digits_are_made_as_images() -> None:
    task = {"use": "distribution", "shape": "digits", "samples": 40, "judged": 8}
    run = run_of(task=task)
    step(run)
    assert run.task.offer.shape == (1, 8, 8)
    assert run.predict(next(run.batches("val", 6))).shape == (6, 1, 8, 8)
    assert plain_critic(Offer("image", (1, 8, 8), "values", 1))(torch.zeros(2, 1, 8, 8)).shape == (2, 1)


def test_it_learns_a_small_ring() -> None:
    procedure = {"use": "wgan", "latent": 2, "n_critic": 5, "critic_boost": 20, "boost_first": 5, "clip": 0.1}
    changes: dict[str, Any] = {"procedure": procedure, "optimizer": {"use": "rmsprop", "lr": 2e-3}}
    changes |= {"task": {**BASE["task"], "scale": 4.0, "deviation": 0.2}}
    changes |= {"model": {"use": "mlp", "hidden": [32]}, "training": {"batch_size": 64, "evaluate_every": 0}}
    _, _, before = train(**{**BASE, **changes, "budget": {"steps": 1}})
    _, _, after = train(**{**BASE, **changes, "budget": {"steps": 60}})
    assert after.metrics["test/w1"] < 0.85 * before.metrics["test/w1"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": {"use": "two-moons"}}, "answers with samples"),
        ({"training": {"batch_size": 10, "accumulate": 2}}, "takes its steps on whole batches"),
        ({"techniques": [{"use": "label-smoothing"}]}, "smooths classes"),
        ({"training": {"batch_size": 10, "precision": "fp16"}}, "not played in fp16"),
    ],
)
def test_what_does_not_fit_is_refused(changes: Any, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        run_of(**changes)
