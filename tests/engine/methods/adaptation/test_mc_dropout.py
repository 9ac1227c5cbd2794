"""Monte Carlo dropout: the mean over masks, against masks drawn by hand and the exact mean over all of them."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.kit.supervised import mean_answer
from engine.methods.adaptation.mc_dropout import MCDropout, dropouts, dropping
from engine.parts import Batch
from tests.engine.methods.short import ready

X = torch.linspace(-1, 2, 12).view(4, 3)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        model[3].weight.mul_(5)  # so that the masks disagree
    return model


def run_of(model: nn.Module, kind: str = "classes") -> Any:
    offer = SimpleNamespace(output=kind)
    return SimpleNamespace(model=model, offer=offer, answer=lambda batch: model(batch.x))


def answer(model: nn.Module, samples: int, kind: str = "classes") -> Tensor:
    batch = Batch({"x": X}, None, torch.arange(4))
    with torch.no_grad():
        return MCDropout(samples).predict(run_of(model, kind), batch, torch.Generator())


def test_the_mean_of_probabilities_and_of_values() -> None:
    model = net()
    for kind in ("classes", "values"):
        torch.manual_seed(3)
        found = answer(model, 5, kind)
        torch.manual_seed(3)
        with dropping(model), torch.no_grad():
            each = torch.stack([model(X) for _ in range(5)])
        expected = each.softmax(-1).mean(0).log() if kind == "classes" else each.mean(0)
        assert torch.allclose(found, expected, atol=1e-6)
        assert not torch.allclose(each[0], each[1]), "the masks differ"


def test_many_masks_come_to_the_mean_over_all_masks() -> None:
    model = net()
    h = model[1](model[0](X)).detach()
    masks = torch.tensor(list(itertools.product([0.0, 2.0], repeat=4)))
    exact = torch.stack([model[3](h * mask) for mask in masks]).softmax(-1).mean(0)
    torch.manual_seed(0)
    found = answer(model, 4000).exp()
    assert torch.allclose(found, exact, atol=0.02)
    assert torch.allclose(found.sum(-1), torch.ones(4), atol=1e-5)
    assert not torch.allclose(model(X).softmax(-1), exact, atol=0.02), "which a single pass does not tell"


def test_a_mean_of_one_is_the_answer_itself_up_to_a_constant() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(mean_answer([logits], "classes"), logits.log_softmax(-1))
    assert torch.allclose(mean_answer([logits, logits + 2], "values"), logits + 1)
    assert torch.allclose(mean_answer([logits] * 3, "next-token"), logits.log_softmax(-1), atol=1e-6)
    far = mean_answer([torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])], "classes")
    assert torch.allclose(far, torch.full((1, 2), math.log(0.5))), "nothing overflows"


def test_only_dropout_wakes_and_it_sleeps_again() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Dropout(0.0)).eval()
    assert dropouts(model) == [model[1]]
    with pytest.raises(RuntimeError), dropping(model):
        assert [module.training for module in model] == [False, True, False]
        raise RuntimeError
    assert not any(module.training for module in model.modules())


def test_in_a_run_it_repeats_itself_and_spreads_probability() -> None:
    changes = {"model": {"use": "mlp", "hidden": [16], "dropout": 0.5}, "decoder": {"use": "mc-dropout", "samples": 30}}
    run, _ = ready(**changes)
    with torch.no_grad():
        run.model.head.weight.mul_(20)  # type: ignore[union-attr,operator]
    batch = next(run.batches("test"))
    first = run.predict(batch)
    assert torch.equal(first, run.predict(batch))
    own = run.procedure.predict
    run.decoder = None
    single = run.predict(batch)
    assert own is not None and first.exp().amax(-1).mean() < single.softmax(-1).amax(-1).mean()
