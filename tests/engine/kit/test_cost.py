"""Costs against what is counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.kit.cost import cost_of, latency


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Flatten(),
        nn.Linear(4 * 2 * 2, 5),
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_small_net_is_counted_by_hand(device: str) -> None:
    model = net().to(device)
    cost = cost_of(model, torch.zeros(1, 2, 8, 8, device=device))
    assert cost.multiply_adds == 4 * 4 * 4 * 9 * 2 + 2 * 2 * 4 * 9 + 16 * 5
    assert cost.flops == 2 * cost.multiply_adds
    assert cost.parameters == cost.trainable == 4 * 2 * 9 + 8 + 4 * 9 + 4 + 16 * 5 + 5
    assert cost.bytes == 4 * cost.parameters + 4 * 8 + 8, "running statistics, and a counter of eight bytes"
    assert cost.activations == 3 * 4 * 16 + 4 * 4 + 16 + 5
    assert cost.shapes["0"] == [4, 4, 4] and cost.shapes["5"] == [5]


def test_operations_grow_with_the_batch_and_sizes_do_not() -> None:
    one, three = (cost_of(net(), torch.zeros(n, 2, 8, 8)) for n in (1, 3))
    assert one.flops is not None and three.flops == 3 * one.flops
    assert (one.bytes, one.activations, one.shapes) == (three.bytes, three.activations, three.shapes)


def test_counting_leaves_no_trace() -> None:
    model = net().train()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost = cost_of(model, torch.ones(2, 2, 8, 8))
    assert cost.trainable == cost.parameters - 72
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model] == [True, True, False, True, True, True]
    assert not any(module._forward_hooks for module in model.modules())


def test_what_cannot_be_counted_is_unknown_and_the_rest_is_told() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            if float(self.linear(x).sum()) > 0:  # a value, which the meta device does not have
                return x
            return -x

    cost = cost_of(Odd().to("meta"), torch.zeros(1, 3, device="meta"))
    assert cost.flops is None and cost.multiply_adds is None
    assert cost.parameters == 8 and cost.shapes == {"linear": [2]}


def test_latency_grows_with_the_work() -> None:
    small, large = nn.Linear(8, 8), nn.Sequential(*(nn.Linear(700, 700) for _ in range(4)))
    assert 0 < latency(small, torch.zeros(1, 8), repeats=9) < latency(large, torch.zeros(64, 700), repeats=9)
