"""Best-response layers against single examples, the two kinds of step, and ridge regression's known optimum."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from engine.errors import RecipeError
from engine.kit.live import Bound
from engine.methods.tuners.self_tuning_networks import ID, BestResponse, Hyperparameters, SelfTuningNetworks, Told
from engine.parts import Value
from engine.recipe import Recipe, merge
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer
from engine.training.recorder import Memory, Recorder
from engine.training.run import Run

LAYERS = [nn.Linear(5, 4), nn.Linear(5, 4, bias=False), nn.Conv2d(2, 4, 3, 2, 1), nn.Conv1d(4, 4, 3, groups=2)]
INPUTS = [torch.randn(6, 5), torch.randn(6, 3, 5), torch.randn(6, 2, 8, 8), torch.randn(6, 4, 9)]
RATE = "techniques.0.rate"
BASE: dict[str, Any] = {
    "task": {"use": "digits", "train_limit": 200},
    "model": {"use": "mlp", "hidden": [8]},
    "optimizer": {"use": "sgd", "lr": 0.05},
    "techniques": [{"use": "dropout-at-sites", "rate": 0.05}],
    "training": {"outer": 0.2, "batch_size": 16, "evaluate_every": 0},
    "procedure": {"use": ID, "warmup_epochs": 0, "tune": {RATE: {"low": 0.0, "high": 0.9}}},
    "budget": {"steps": 10},
}


def document(**patch: Any) -> dict[str, Any]:
    return filled(Recipe.of(merge(BASE, patch)))


def made(**patch: Any) -> tuple[Run, Trainer]:
    run = assemble(document(**patch), Recorder(Memory()))
    return run, Trainer(run)


def response(layer: nn.Module, hyper: int = 3) -> tuple[BestResponse, Told]:
    told = Told()
    made = BestResponse(copy.deepcopy(layer), torch.linspace(-1, 1, hyper), told)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in (made.scale, made.shift):
            if parameter is not None:
                parameter.normal_(generator=torch.Generator().manual_seed(4))
    return made, told


@pytest.mark.parametrize(("layer", "x"), list(zip(LAYERS, INPUTS, strict=True)))
def test_without_v_and_c_it_is_the_plain_layer(layer: nn.Module, x: torch.Tensor) -> None:
    made, told = response(layer)
    assert not torch.allclose(made(x), layer(x))
    with torch.no_grad():
        for parameter in (made.scale, made.shift):
            if parameter is not None:
                parameter.zero_()
    told.values = torch.randn(6, 3)
    assert torch.equal(made(x), layer(x))


@pytest.mark.parametrize(("layer", "x"), list(zip(LAYERS, INPUTS, strict=True)))
def test_each_sample_is_answered_by_its_own_layer(layer: nn.Module, x: torch.Tensor) -> None:
    made, told = response(layer)
    told.values = rows = torch.randn(6, 3)
    out, squares = made(x), made.weight_square()
    told.values = None
    for i, row in enumerate(rows):
        made.hyper.copy_(row)
        plain = made.fold()
        assert type(plain) is type(layer)
        assert torch.allclose(plain(x[i : i + 1]), out[i : i + 1], atol=1e-5)
        assert torch.allclose(made(x[i : i + 1]), out[i : i + 1], atol=1e-5)
        assert float(squares[i]) == pytest.approx(float(plain.weight.detach().square().sum()), rel=1e-5)  # type: ignore
        assert float(made.weight_square()) == pytest.approx(float(squares[i]), rel=1e-5)


def test_first_weights() -> None:
    torch.manual_seed(0)
    made = BestResponse(nn.Linear(50, 400), torch.zeros(20), Told())
    assert made.shift is not None
    assert [float(p.std()) for p in (made.scale, made.shift)] == pytest.approx([0.01, 0.01], rel=0.05)
    assert float(made.weight_h.abs().max()) == pytest.approx(50**-0.5, rel=0.01), "as a linear layer starts"


def test_the_entropy_is_that_of_a_normal_distribution() -> None:
    values = {"a": Value(0.3), "b": Value(2.0)}
    hyper = Hyperparameters(values, {"a": Bound(0.0, 1.0), "b": Bound(0.0)}, 0.5, True)
    assert hyper.scales().tolist() == pytest.approx([0.5, 0.5], rel=1e-6)
    with torch.no_grad():
        hyper.rho.copy_(torch.tensor([-1.0, 2.0]))
    expected = torch.distributions.Normal(hyper.free, hyper.scales()).entropy().sum()
    assert float(hyper.entropy().detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    drawn = hyper.drawn(40000, torch.Generator().manual_seed(0)).detach()
    assert drawn.mean(0).tolist() == pytest.approx(hyper.free.tolist(), abs=0.05)
    assert drawn.std(0).tolist() == pytest.approx(hyper.scales().tolist(), rel=0.02)


def state(run: Run) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    weights = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    return weights, {n: p.detach().clone() for n, p in run.roles["hyper"].module.named_parameters()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_training_step_moves_the_weights_alone_and_an_outer_step_the_settings_alone() -> None:
    run, _ = made()
    procedure = run.procedure
    assert isinstance(procedure, SelfTuningNetworks)
    weights, hyper = state(run)
    procedure._train(run, run.stream.next())  # type: ignore[union-attr]
    after_weights, after_hyper = state(run)
    assert changed(weights, after_weights) == set(weights) and not changed(hyper, after_hyper)
    assert all(p.grad is None for p in run.roles["hyper"].parameters), "the settings have no part in the training step"
    for _ in range(2):
        procedure._tune(run)
    last_weights, last_hyper = state(run)
    assert not changed(after_weights, last_weights) and changed(after_hyper, last_hyper) == {"free", "rho"}
    assert all(p.grad is None for p in run.model.parameters())
    rate = run.live[RATE].tensor
    assert rate is not None and torch.equal(rate, 0.9 * torch.sigmoid(last_hyper["free"][0])) and not rate.requires_grad
    layer = run.model.head  # type: ignore[union-attr]
    assert torch.equal(layer.hyper, last_hyper["free"])  # type: ignore[union-attr]


def test_they_take_turns_after_the_warm_up() -> None:
    run, trainer = made(procedure={"warmup_epochs": 0.5, "train_steps": 3}, training={"batch_size": 16})
    warm = round(0.5 * run.steps_per_epoch)
    moved = []
    for step in range(warm + 10):
        _, hyper = state(run)
        trainer._step()
        if changed(hyper, state(run)[1]):
            moved.append(step)
    assert moved == [warm + 2, warm + 5, warm + 8]


def test_scales_that_are_given_stay() -> None:
    run, trainer = made(procedure={"tune_scales": False, "perturb_scale": 0.3})
    _, hyper = state(run)
    for _ in range(4):
        trainer._step()
    assert changed(hyper, state(run)[1]) == {"free"}
    assert run.roles["hyper"].module.scales().tolist() == pytest.approx([0.3])  # type: ignore[operator]


def test_a_saved_model_stands_at_the_settings_of_the_moment() -> None:
    run, trainer = made()
    for _ in range(6):
        trainer._step()
    batch = next(run.batches("val"))
    answers = run.predict(batch)
    loaded = assemble(document(), Recorder(Memory()))
    loaded.model.load_state_dict(run.model.state_dict())
    assert torch.equal(loaded.predict(batch), answers)
    from engine.kit.weight_maps import fold

    plain = fold(copy.deepcopy(run.model)).eval()
    assert not any(isinstance(m, BestResponse) for m in plain.modules())
    assert torch.allclose(plain(batch.x), answers, atol=1e-5)


def test_what_it_needs() -> None:
    with pytest.raises(RecipeError, match="It tunes nothing"):
        assemble(filled(Recipe.of({**BASE, "procedure": {"use": ID}})), Recorder(Memory()))
    with pytest.raises(RecipeError, match="write accumulate = 1"):
        made(training={"accumulate": 2})
    with pytest.raises(RecipeError, match=r"training\.outer = 0\.2"):
        made(training={"outer": 0.0})
    with pytest.raises(RecipeError, match=r"Did you mean 'techniques\.0\.rate'"):
        made(procedure={"tune": {"techniques.0.rates": {"low": 0.0, "high": 0.9}}})
    twice = {"use": ID, "tune": {RATE: {"low": 0.5, "high": 0.9}}}
    with pytest.raises(RecipeError, match="which is not in its range"):
        assemble(filled(Recipe.of({**BASE, "procedure": twice})), Recorder(Memory()))
    with pytest.raises(RecipeError, match="nothing that is selected is not"):
        made(procedure={"sites": "conv"})
    mapped = [*BASE["techniques"], {"use": "replace", "layer": {"use": "weight-norm"}}]
    with pytest.raises(RecipeError, match="whose weights are mapped"):
        made(techniques=mapped)
