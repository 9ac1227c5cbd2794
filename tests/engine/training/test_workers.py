"""Workers in one process against the plain step and against gradients computed by hand."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from engine import parts
from engine.errors import AthanorError, RecipeError
from engine.parts import Batch, Technique
from engine.training.loop import Trainer
from engine.training.workers import Workers
from tests.engine.methods.short import ready, train
from tests.engine.training.own import offer


@parts.technique(id="middle")
class Middle(Technique):
    """Steps with the gradient of one worker alone."""

    def __init__(self, worker: int = 0) -> None:
        self.worker = worker
        self._seen: list[Any] = []

    def reduce(self, run: Any, role: Any, shards: list[list[Tensor]]) -> list[Tensor]:
        self._seen.append(shards)
        return run.workers.gather(shards, bytes=10)[self.worker]


@parts.technique(id="averaging")
class Averaging(Technique):
    """What happens without an owner, as an owner."""

    def reduce(self, run: Any, role: Any, shards: list[list[Tensor]]) -> list[Tensor]:
        return run.workers.mean(shards)


@parts.loss(id="coupled")
class Coupled(parts.Loss):
    """Couples the samples of a batch."""

    additive: ClassVar[bool] = False

    def __call__(self, output: Any, batch: Batch) -> parts.Terms:
        return {"task": output.logsumexp(0).mean()}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Middle, Averaging, Coupled)


def weights(run: Any) -> list[Tensor]:
    return [p.detach().clone() for p in run.model.parameters()]


TRAINING = {"batch_size": 16}


@pytest.mark.parametrize("split", [{"workers": 4}, {"workers": 3}, {"workers": 2, "accumulate": 2}])
@pytest.mark.parametrize("owner", [[], [{"use": "averaging"}]])
def test_workers_that_average_are_the_plain_step(split: dict[str, int], owner: list[Any]) -> None:
    plain, _, one = train(training=TRAINING)
    shared, _, other = train(training={**TRAINING, **split}, techniques=owner)
    for a, b in zip(weights(plain), weights(shared), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert other.metrics["val/loss"] == pytest.approx(one.metrics["val/loss"], rel=1e-5)
    assert plain.counts["samples"] == shared.counts["samples"]
    assert shared.counts["bytes-sent"] == 12 * split["workers"] * 4 * sum(p.numel() for p in plain.model.parameters())
    assert plain.counts["bytes-sent"] == 0


def test_each_workers_gradient_is_the_mean_over_its_part() -> None:
    run, _ = ready(training={**TRAINING, "workers": 3}, techniques=[{"use": "middle", "worker": 1}])
    twin, _ = ready(training=TRAINING)
    assert twin.stream is not None
    batch = twin.stream.next()
    Trainer(run)._step()
    (shards,) = run.techniques[0]._seen  # type: ignore[attr-defined]
    assert run.workers.shares == [5 / 16, 5 / 16, 6 / 16]
    for shard, rows in zip(shards, (slice(0, 5), slice(5, 10), slice(10, 16)), strict=True):
        part = batch.cut(rows)
        loss = twin.task.objective(part.call(twin.model), part)["task"].mean()
        for mine, theirs in zip(shard, torch.autograd.grad(loss, list(twin.model.parameters())), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    for now, before, grad in zip(weights(run), weights(twin), shards[1], strict=True):
        torch.testing.assert_close(now, before - 0.1 * grad, rtol=1e-6, atol=1e-7)
    assert run.counts["bytes-sent"] == 3 * 10, "the size of the message as the method says it"


def test_an_owner_also_acts_where_there_is_one_worker() -> None:
    plain, _, _ = train()
    owned, _, _ = train(techniques=[{"use": "middle"}])
    for a, b in zip(weights(plain), weights(owned), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert owned.counts["bytes-sent"] == 0, "a single worker has nobody to send to"


def problem(**changes: Any) -> Any:
    with pytest.raises(RecipeError) as caught:
        ready(**changes)
    (found,) = caught.value.problems
    assert found.message.endswith(".")
    return found


def test_two_owners_of_reduce_are_refused_and_one_works() -> None:
    found = problem(techniques=[{"use": "middle"}, {"use": "averaging"}], training={**TRAINING, "workers": 2})
    assert found.path == "techniques.1" and "which middle does already; there can be one" in found.message
    off = [{"use": "middle", "enabled": False}, {"use": "averaging"}]
    ready(techniques=off, training={**TRAINING, "workers": 2})


@pytest.mark.parametrize("split", [{"workers": 2}, {"accumulate": 2}])
def test_a_loss_that_couples_samples_is_not_split(split: dict[str, int]) -> None:
    (name,) = split
    found = problem(loss={"use": "coupled"}, training={**TRAINING, **split})
    assert found.path == f"training.{name}" and f"write {name} = 1" in found.message
    ready(loss={"use": "coupled"}, training=TRAINING)


@pytest.mark.parametrize("split", [{"workers": 2}, {"accumulate": 2}])
@pytest.mark.parametrize("optimizer", ["lbfgs", "sania"])
def test_an_optimizer_that_looks_at_the_batch_again_gets_it_whole(optimizer: str, split: dict[str, int]) -> None:
    found = problem(optimizer={"use": optimizer}, training={**TRAINING, **split})
    assert "asks for the loss of the whole batch again" in found.message
    ready(optimizer={"use": optimizer}, training=TRAINING)


def test_every_worker_needs_a_sample() -> None:
    found = problem(training={"batch_size": 4, "workers": 5})
    assert found.path == "training.workers" and "a batch of 4 samples" in found.message
    found = problem(training={"batch_size": 16, "workers": 5})  # 84 samples: the last batch holds 4
    assert "a batch of 4 samples (of 84) cannot be shared by 5 workers" in found.message
    ready(training={"batch_size": 14, "workers": 5})
    with pytest.raises(AthanorError, match="cannot be shared by 3 workers"):
        list(Workers(3).parts(Batch({"x": torch.zeros(2, 1)}, None, torch.arange(2))))


def test_the_scaling_of_fp16_is_refused_and_bf16_works() -> None:
    found = problem(training={**TRAINING, "workers": 2, "precision": "fp16"})
    assert found.path == "training.precision" and 'write precision = "bf16"' in found.message
    run, _, outcome = train(training={**TRAINING, "workers": 2, "precision": "bf16"})
    assert outcome.state == "done" and run.counts["gradient-passes"] == 24


def test_parameters_that_no_worker_uses_stay() -> None:
    run, _ = ready(training={**TRAINING, "workers": 2})
    role = run.roles["main"]
    for _ in run.workers.here:
        role.keep_shard(0.5)
    assert all(not bool(t.any()) for shard in role.take_shards() for t in shard)
