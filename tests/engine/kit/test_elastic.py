"""Elastic layers against plain ones with copied slices, and what networks of many configurations can do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.kit.elastic import (
    Config,
    Elastic,
    ElasticBatchNorm2d,
    ElasticBlock,
    ElasticConv2d,
    ElasticLinear,
    ElasticStage,
    Resize,
    centre,
)


def randomized(module: nn.Module, seed: int = 0) -> Any:
    """Weights and statistics that are all different."""
    rng = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=rng) + (0.5 if "var" in name else -0.5))
    return module


def images(channels: int = 6, size: int = 8, n: int = 4) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("size", "first"), [(7, 0), (5, 1), (3, 2), (1, 3)])
def test_the_centre_of_a_kernel(size: int, first: int) -> None:
    kernel = torch.arange(49.0).view(1, 1, 7, 7)
    assert torch.equal(centre(kernel, size), kernel[:, :, first : first + size, first : first + size])


def test_a_linear_layer_uses_its_first_inputs_and_outputs() -> None:
    layer, x = randomized(ElasticLinear(6, 5)), torch.randn(3, 4)
    layer.configure(4, 2)
    expected = x @ layer.weight[:2, :4].T + layer.bias[:2]
    assert torch.allclose(layer(x), expected, atol=1e-6) and torch.equal(layer.extract()(x), layer(x))
    assert type(layer.extract()) is nn.Linear
    layer.configure()
    full = nn.Linear(6, 5)
    full.load_state_dict(layer.state_dict())
    assert torch.equal(layer(torch.ones(2, 6)), full(torch.ones(2, 6)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("inputs", "outputs", "kernel"), [(6, 4, 5), (3, 2, 3), (6, 1, 1), (1, 4, 3)])
def test_a_convolution_by_its_slices(inputs: int, outputs: int, kernel: int, stride: int) -> None:
    layer, x = randomized(ElasticConv2d(6, 4, 5, stride, bias=True)), images(inputs)
    layer.configure(inputs, outputs, kernel)
    edge = (5 - kernel) // 2
    weight = layer.weight[:outputs, :inputs, edge : 5 - edge, edge : 5 - edge]
    expected = F.conv2d(x, weight, layer.bias[:outputs], stride, kernel // 2)
    assert torch.equal(layer(x), expected) and torch.equal(layer.extract()(x), expected)
    masked = torch.zeros_like(layer.weight)  # the same as the large kernel with zeros around its centre
    masked[:outputs, :inputs, edge : 5 - edge, edge : 5 - edge] = weight
    padded = F.pad(x, (0, 0, 0, 0, 0, 6 - inputs))
    around = F.conv2d(padded, masked, None, stride, 2)[:, :outputs] + layer.bias[:outputs].view(-1, 1, 1)
    assert torch.allclose(expected, around, atol=1e-5)
    with pytest.raises(ValueError, match="has no centre"):
        ElasticConv2d(3, 3, 4)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_normalization_of_some_channels(momentum: float | None) -> None:
    layer, plain = randomized(ElasticBatchNorm2d(6)), nn.BatchNorm2d(4, momentum=momentum)
    layer.momentum = momentum
    layer.configure(4)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(plain, name).data.copy_(getattr(layer, name)[:4])
    rest = layer.running_mean[4:].clone()
    for mode in (True, True, False):
        layer.train(mode)
        plain.train(mode)
        x = images(4) * (2 if mode else 1)
        assert torch.equal(layer(x), plain(x)) and torch.equal(layer.eval().extract().eval()(x), plain.eval()(x))
    assert torch.equal(layer.running_mean[:4], plain.running_mean) and torch.equal(layer.running_mean[4:], rest)
    layer.train()
    layer.track_running_stats = False
    before = layer.running_mean.clone()
    x = images(4)
    expected = F.batch_norm(x, None, None, layer.weight[:4], layer.bias[:4], True)
    assert torch.equal(layer(x), expected) and torch.equal(layer.running_mean, before)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_equals_the_plain_one_that_is_extracted(stride: int) -> None:
    block = randomized(ElasticBlock(6, 6 * stride, 8, 5, stride)).eval()
    for inputs, outputs, inner, kernel in ((6, 6 * stride, 8, 5), (4, 4 * stride, 3, 3), (2, 2 * stride, 8, 1)):
        block.configure(inputs, outputs, inner, kernel)
        x = images(inputs)
        plain = block.extract().eval()
        assert torch.allclose(block(x), plain(x), atol=1e-6) and block(x).shape[1] == outputs
        assert not any(type(module).__name__.startswith("Elastic") for module in plain.modules())
        assert sum(p.numel() for p in plain.parameters()) == (
            inputs * inner * kernel**2 + inner * outputs * kernel**2 + 2 * (inner + outputs)
            + (inputs * outputs if stride == 2 else 0)
        )  # fmt: skip


def test_a_block_with_zero_gamma_begins_as_its_shortcut() -> None:
    x = images().relu()
    assert torch.equal(ElasticBlock(6, 6, 6, 3)(x), x)
    assert not torch.equal(ElasticBlock(6, 6, 6, 3, zero_gamma=False)(x), x)


def test_a_stage_runs_its_first_blocks() -> None:
    blocks = [randomized(ElasticBlock(6, 6, 6, 3), seed) for seed in range(3)]
    stage = ElasticStage(blocks).eval()
    x = images()
    for depth in (3, 1, 2):
        stage.depth = depth
        expected = x
        for block in blocks[:depth]:
            expected = block(expected)
        assert torch.equal(stage(x), expected) and torch.allclose(stage.extract().eval()(x), expected, atol=1e-6)
    assert list(stage.state_dict()) == list(nn.ModuleList(blocks).state_dict())


def test_images_are_resized() -> None:
    x = images(2)
    assert Resize(8)(x) is x
    assert torch.equal(Resize(5)(x), F.interpolate(x, (5, 5), mode="bilinear", align_corners=False))
    assert torch.allclose(Resize(4)(torch.full((1, 1, 8, 8), 0.3)), torch.full((1, 1, 4, 4), 0.3))


class Two(nn.Module, Elastic):
    """One linear layer with an elastic width, and a number that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = ElasticLinear(3, 4)
        self.configure(self.largest())

    def choices(self) -> dict[str, list[Any]]:
        return {"a.width": [1, 2, 4], "b.width": [1, 2], "a.add": [0.0, 1.0]}

    def _follow(self, config: Config) -> None:
        self.linear.configure(None, config["a.width"])
        self.added = config["a.add"]

    def _extract(self) -> nn.Module:
        return self.linear.extract()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.added


def test_configurations_are_named_drawn_and_counted() -> None:
    model = Two()
    assert model.config == model.largest() == {"a.width": 4, "b.width": 2, "a.add": 1.0}
    assert model.smallest() == {"a.width": 1, "b.width": 1, "a.add": 0.0}
    assert model.middle() == {"a.width": 2, "b.width": 2, "a.add": 1.0} and model.count() == 12
    rng = torch.Generator().manual_seed(0)
    drawn = [model.sample(rng) for _ in range(1200)]
    again = torch.Generator().manual_seed(0)
    assert drawn[:5] == [model.sample(again) for _ in range(5)]
    counts = [sum(config == other for other in drawn) for config in {tuple(c.items()): c for c in drawn}.values()]
    assert len(counts) == 12 and min(counts) > 65 and max(counts) < 140, "every one is equally likely"
    grid = list(model.grid())
    assert len(grid) == 6 and grid[0] == model.smallest() and grid[-1] == model.largest()
    assert {(c["a.width"], c["b.width"]) for c in grid} == {(1, 1), (2, 2), (4, 2)}, "those of a kind move together"
    assert model.mutate(model.largest(), 0.0, rng) == model.largest()
    mutants = [model.mutate(model.largest(), 0.5, rng) for _ in range(2000)]
    changed = sum(config["a.width"] != 4 for config in mutants) / 2000
    assert changed == pytest.approx(0.5 * 2 / 3, abs=0.04)


def test_a_configuration_holds_within_its_context() -> None:
    model, x = Two(), torch.ones(2, 3)
    with pytest.raises(RuntimeError), model.configured(model.smallest()):
        assert model(x).shape == (2, 1) and torch.equal(model(x), model.extract()(x))
        raise RuntimeError
    assert model.config == model.largest() and model(x).shape == (2, 4)
    plain = model.extract(model.smallest())
    assert model.config == model.largest() and plain(x).shape == (2, 1)
    with torch.no_grad():
        model.linear.weight.zero_()
    assert plain(x).abs().sum() > 0, "what was extracted has its own weights"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"a.width": 3, "b.width": 1, "a.add": 0.0}, "a.width = 3 is not one of 1, 2, 4"),
        ({"a.width": 1}, "A configuration sets a.width, b.width, a.add; this one sets a.width"),
    ],
)
def test_what_is_no_choice_is_refused(config: Config, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Two().configure(config)
