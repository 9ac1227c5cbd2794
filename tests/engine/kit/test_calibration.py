"""Normalization statistics of batches and anew, against formulas and torch's own update of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from engine.kit.calibration import batch_statistics, calibrate, kept, norms_of, recalibrated


def net(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(12, 5),
        nn.BatchNorm1d(5),
    )  # fmt: skip
    for norm in norms_of(model):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.normal_(norm.weight)
    return model.eval()


def batches(n: int = 4, size: int = 8) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(size, 1, 4, 4) * (k + 1) + k for k in range(n)]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_batch_statistics_are_those_of_the_batch_and_leave_no_trace() -> None:
    model, x = net(), batches(1)[0]
    before = state(model)
    with batch_statistics(model):
        answer = model(x)
    h = model[0](x)
    mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), unbiased=False, keepdim=True)
    shape = (1, 3, 1, 1)
    h = (h - mean) / (var + 1e-5).sqrt() * model[1].weight.view(shape) + model[1].bias.view(shape)
    h = model[5](h.relu().flatten(1))
    expected = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt() * model[6].weight + model[6].bias
    assert torch.allclose(answer, expected, atol=1e-5)
    assert same(state(model), before)
    assert all(not module.training for module in model.modules())
    assert not torch.allclose(model(x), answer), "and running statistics are used again"


def test_recalibration_is_the_plain_mean_over_the_batches() -> None:
    model, data = net(), batches()
    other = net()
    update_bn(data, other)
    assert calibrate(model, model, data) == 4
    assert same(state(model), state(other)), "torch's own, where nothing is random"
    first = torch.stack([model[0](x).mean((0, 2, 3)) for x in data]).mean(0)
    assert torch.allclose(model[1].running_mean, first, atol=1e-6)
    variances = torch.stack([model[0](x).var((0, 2, 3)) for x in data]).mean(0)
    assert torch.allclose(model[1].running_var, variances, rtol=1e-5)


def test_a_statistic_of_the_same_data_is_no_change() -> None:
    """A net whose statistics already are those of the batches answers the same with them measured anew."""
    model, data = net(), batches()
    calibrate(model, model, data)
    before = model(data[0])
    with recalibrated(model, forward=model, batches=data):
        assert torch.equal(model(data[0]), before)


def test_recalibration_ends_with_its_context() -> None:
    model, data = net(), batches()
    before, momenta = state(model), [norm.momentum for norm in norms_of(model)]
    answer = model(data[0])
    with recalibrated(model, forward=model, batches=data):
        assert not same(state(model), before)
        assert all(not module.training for module in model.modules())
        inside = model(data[0])
    assert same(state(model), before) and torch.equal(model(data[0]), answer)
    assert not torch.allclose(inside, answer)
    assert [norm.momentum for norm in norms_of(model)] == momenta
    with pytest.raises(RuntimeError, match="broken"), recalibrated(model, forward=model, batches=data):
        raise RuntimeError("broken")
    assert same(state(model), before), "an error too"


def test_dropout_sleeps_while_statistics_are_measured() -> None:
    sleepy, plain = net(dropout=0.9), net()
    for model in (sleepy, plain):
        calibrate(model, model, batches())
    assert same(state(sleepy), state(plain))


def test_what_is_kept_comes_back() -> None:
    model, x = net(), batches(1)[0]
    before = state(model)
    with kept(model):
        F.mse_loss(model(x), torch.ones(8, 5)).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(parameter.grad if parameter.grad is not None else 1.0)
            model[1].running_mean.zero_()
        assert not same(state(model), before)
    assert same(state(model), before)


def test_norms_are_those_with_statistics_each_once() -> None:
    shared = nn.BatchNorm1d(3)
    model = nn.Sequential(shared, shared, nn.LayerNorm(3), nn.BatchNorm1d(3, track_running_stats=False))
    assert norms_of(model, shared) == [shared]
