"""BigNAS: one step against plain autograd, which children it trains and how, and what calibration is for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import RecipeError
from engine.kit.elastic import Config
from engine.methods.procedures.bignas import BigNAS, undropped
from engine.training.run import Run
from tests.engine.methods.short import ready, train

BASE: dict[str, Any] = {
    "task": {"use": "digits", "train_limit": 200},
    "model": {"use": "elastic-cnn", "widths": [4], "kernels": [3], "dropout": 0.5},
    "procedure": {"use": "bignas"},
    "optimizer": {"use": "sgd", "lr": 0.1, "weight_decay": 0.01},
    "training": {"batch_size": 16, "evaluate_every": 0},
}


def run_of(**changes: Any) -> Run:
    return ready(**{**BASE, **changes})[0]


def stepped(run: Run) -> tuple[list[Config], dict[str, Tensor]]:
    """One step as the loop makes it; the configurations in their order, and the weights before it."""
    seen: list[Config] = []
    model: Any = run.model
    model.register_forward_pre_hook(lambda module, inputs: seen.append(dict(module.config)))
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    assert run.stream is not None
    batch = run.stream.next()
    run.before_step()
    run.batch = batch
    run.procedure.step(run, batch)
    return seen, before


def test_largest_smallest_and_random_children_of_one_batch() -> None:
    run = run_of(procedure={"use": "bignas", "random_children": 3})
    seen, _ = stepped(run)
    model: Any = run.model
    assert seen[:2] == [model.largest(), model.smallest()] and len(seen) == 5
    assert len({str(config) for config in seen}) > 2
    assert model.config == model.largest(), "the largest is what is left"


def test_a_step_is_plain_autograd_on_the_labels_and_on_the_largest_ones_answer() -> None:
    run = run_of(model={**BASE["model"], "dropout": 0.0})
    twin: Any = run_of(model={**BASE["model"], "dropout": 0.0}).model
    model: Any = run.model
    twin.load_state_dict(model.state_dict())
    seen, before = stepped(run)
    assert run.batch is not None
    logits = twin(run.batch.x)
    loss = F.cross_entropy(logits, run.batch.target)
    target = logits.softmax(-1).detach()
    for config in seen[1:]:
        with twin.configured(config):
            loss = loss - (target * twin(run.batch.x).log_softmax(-1)).sum(-1).mean()
    names = [name for name, _ in twin.named_parameters()]
    grads = torch.autograd.grad(loss, list(twin.parameters()))
    for name, grad in zip(names, grads, strict=True):
        moved = before[name] - 0.1 * (grad + 0.01 * before[name])  # weight decay once, not once a child
        assert torch.allclose(model.get_parameter(name), moved, atol=1e-6), name


def test_no_gradient_reaches_the_teachers_answer() -> None:
    """With the largest alone to be moved by its own terms: its gradient is that of the labels and of the children's
    own passes. Here the children are all the largest itself, so that only a detached target gives this gradient."""
    run = run_of(model={**BASE["model"], "dropout": 0.0, "depths": [1], "width_shares": [1.0]})
    model: Any = run.model
    assert model.count() == 1
    twin: Any = run_of(model={**BASE["model"], "dropout": 0.0, "depths": [1], "width_shares": [1.0]}).model
    twin.load_state_dict(model.state_dict())
    _, before = stepped(run)
    assert run.batch is not None
    logits = twin(run.batch.x)
    loss = F.cross_entropy(logits, run.batch.target)
    label = torch.autograd.grad(loss, twin.head.bias, retain_graph=True)[0]
    # CE(f, softmax f held fixed) is stationary at f: it adds nothing, while an entropy of f itself would.
    moved = before["head.bias"] - 0.1 * (label + 0.01 * before["head.bias"])
    assert torch.allclose(model.head.bias, moved, atol=1e-6)


def test_dropout_acts_in_the_largest_alone() -> None:
    run = run_of()
    model: Any = run.model
    acting: list[tuple[bool, bool]] = []
    dropout = model.pool[2]
    model.register_forward_hook(lambda m, i, o: acting.append((m.config == m.largest(), dropout.training)))
    model.train()
    stepped(run)
    assert acting[0] == (True, True) and not any(training for _, training in acting[1:])
    assert dropout.training
    with undropped(model):
        assert not dropout.training and model.training
    assert dropout.training


def test_random_children_learn_the_labels_where_that_is_asked() -> None:
    run = run_of(procedure={"use": "bignas", "children": "random", "distillation": False}, seed=2)
    model: Any = run.model
    terms: dict[str, Tensor] = {}
    update = run.update

    def keep(role: str, given: Any) -> None:
        terms.update({name: term.detach() for name, term in given.items()})
        update(role, given)

    run.update = keep  # type: ignore[method-assign]
    twin: Any = run_of(model={**BASE["model"], "dropout": 0.0}).model
    twin.load_state_dict(model.state_dict())
    seen, _ = stepped(run)
    assert len(seen) == 4 and seen != [model.largest(), model.smallest(), *seen[2:]], "none has a place of its own"
    assert set(terms) == {"task", "child0", "child1", "child2"}
    assert run.batch is not None
    for number, config in enumerate(seen[1:]):
        with twin.configured(config):
            expected = F.cross_entropy(twin(run.batch.x), run.batch.target, reduction="none")
        assert torch.allclose(terms[f"child{number}"], expected, atol=1e-5)


def test_variants_are_measured_beside_the_largest() -> None:
    changes = {"training": {**BASE["training"], "normalization": "recalibrated", "calibration_batches": 3}}
    run, _, outcome = train(**{**BASE, **changes, "budget": {"steps": 12}})
    for variant in ("", "@smallest", "@middle"):
        assert 0 <= outcome.metrics[f"test{variant}/accuracy"] <= 1
    model: Any = run.model
    batch = next(run.batches("test", 32))
    assert model.config == model.largest()
    plain = model.extract(model.smallest()).eval()
    run.normalization = "running"
    assert torch.allclose(run.predict(batch, "smallest"), plain(batch.x), atol=1e-5)
    assert not torch.allclose(run.predict(batch), plain(batch.x), atol=1e-3)
    assert model.config == model.largest()


def test_statistics_that_all_children_share_are_those_of_none() -> None:
    """Measured anew they are the smallest one's own: far better for it, and the largest hardly needs it."""
    base = {**BASE, "budget": {"steps": 100}, "optimizer": {"use": "adamw", "lr": 0.02}}
    sizes = {"widths": [16], "kernels": [3], "depths": [1], "width_shares": [0.25, 1.0]}
    base["model"] = {"use": "elastic-cnn", "dropout": 0.0, **sizes}
    base["procedure"] = {"use": "bignas", "random_children": 0}
    run, _, _ = train(**base)
    shared = run.evaluate("test", "smallest")["loss"]
    run.normalization = "recalibrated"
    assert run.evaluate("test", "smallest")["loss"] < shared - 0.3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": {"use": "cnn"}}, "choose a model of many configurations"),
        (
            {"probes": [{"use": "coarse-to-fine"}], "model": {"use": "cnn"}, "procedure": {"use": "backprop"}},
            "searches",
        ),
    ],
)
def test_a_plain_model_is_refused(changes: Any, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        run_of(**changes)


def test_children_are_drawn_from_the_runs_own_stream() -> None:
    procedure = BigNAS()
    run = run_of()
    model: Any = run.model
    one = procedure.drawn(model, torch.Generator().manual_seed(5))
    assert one == procedure.drawn(model, torch.Generator().manual_seed(5))
    assert one[0] == model.largest() and one[1] == model.smallest() and len(one) == 4
