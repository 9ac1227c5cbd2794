"""Weight normalization: the reparametrization, the start from data, mean-only batch norm, folding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.kit import weight_maps
from engine.methods.layers.weight_norm import WeightNorm


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def modules() -> list[tuple[nn.Module, Tensor]]:
    return [
        (nn.Linear(5, 4).double(), torch.randn(7, 5, dtype=torch.float64)),
        (nn.Conv2d(2, 4, 3, padding=1).double(), torch.randn(7, 2, 6, 6, dtype=torch.float64)),
        (nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular").double(), torch.randn(7, 2, 6, dtype=torch.float64)),
    ]


@pytest.mark.parametrize("case", range(3))
def test_outputs_and_gradients_agree_with_torch(case: int) -> None:
    module, x = modules()[case]
    plain = modules()[case][0]
    plain.load_state_dict(module.state_dict())
    theirs = nn.utils.parametrizations.weight_norm(plain, dim=0)
    mine = WeightNorm(module, init="weights")
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-12, atol=1e-12)
    for layer in (mine, theirs):
        layer(x).square().sum().backward()
    stored = theirs.parametrizations.weight
    torch.testing.assert_close(weight_maps.latent(module).grad, stored.original1.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mine.length.g.grad, stored.original0.grad.flatten(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(module.bias.grad, plain.bias.grad, rtol=1e-12, atol=1e-12)


def test_the_start_that_keeps_the_weights_keeps_the_function() -> None:
    for module, x in modules():
        before = module(x)
        layer = WeightNorm(module, init="weights")
        layer.init_from(x)
        torch.testing.assert_close(layer(x), before, rtol=1e-12, atol=1e-12)


def test_the_gradient_of_v_is_at_right_angles_and_steps_only_lengthen_it() -> None:
    module = nn.Linear(5, 4).double()
    layer = WeightNorm(module)
    v, optimizer = weight_maps.latent(module), torch.optim.SGD(layer.parameters(), lr=1e-3)
    norms = [v.detach().norm(dim=1)]
    for _ in range(20):
        optimizer.zero_grad()
        layer(torch.randn(7, 5, dtype=torch.float64)).square().sum().backward()
        assert (v.grad * v).sum(1).abs().max() < 1e-12 * v.grad.norm() * v.norm()
        optimizer.step()
        norms.append(v.detach().norm(dim=1))
        assert (norms[-1] > norms[-2]).all()


def test_scaling_v_leaves_the_outputs_and_divides_its_gradient() -> None:
    module, x = modules()[1]
    layer = WeightNorm(module)
    v = weight_maps.latent(module)
    first = layer(x)
    first.pow(3).sum().backward()
    grad, v.grad = v.grad.clone(), None
    with torch.no_grad():
        v.mul_(10)
    second = layer(x)
    torch.testing.assert_close(second, first, rtol=1e-12, atol=1e-12)
    second.pow(3).sum().backward()
    torch.testing.assert_close(v.grad, grad / 10, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mean_only", [False, True])
@pytest.mark.parametrize("case", range(3))
def test_after_the_start_the_batch_is_standardized(case: int, mean_only: bool) -> None:
    module, x = modules()[case]
    layer = WeightNorm(module, mean_only_bn=mean_only)
    layer.init_from(3 * x + 5)
    for mode in (True, False):  # the running mean is set too
        out = layer.train(mode)(3 * x + 5)
        axes = [d for d in range(out.dim()) if d != (out.dim() - 1 if isinstance(module, nn.Linear) else 1)]
        std, mean = torch.std_mean(out, axes, correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9)
        torch.testing.assert_close(std, torch.ones_like(std), rtol=1e-9, atol=0)


def test_a_constant_unit_keeps_length_one() -> None:
    layer = WeightNorm(nn.Linear(3, 2))
    x = torch.full((8, 3), 0.3)
    layer.init_from(x)
    assert torch.equal(layer.length.g, torch.ones(2))
    torch.testing.assert_close(layer(x), torch.zeros(8, 2), atol=1e-6, rtol=0)


def test_a_stack_starts_layer_by_layer() -> None:
    stack = nn.Sequential(WeightNorm(nn.Linear(6, 5)), nn.ReLU(), WeightNorm(nn.Linear(5, 5, bias=False))).double()
    x = torch.randn(64, 6, dtype=torch.float64)
    for layer in (stack[0], stack[2]):
        layer.register_forward_pre_hook(lambda module, inputs: module.init_from(*inputs))
    std, mean = torch.std_mean(stack(x), 0, correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9)
    torch.testing.assert_close(std, torch.ones_like(std), rtol=1e-9, atol=0)


def test_mean_only_batch_norm() -> None:
    module, x = modules()[1]
    layer = WeightNorm(module, init="weights", mean_only_bn=True, bn_momentum=0.75)
    with torch.no_grad():
        layer.bias.copy_(torch.arange(4.0))
    raw = nn.functional.conv2d(x, module.weight, padding=1)
    mean = raw.mean((0, 2, 3))
    shifted = raw - mean.view(-1, 1, 1) + torch.arange(4.0, dtype=torch.float64).view(-1, 1, 1)
    torch.testing.assert_close(layer(x), shifted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.running_mean, 0.25 * mean, rtol=1e-12, atol=1e-12)
    layer.zero_grad()
    layer(x)[0, 0, 0, 0].backward()  # the gradient flows through the mean: the batch's other samples matter
    alone = weight_maps.latent(module).grad.clone()
    layer.zero_grad()
    layer(torch.cat([x[:1], 2 * x[1:]]))[0, 0, 0, 0].backward()
    assert not torch.allclose(weight_maps.latent(module).grad, alone)


@pytest.mark.parametrize("mean_only", [False, True])
@pytest.mark.parametrize("case", range(3))
def test_folded_it_computes_the_same(case: int, mean_only: bool) -> None:
    module, x = modules()[case]
    layer = WeightNorm(module, mean_only_bn=mean_only)
    layer.init_from(x)
    layer(x)
    layer.eval()
    before = layer(x + 1)
    holder = nn.Sequential(layer)
    weight_maps.fold(holder)
    assert type(holder[0]) is type(modules()[case][0])
    assert sorted(holder.state_dict()) == ["0.bias", "0.weight"]
    torch.testing.assert_close(holder(x + 1), before, rtol=1e-12, atol=1e-12)


def test_a_mask_acts_on_the_normalized_weight() -> None:
    class FirstOnly(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w * torch.tensor([1.0, 0.0, 0.0])

    module = nn.Linear(3, 2)
    weight_maps.add_map(module, "weight", FirstOnly(), "mask", "part")
    layer = WeightNorm(module, init="weights")
    v = weight_maps.latent(module)
    torch.testing.assert_close(module.weight[:, 0], (layer.length.g / v.norm(dim=1) * v[:, 0]))
    assert (module.weight[:, 1:] == 0).all()


def test_decay_acts_on_lengths_alone() -> None:
    layer = WeightNorm(nn.Linear(3, 2))
    options = layer.param_options()
    assert set(options) <= {name for name, _ in layer.named_parameters()}
    assert dict(layer.named_parameters())[next(iter(options))] is weight_maps.latent(layer.layer)
    assert list(options.values()) == [{"weight_decay": 0.0}]


def test_other_modules_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a linear or convolutional module, and this is a ReLU"):
        WeightNorm(nn.ReLU())
