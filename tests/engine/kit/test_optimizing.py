"""The foreach frame: bundles, 32-bit arithmetic beside 16-bit weights, refusals, closures, groups."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from engine.kit.optimizing import Bundle, ForeachOptimizer, descend, fused_fits, listed


class Summing(ForeachOptimizer):
    """Steps along the sum of all gradients so far; notes how its parameters were bundled."""

    buffers = ("total",)

    def __init__(self, params, lr=1.0, maximize=False):
        self.seen = []
        super().__init__(listed(params), {"lr": lr, "maximize": maximize})

    def update(self, bundle: Bundle) -> None:
        self.seen.append((len(bundle.parameters), bundle.step, bundle.group["lr"]))
        total = bundle.buffers("total")
        torch._foreach_add_(total, bundle.gradients)
        descend(bundle.values, total, bundle.group["lr"])


def _parameter(value, dtype=torch.float32, grad=1.0):
    parameter = nn.Parameter(torch.full((2,), value, dtype=dtype))
    parameter.grad = None if grad is None else torch.full((2,), grad, dtype=dtype)
    return parameter


def test_parameters_are_bundled_by_group_type_and_steps_done():
    a, b, late, narrow = _parameter(0.0), _parameter(0.0), _parameter(0.0, grad=None), _parameter(0.0, torch.bfloat16)
    other = _parameter(0.0)
    optimizer = Summing([{"params": [a, b, late, narrow]}, {"params": other, "lr": 0.5}])
    optimizer.step()
    assert optimizer.seen == [(2, 1, 1.0), (1, 1, 1.0), (1, 1, 0.5)]
    assert torch.equal(late, torch.zeros(2)) and not optimizer.state[late]
    late.grad = torch.ones(2)
    optimizer.seen.clear()
    optimizer.step()
    assert sorted(optimizer.seen) == [(1, 1, 1.0), (1, 2, 0.5), (1, 2, 1.0), (2, 2, 1.0)]
    assert torch.equal(a, torch.full((2,), -3.0)) and torch.equal(other, torch.full((2,), -1.5))


def test_sixteen_bit_weights_keep_a_state_of_32_bits_also_through_a_save():
    narrow = _parameter(1.0, torch.bfloat16, grad=1.0)
    optimizer = Summing([narrow], lr=0.0)
    for grad in (256.0, 1.0, 1.0):  # in bfloat16, 256 + 1 is 256
        narrow.grad = torch.full((2,), grad, dtype=torch.bfloat16)
        optimizer.step()
    assert torch.equal(optimizer.state[narrow]["total"], torch.full((2,), 258.0))
    again = Summing([narrow], lr=0.0)
    again.load_state_dict(deepcopy(optimizer.state_dict()))
    assert torch.equal(again.state[narrow]["total"], torch.full((2,), 258.0))
    assert again.state[narrow]["step"] == 3


def test_maximize_climbs_and_leaves_the_gradients_alone():
    up = _parameter(0.0)
    Summing([up], maximize=True).step()
    assert torch.equal(up, torch.ones(2)) and torch.equal(up.grad, torch.ones(2))


def test_a_closure_is_called_with_gradients_on_and_its_loss_comes_back():
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = Summing([weight], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert weight.item() == pytest.approx(3.0 - 0.1 * 6.0)


def test_complex_parameters_and_sparse_gradients_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match="real and imaginary"):
        Summing([torch.zeros(2, dtype=torch.complex64, requires_grad=True)])
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        Summing(embedding.parameters()).step()


def test_a_rate_in_a_tensor_steps_like_a_number():
    values, directions = [torch.ones(3), torch.ones(2)], [torch.full((3,), 2.0), torch.full((2,), 4.0)]
    by_tensor = [v.clone() for v in values]
    descend(values, directions, 0.25)
    descend(by_tensor, directions, torch.tensor(0.25))
    assert values[0].tolist() == [0.5] * 3 and values[1].tolist() == [0.0] * 2
    assert all(torch.equal(a, b) for a, b in zip(values, by_tensor, strict=True))
    assert directions[0].tolist() == [2.0] * 3


def test_fused_kernels_are_for_real_floats_on_a_device_that_has_them():
    assert fused_fits(listed(nn.Linear(2, 2).parameters()))
    assert fused_fits(listed(nn.Linear(2, 2).named_parameters()))
    assert not fused_fits(listed(nn.Linear(2, 2, device="meta").parameters()))
    assert not fused_fits([])
