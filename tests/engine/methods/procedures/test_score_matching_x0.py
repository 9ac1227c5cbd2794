"""Score matching by guessing the clean sample: the two losses are one, the best guess is the score, and stopping."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import RecipeError
from engine.kit.diffusion import Process
from engine.methods.procedures.score_matching_x0 import ScoreMatchingX0, posterior_mean
from engine.parts import Batch
from engine.training.run import Run
from tests.engine.methods.short import ready, train

BASE: dict[str, Any] = {
    "task": {"use": "distribution", "scale": 0.7, "deviation": 0.08, "samples": 40, "held_out": 64, "judged": 8},
    "procedure": {"use": "score-matching-x0", "sample_steps": 5, "check_every": 2},
    "model": {"use": "two-layer-relu", "width": 32},
    "optimizer": {"use": "sgd", "lr": 0.2, "momentum": 0.0},
    "training": {"batch_size": 40, "evaluate_every": 0},
    "budget": {"steps": 4},
}


def run_of(**changes: Any) -> Run:
    return ready(**{**BASE, **changes})[0]


def with_procedure(**settings: Any) -> dict[str, Any]:
    return {**BASE["procedure"], **settings}


def noisy_batch(process: Process, n: int = 200) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    clean = torch.randn(n, 2, generator=rng, dtype=torch.float64)
    t = process.first + (process.last - process.first) * torch.rand(n, generator=rng, dtype=torch.float64)
    z = torch.randn(n, 2, generator=rng, dtype=torch.float64)
    return clean, t, z, process.noised(clean, t, z)


def test_the_weighted_regression_is_denoising_score_matching() -> None:
    """|s - grad log p(X_t | X_0)|^2 with s from the guess, against a^2/h^2 |guess - X_0|^2, sample by sample."""
    part = ScoreMatchingX0(weight="score")
    process = part.process
    clean, t, _, x = noisy_batch(process)
    guess = torch.tanh(3 * x)
    a, h = process.kept(t)[:, None], process.spread(t)[:, None]
    conditional = -(x - a * clean) / h
    expected = (process.score(guess, x, t) - conditional).square().sum(1)
    assert torch.allclose(part.loss(guess, clean, t), expected, rtol=1e-10, atol=0)
    unit = ScoreMatchingX0().loss(guess, clean, t)
    assert torch.allclose(unit, (guess - clean).square().sum(1), rtol=1e-12)
    assert torch.allclose(expected, process.weight(t) * unit, rtol=1e-10)


def test_the_best_guess_is_the_score_of_the_mixture() -> None:
    process, deviation = Process(), 0.08
    centres = torch.randn(5, 2, dtype=torch.float64)
    _, t, _, x = noisy_batch(process)
    x.requires_grad_(True)
    a, h = process.kept(t)[:, None], process.spread(t)[:, None]
    var = a**2 * deviation**2 + h
    logs = -((x[:, None] - a[..., None] * centres) ** 2).sum(-1) / (2 * var) - var.log()
    (score,) = torch.autograd.grad(logs.logsumexp(1).sum(), x)
    found = process.score(posterior_mean(process, centres, deviation, x.detach(), t), x.detach(), t)
    assert torch.allclose(found, score, rtol=1e-10, atol=1e-9)


def test_a_step_by_hand() -> None:
    run, twin = run_of(), run_of()
    part: Any = run.procedure
    process = part.process
    for made in (run, twin):
        assert made.stream is not None
        made.batch = made.stream.next()
        made.before_step()
    signs = run.model.state_dict()["head.weight"].clone()
    part.step(run, run.batch)
    t, z, batch = part._times, part._noise, twin.batch
    assert batch is not None and t.shape == (40,) and float(t.min()) >= 0.01 and float(t.max()) <= 1
    t, z = t[batch.index], z[batch.index]
    x = process.kept(t)[:, None] * batch.x + process.spread(t).sqrt()[:, None] * z
    guess = twin.model(torch.cat([x, t[:, None] - 0.01], 1))
    loss = ((guess - batch.x) ** 2).sum(1).mean()
    weight: Any = twin.model.hidden.weight
    weight.data -= 0.2 * torch.autograd.grad(loss, weight)[0]
    assert torch.allclose(run.model.state_dict()["hidden.weight"], weight, atol=1e-6)
    assert torch.equal(run.model.state_dict()["head.weight"], signs), "only the hidden weights move"


def test_fixed_noise_belongs_to_its_sample_and_fresh_noise_to_its_step() -> None:
    seen: dict[str, list[Tensor]] = {"fixed": [], "fresh": []}
    for kind, found in seen.items():
        run = run_of(procedure=with_procedure(noise=kind), training={"batch_size": 20})
        part: Any = run.procedure
        noised = part.process.noised
        for _ in range(2):  # an epoch each
            rows = torch.zeros(40, 2)
            for _ in range(2):
                assert run.stream is not None
                batch = run.stream.next()
                given: list[Tensor] = []
                call = run.model.forward
                run.model.forward = lambda x, g=given, c=call: (g.append(x), c(x))[1]  # type: ignore[method-assign, misc]
                run.batch = batch
                run.before_step()
                part.step(run, batch)
                run.model.forward = call  # type: ignore[method-assign]
                rows[batch.index] = given[-1][:, :2].detach()
                assert noised(batch.x, torch.full((20,), 0.5), batch.x).shape == batch.x.shape
            found.append(rows)
    assert torch.equal(*seen["fixed"]) and not torch.equal(*seen["fresh"])


def test_it_keeps_the_weights_that_were_best_on_the_holdout() -> None:
    changes = {"model": {"use": "mlp", "hidden": [64]}, "optimizer": {"use": "adamw", "lr": 0.03}}
    few = {**BASE["task"], "samples": 12}
    run, memory, outcome = train(**{**BASE, **changes, "task": few, "budget": {"steps": 150}})
    part: Any = run.procedure
    steps, errors = memory.points["holdout/error"]
    best = min(range(len(errors)), key=lambda i: errors[i])
    assert outcome.metrics["result/holdout-error"] == pytest.approx(errors[best])
    assert part.best_step == steps[best] and steps[best] < 100, "it overfits in the end"
    assert outcome.steps == min(150, steps[best] + 2 * part.patience + 1)
    assert all(torch.equal(run.model.state_dict()[name], value) for name, value in part.best.items())
    clean, t, x = part._holdout
    guess = run.model(torch.cat([x, t[:, None] - 0.01], 1)).detach()
    assert float(((guess - clean) ** 2).sum(1).mean()) == pytest.approx(errors[best], rel=1e-5)


def test_patience_ends_the_run_with_a_sentence() -> None:
    changes = {"model": {"use": "mlp", "hidden": [64]}, "optimizer": {"use": "adamw", "lr": 0.05}}
    _, memory, outcome = train(**{**BASE, **changes, "procedure": with_procedure(patience=3), "budget": {"steps": 200}})
    assert outcome.state == "done" and outcome.steps < 200
    assert any("has not fallen for 3 looks" in event["text"] for event in memory.events)
    _, _, whole = train(**{**BASE, **changes, "procedure": with_procedure(patience=0), "budget": {"steps": 60}})
    assert whole.steps == 60


def test_guesses_are_clipped_in_answers_and_cut_off_far_out() -> None:
    run = run_of(procedure=with_procedure(radius=2.0))
    part: Any = run.procedure
    with torch.no_grad():
        run.model.get_parameter("hidden.weight").mul_(40)
    x = torch.tensor([[0.5, 0.5], [1.5, 1.5], [1.3, -1.3]])
    t = torch.full((3,), 0.3)
    batch = Batch({"x": x, "t": t}, None, torch.arange(3))
    raw = run.model(torch.cat([x, t[:, None] - 0.01], 1))
    answer = part.predict(run, batch)
    edge = 0.7 + 4 * 0.08
    assert raw.abs().max() > edge and torch.equal(answer[1], torch.zeros(2))
    assert torch.allclose(answer[[0, 2]], raw[[0, 2]].clamp(-edge, edge))
    free: Any = run_of(procedure=with_procedure(clip_x0=False)).procedure
    assert torch.equal(free.predict(run, batch), raw), "neither clipped nor cut off"


def test_its_own_answer_and_the_decoders_are_samples() -> None:
    run = run_of()
    batch = Batch({}, None, torch.arange(6), "test")
    assert run.predict(batch).shape == (6, 2) and torch.equal(run.predict(batch), run.predict(batch))
    other = run_of(decoder={"use": "reverse-sde", "steps": 3})
    assert other.predict(batch).shape == (6, 2) and other.calls == 6 * 4
    part: Any = other.procedure
    rng = torch.Generator().manual_seed(4)
    decoder: Any = other.decoder
    found = decoder.predict(other, batch, rng)
    rng.manual_seed(4)
    grid = torch.linspace(1, 0, 4) * 0.99 + 0.01
    y, process = torch.randn(6, 2, generator=rng), part.process
    for now, then in pairwise(grid):
        t = now.expand(6)
        guess = part.predict(other, Batch({"x": y, "t": t}, None, batch.index))
        score = (process.kept(now) * guess - y) / process.spread(now)
        g = 0.1 + 19.9 * now
        step = now - then
        y = y + step * (0.5 * g * y + g * score) + (step * g).sqrt() * torch.randn(6, 2, generator=rng)
    last = part.predict(other, Batch({"x": y, "t": grid[-1].expand(6)}, None, batch.index))
    assert torch.allclose(found, last, atol=1e-5)


def test_a_perfect_denoiser_has_no_error_and_makes_the_ring() -> None:
    task = {"use": "distribution", "scale": 0.7, "deviation": 0.08, "samples": 40, "held_out": 512, "judged": 256}
    run = run_of(task=task, probes=[{"use": "denoising-error", "samples": 500}])
    part: Any = run.procedure
    centres, deviation = run.task.mixture()  # type: ignore[attr-defined]
    part.denoised = lambda run, x, t, batch: posterior_mean(part.process, centres, deviation, x, t)
    finding = run.probes[0].look(run)
    assert finding.scalars["truth"] < 1e-10 and 0.3 < finding.scalars["error"] < 0.6
    part.sample_steps = 100
    judged = run.task.judge("test", run.predict, torch.Generator())
    assert judged["w1"] < 0.15 and judged["modes"] == 8 and judged["stray"] < 0.02


def test_its_objective_can_be_asked_again_whoever_asks() -> None:
    """An optimizer with a line search, a probe and a transform pass the model noisy samples too."""
    probes = [{"use": "sharpness", "samples": 20}]
    changes = {"optimizer": {"use": "lbfgs"}, "probes": probes, "transforms": [{"use": "fold"}]}
    _, _, outcome = train(**{**BASE, **changes})
    assert outcome.state == "done" and outcome.metrics["probe/sharpness/sharpness"] > 0
    assert outcome.metrics["transform/fold/error"] < 1e-5 and outcome.metrics["transform/fold/test/w1_before"] > 0
    run = run_of()
    part: Any = run.procedure
    assert run.stream is not None
    batch = run.stream.next()
    made = part.given(run, batch)
    assert part.given(run, made) is made and torch.equal(made.target, batch.x)
    t, draw = part._times[batch.index], part._noise[batch.index]
    assert torch.equal(made.x[:, :2], part.process.noised(batch.x, t, draw)) and torch.equal(made.meta["t"], t)
    expected = part.loss(run.model(made.x), batch.x, t).mean()
    assert torch.allclose(run.oracle(batch).value(), expected)


def test_techniques_see_its_terms() -> None:
    changed, _, _ = train(**BASE, techniques=[{"use": "weight-penalty"}])
    plain, _, _ = train(**BASE)
    assert not torch.equal(changed.model.state_dict()["hidden.weight"], plain.model.state_dict()["hidden.weight"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": {"use": "distribution"}}, "draws them anew"),
        ({"task": {"use": "two-moons"}}, "answers with samples"),
        ({"procedure": {"use": "wgan"}, "decoder": {"use": "reverse-sde"}}, "denoised"),
        ({"procedure": {"use": "wgan"}, "probes": [{"use": "denoising-error"}]}, "denoised"),
        ({"procedure": with_procedure(first_time=1.0)}, "must be before"),
    ],
)
def test_what_does_not_fit_is_refused(changes: Any, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        run_of(**changes)
