"""Weights from one model to another: by name and shape, through maps, with a report of what was left."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations

from engine.kit.weight_maps import add_map
from engine.training.carry import carry


class Half(nn.Module):
    """A map that keeps every other entry: what is computed with is not what is trained."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * (torch.arange(weight.numel()).view_as(weight) % 2)


def net(outputs: int = 3, middle: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, middle), nn.BatchNorm1d(middle), nn.ReLU(), nn.Linear(middle, outputs))


def test_an_equal_model_becomes_the_same() -> None:
    old, new = net(), net()
    old(torch.randn(7, 4))  # running statistics are carried too
    report = carry(old, new)
    assert report.count == len(old.state_dict()) and not (report.reshaped or report.fresh or report.unused)
    for name, tensor in old.state_dict().items():
        assert torch.equal(tensor, new.state_dict()[name]) and tensor.data_ptr() != new.state_dict()[name].data_ptr()


def test_what_does_not_fit_stays_and_is_told() -> None:
    old, new = net(outputs=2), net(outputs=3)
    new.append(nn.Linear(3, 3))
    del old[2]
    old.append(nn.Linear(2, 2))
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    report = carry(old, new)
    assert report.reshaped == ["3.weight", "3.bias"] and report.fresh == ["4.weight", "4.bias"]
    assert report.unused == ["2.weight", "2.bias"]
    for name in report.reshaped + report.fresh:
        assert torch.equal(new.state_dict()[name], before[name])
    words = report.sentence("run:3f2a")
    assert "7 of its 11 tensors are taken" in words and "3.weight" in words and "2.bias" in words


def test_a_map_on_one_side_alone_passes_what_is_computed_with() -> None:
    plain, masked = net(), net()
    add_map(masked[0], "weight", Half(), "mask", "half")
    used = masked[0].weight.clone()
    report = carry(masked, plain)
    assert torch.equal(plain[0].weight, used) and report.mapped == {"0.weight"} and not report.unused

    other = net()
    add_map(other[0], "weight", Half(), "mask", "half")
    report = carry(plain, other)
    assert torch.equal(other[0].parametrizations.weight.original, plain[0].weight)
    assert report.fresh == [] and report.unused == []


def test_the_same_map_on_both_sides_passes_what_is_trained() -> None:
    old, new = net(), net()
    for model in (old, new):
        add_map(model[0], "weight", Half(), "mask", "half")
    carry(old, new)
    assert torch.equal(new[0].parametrizations.weight.original, old[0].parametrizations.weight.original)


def test_a_geometry_that_can_be_inverted_is() -> None:
    plain, normed = net(), net()
    parametrizations.weight_norm(normed[0])
    assert carry(plain, normed).fresh == []
    torch.testing.assert_close(normed[0].weight, plain[0].weight, rtol=1e-6, atol=1e-7)
