"""NoProp: the chain's coefficients are the Gaussian posterior, blocks know nothing of each other, a step by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import RecipeError
from engine.methods.procedures.noprop import DenoisingChain, NoiseSchedule, Shared, headless, noisy
from engine.training.run import Run
from tests.engine.methods.short import ready, train

BASE: dict[str, Any] = {
    "task": {"use": "digits", "train_limit": 200},
    "model": {"use": "mlp", "hidden": [16]},
    "procedure": {"use": "noprop", "blocks": 3, "embed_dim": 6, "hidden": 12},
    "optimizer": {"use": "sgd", "lr": 0.1, "momentum": 0.0},
    "training": {"batch_size": 20, "evaluate_every": 0},
    "budget": {"steps": 6},
}


def run_of(**changes: Any) -> Run:
    return ready(**{**BASE, **changes})[0]


def test_the_schedule_by_hand() -> None:
    schedule = NoiseSchedule(4, (1e-3, 0.99))
    expected = [0.0, *(math.cos((1 - t / 4) * math.pi / 2) ** 2 for t in (1, 2, 3)), 0.99]
    assert schedule.abar == pytest.approx(expected, abs=1e-12)
    assert schedule.alpha == pytest.approx([a / b for a, b in pairwise(expected)], abs=1e-12)
    assert schedule.abar == sorted(schedule.abar) and schedule.snr[-1] == pytest.approx(99)
    assert sum(schedule.weight(t) for t in range(1, 5)) == pytest.approx(schedule.snr[-1])
    assert NoiseSchedule(50).abar[1] == 1e-3, "clipped below too"


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_a_step_of_the_chain_is_the_gaussian_posterior(steps: int) -> None:
    """q(z_t | z_(t-1), u) from its prior N(sqrt(abar_t) u, 1 - abar_t) and the likelihood of z_(t-1), which is z_t with
    more noise: N(sqrt(alpha) z_t, 1 - alpha). Precisions add up."""
    schedule = NoiseSchedule(steps)
    for t in range(1, steps + 1):
        abar, alpha = schedule.abar[t], schedule.alpha[t - 1]
        precision = 1 / (1 - abar) + alpha / (1 - alpha)
        of_u = math.sqrt(abar) / (1 - abar) / precision
        of_z = math.sqrt(alpha) / (1 - alpha) / precision
        assert schedule.a[t] == pytest.approx(of_u, abs=1e-8)
        assert schedule.b[t] == pytest.approx(of_z, abs=1e-8)
        assert schedule.c[t] == pytest.approx(1 / precision, abs=1e-8)


class Knowing(nn.Module):
    """A block that knows the label."""

    def __init__(self, u: Tensor):
        super().__init__()
        self.u = u

    def forward(self, z: Tensor, embedding: Tensor, x: Tensor) -> Tensor:
        return self.u.expand(len(z), -1)


def test_with_blocks_that_know_the_label_the_chain_keeps_its_marginals() -> None:
    torch.manual_seed(0)
    u = torch.tensor([1.5, -0.7])
    blocks: Any = [Knowing(u) for _ in range(5)]
    chain = DenoisingChain(blocks, Shared(3, 2, True), NoiseSchedule(5))
    z = noisy(u.expand(200_000, -1), 0.0, torch.Generator().manual_seed(1))
    for t in range(1, 6):
        z = chain.advance(t, z, u.expand(len(z), -1))
        abar = chain.schedule.abar[t]
        assert torch.allclose(z.mean(0), math.sqrt(abar) * u, atol=0.02)
        assert torch.allclose(z.var(0), torch.full((2,), 1 - abar), rtol=0.02)


def test_noise_on_an_embedding_has_its_moments() -> None:
    u = torch.tensor([2.0, -1.0]).expand(200_000, -1)
    z = noisy(u, 0.36, torch.Generator().manual_seed(0))
    assert torch.allclose(z.mean(0), 0.6 * u[0], atol=0.01) and torch.allclose(z.var(0), torch.tensor(0.64), rtol=0.02)


def test_a_blocks_loss_reaches_that_block_and_what_is_shared_alone() -> None:
    run = run_of()
    procedure: Any = run.procedure
    assert run.stream is not None
    batch = run.stream.next()
    for t in (1, 2, 3):
        guessing, reading = procedure.losses(run, batch, t)
        assert guessing.shape == reading.shape == (20,)
        for other in (1, 2, 3):
            own = run.roles[f"block{other}"].parameters
            grads = torch.autograd.grad((guessing + reading).sum(), own, retain_graph=True, allow_unused=True)
            assert all((grad is not None) == (other == t) for grad in grads)
    assert set(run.roles) == {"block1", "block2", "block3", "shared"}
    held = [p for role in run.roles.values() for p in role.parameters]
    assert {id(p) for p in held} == {id(p) for p in run.model.parameters()} and len(held) == len(set(map(id, held)))


def test_a_step_by_hand() -> None:
    """Block after block, each with a step of its own; the shared weights move with every one."""
    run, twin = run_of(), run_of()
    for made in (run, twin):
        assert made.stream is not None
        made.batch = made.stream.next()
        made.before_step()
    run.procedure.step(run, run.batch)  # type: ignore[arg-type]
    chain: Any = twin.model
    schedule, rng, batch = chain.schedule, twin.rng("noprop"), twin.batch
    assert batch is not None
    for t in (1, 2, 3):
        u = chain.shared.embedding[batch.target]
        abar, end = schedule.abar[t - 1], schedule.abar[3]
        z = abar**0.5 * u + (1 - abar) ** 0.5 * torch.randn(20, 6, generator=rng)
        guess = chain.blocks[t - 1](z, chain.shared.embedding, batch.x)
        far = ((guess - u) ** 2).sum(1).mean()
        last = end**0.5 * u + (1 - end) ** 0.5 * torch.randn(20, 6, generator=rng)
        snr = end_of(schedule.abar[t]) - end_of(abar)
        loss = 3 / 2 * 0.1 * snr * far + F.cross_entropy(chain.shared.read(last), batch.target)
        moved = [*chain.blocks[t - 1].parameters(), *chain.shared.parameters()]
        for parameter, grad in zip(moved, torch.autograd.grad(loss, moved), strict=True):
            parameter.data -= 0.1 * grad
    for (name, mine), theirs in zip(run.model.named_parameters(), twin.model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6), name


def end_of(abar: float) -> float:
    return abar / (1 - abar)


def test_a_guess_is_a_mean_of_embeddings() -> None:
    chain: Any = run_of().model
    z, x = torch.randn(4, 6), torch.randn(4, 1, 8, 8)
    block, embedding = chain.blocks[0], chain.shared.embedding
    logits = block.joint(torch.cat([block.features(x), block.noisy(z)], 1))
    assert torch.allclose(block(z, embedding, x), logits.softmax(-1) @ embedding, atol=1e-6)
    assert block.features(x).shape == (4, 16), "the input through the model without its head"


def test_it_answers_by_its_chain_from_noise_and_the_same_each_time() -> None:
    run = run_of()
    batch = next(run.batches("test", 40))
    first = run.predict(batch)
    assert first.shape == (40, 10) and torch.equal(first, run.predict(batch))
    chain: Any = run.model
    torch.manual_seed(0)
    trace = chain.trace(batch.x)
    torch.manual_seed(0)
    embedding, z = chain.shared.embedding, torch.randn(40, 6)
    for t, block in enumerate(chain.blocks, 1):
        s = chain.schedule
        z = s.a[t] * block(z, embedding, batch.x) + s.b[t] * z + s.c[t] ** 0.5 * torch.randn(40, 6)
        assert torch.allclose(trace[t - 1], chain.shared.read(z), atol=1e-5)


def test_without_noise_only_the_start_is_random() -> None:
    chain: Any = run_of(procedure={**BASE["procedure"], "noise": False}).model
    z, guess = torch.randn(4, 6), torch.randn(4, 6)
    assert torch.equal(chain.advance(2, z, guess), chain.schedule.a[2] * guess + chain.schedule.b[2] * z)


def test_one_hot_embeddings_stay_as_they_are() -> None:
    run, _, _ = train(**{**BASE, "procedure": {**BASE["procedure"], "embedding": "one-hot"}})
    chain: Any = run.model
    assert torch.equal(chain.shared.embedding, torch.eye(10)) and run.roles["shared"].names == [
        "read.weight",
        "read.bias",
    ]


def test_it_learns_and_says_how_far_the_chain_has_come() -> None:
    procedure = {"use": "noprop", "blocks": 3, "embed_dim": 16, "hidden": 32}
    changes: dict[str, Any] = {"task": {"use": "digits", "train_limit": 400}, "procedure": procedure}
    changes |= {"optimizer": {"use": "adamw", "lr": 0.02}, "budget": {"epochs": 15}}
    _, _, outcome = train(**{**BASE, **changes, "training": {"batch_size": 40, "evaluate_every": 0}})
    along = [outcome.metrics[f"result/accuracy.{t}"] for t in (1, 2, 3)]
    assert along[2] > along[0] + 0.3 and outcome.metrics["test/accuracy"] > 0.6


def test_the_models_head_is_left_out() -> None:
    run = run_of(procedure={"use": "backprop"})
    features, width = headless(run.model, run.anatomy)
    x = torch.randn(3, 1, 8, 8)
    assert width == 16 and torch.equal(run.anatomy.head(features(x)), run.model(x))
    assert not {id(p) for p in features.parameters()} & {id(p) for p in run.model.parameters()}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": {"use": "tabular", "dataset": "diabetes"}}, "takes noise off a class"),
        ({"training": {"batch_size": 20, "accumulate": 2}}, "a step cannot be split"),
        ({"techniques": [{"use": "label-smoothing"}]}, "does not offer"),
        ({"procedure": {"use": "noprop", "clip": [0.9, 0.1]}}, "leaves nothing between"),
    ],
)
def test_what_does_not_fit_is_refused(changes: Any, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        run_of(**changes)
