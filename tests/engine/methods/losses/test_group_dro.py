"""Group DRO: the weights follow the losses as the formula says, and the step follows the weighted losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from engine.errors import RecipeError
from engine.kit.groups import group_means
from engine.methods.losses.group_dro import GroupDRO, raised
from engine.parts import Batch
from engine.recipe import Recipe
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer
from engine.training.recorder import Memory, Recorder
from engine.training.run import Run

BASE: dict[str, Any] = {
    "task": {"use": "striped-digits", "train_limit": 200},
    "model": {"use": "mlp", "hidden": [16]},
    "optimizer": {"use": "sgd", "lr": 0.1},
    "training": {"batch_size": 40, "threads": 1, "evaluate_every": 0},
    "budget": {"steps": 8},
}


def ready(*techniques: dict[str, Any], **changes: Any) -> Run:
    document = {**BASE, "techniques": list(techniques), **changes}
    return assemble(filled(Recipe.of(document)), Recorder(Memory()))


def dro(**settings: Any) -> dict[str, Any]:
    return {"use": "group-dro", **settings}


def test_constant_losses_drive_the_weights_to_a_vertex_at_the_rate_eta() -> None:
    losses = torch.tensor([0.3, 1.7, 0.9, 1.2], dtype=torch.float64)
    q = torch.full((4,), 0.25, dtype=torch.float64)
    for t in range(1, 401):
        q = raised(q, losses, 0.05)
        assert float(q.sum()) == pytest.approx(1, abs=1e-12)
        if t in (1, 10, 100):
            torch.testing.assert_close(q.log() - q[0].log(), 0.05 * t * (losses - losses[0]), rtol=1e-10, atol=1e-10)
    assert float(q[1]) > 1 - 1e-3
    huge = raised(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([1e5, 1e4, 1e6]), 1.0)
    assert huge.tolist() == [1.0, 0.0, 0.0], "no overflow, and no weight comes back from 0"


def test_the_step_is_that_of_the_weighted_losses_with_the_new_weights_held_fixed() -> None:
    run = ready(dro(eta=0.5, adjustment=0.7))
    run.techniques[0].q = torch.tensor([0.1, 0.2, 0.3, 0.4])  # type: ignore[attr-defined]
    batch = next(run.batches("train", 60))
    output = run.model(batch.x)
    loss = run.terms(output, batch)["task"]
    (grad,) = torch.autograd.grad(loss, output, retain_graph=True)
    each = F.cross_entropy(output, batch.target, reduction="none")
    group = batch.meta["group"]
    count = run.columns("train")["meta.group"].bincount(minlength=4)
    losses = torch.stack([each[group == g].mean() if (group == g).any() else each.sum() * 0 for g in range(4)])
    adjusted = losses.detach() + 0.7 / count.sqrt()
    q = torch.tensor([0.1, 0.2, 0.3, 0.4]) * (0.5 * adjusted).exp()
    q = q / q.sum()
    torch.testing.assert_close(run.techniques[0].q, q)  # type: ignore[attr-defined]
    torch.testing.assert_close(loss.detach(), (q * adjusted).sum())
    torch.testing.assert_close(grad, torch.autograd.grad((q * losses).sum(), output)[0])
    assert not run.techniques[0].q.requires_grad  # type: ignore[attr-defined]


def test_normalized_losses_enter_the_exponent_alone() -> None:
    method = GroupDRO(eta=0.5, normalize=True)
    method.q = torch.tensor([0.5, 0.5])
    found = method.follow(torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(found[1] / found[0], torch.tensor(0.25).exp())


def test_an_absent_group_gives_no_gradient_and_loses_weight() -> None:
    run = ready(dro(eta=1.0))
    rows = (run.columns("train")["meta.group"] != 2).nonzero().flatten()
    columns = run.columns_of("train")
    batch = columns.batch(columns.rows(rows), 0, len(rows))
    run.terms(run.model(batch.x), batch)
    q = run.techniques[0].q  # type: ignore[attr-defined]
    assert float(q[2]) < 0.25 and float(q[2]) == float(q.min())


def test_without_eta_it_is_the_mean_of_the_groups() -> None:
    run = ready(dro(eta=0.0))
    batch = next(run.batches("train", 80))
    output = run.model(batch.x)
    each = F.cross_entropy(output, batch.target, reduction="none")
    expected = group_means(each, batch.meta["group"], 4).mean()
    torch.testing.assert_close(run.terms(output, batch)["task"], expected)


def test_one_group_is_plain_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.methods.tasks import striped_digits

    whole = striped_digits.StripedDigits.load

    def one_group(self: Any) -> None:
        whole(self)
        self.groups = ("all",)
        for columns in self.splits.values():
            columns["meta.group"] = torch.zeros_like(columns["meta.group"])

    monkeypatch.setattr(striped_digits.StripedDigits, "load", one_group)
    weights = []
    for techniques in ([], [dro(eta=3.0)]):
        run = ready(*techniques)
        Trainer(run).train()
        weights.append(torch.cat([p.detach().flatten() for p in run.model.parameters()]))
    torch.testing.assert_close(*weights)


def test_the_weights_move_in_training_alone() -> None:
    run = ready(dro(eta=0.5))
    Trainer(run)._step()
    before = run.techniques[0].q.clone()  # type: ignore[attr-defined]
    run.evaluate("train")
    run.evaluate("val")
    assert torch.equal(run.techniques[0].q, before)  # type: ignore[attr-defined]
    assert before.unique().numel() == 4


def test_sample_weights_count_inside_their_group() -> None:
    run = ready(dro(eta=0.0))
    batch = next(run.batches("train", 80))
    weighted = Batch(batch.inputs, batch.target, batch.index, "train", torch.rand(80), None, batch.meta)
    output = run.model(batch.x)
    each = F.cross_entropy(output, batch.target, reduction="none")
    group, weight = batch.meta["group"], weighted.weight
    assert weight is not None
    means = [(each * weight)[group == g].sum() / weight[group == g].sum() for g in group.unique()]
    torch.testing.assert_close(run.terms(output, weighted)["task"], torch.stack(means).sum() / 4)


def test_what_has_no_groups_or_is_split_is_refused() -> None:
    with pytest.raises(RecipeError, match="it needs the column group, which two-moons does not have"):
        ready(dro(), task={"use": "two-moons"})
    with pytest.raises(RecipeError, match="group-dro couples the samples of a batch"):
        ready(dro(), training={"batch_size": 40, "accumulate": 2})
    ready(dro(), sampler={"use": "balanced", "column": "group"})
