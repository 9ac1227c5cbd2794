"""The elastic network: each of its networks is the plain one with copied slices, and the largest is all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.kit.calibration import calibrate
from engine.kit.cost import cost_of
from engine.methods.models.elastic_cnn import ElasticCNN
from engine.parts import Offer

OFFER = Offer("image", (1, 8, 8), "classes", 10)


def net(**settings: Any) -> ElasticCNN:
    torch.manual_seed(0)
    settings = {"widths": [4, 8], "resolutions": [6, 8], "expansions": [0.5, 1.0], "zero_gamma": False, **settings}
    model = ElasticCNN(OFFER, **settings)
    for name, tensor in model.state_dict().items():
        if "running" in name or "norm" in name:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return model


def images(n: int = 5) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_any_child_equals_the_plain_network_with_its_slices() -> None:
    model, x = net().eval(), images()
    rng = torch.Generator().manual_seed(0)
    configs = [model.smallest(), model.middle(), model.largest(), *(model.sample(rng) for _ in range(8))]
    for config in configs:
        plain = model.extract(config)
        with model.configured(config):
            answer = model(x)
        assert torch.allclose(plain(x), answer, atol=1e-6)
        assert {type(m).__module__.partition(".")[0] for m in plain.modules() if not list(m.children())} <= {
            "torch", "engine"
        }  # fmt: skip
    assert model.config == model.largest()


def test_every_choice_changes_the_answer() -> None:
    model, x = net().eval(), images()
    whole = model(x)
    for name, values in model.choices().items():
        for value in values[:-1]:
            with model.configured(model.largest() | {name: value}):
                assert (model(x) - whole).abs().max() > 1e-3, name
    assert torch.equal(model(x), whole)


def test_a_child_still_equals_its_plain_self_with_statistics_measured_anew() -> None:
    model, data = net().eval(), [images(8), images(8) * 2]
    with model.configured(model.smallest()):
        plain = model.extract()
        calibrate(model, model, data)
        calibrate(plain, plain, data)
        assert torch.allclose(model(data[0]), plain(data[0]), atol=1e-5)


def test_the_largest_is_the_whole_network_by_plain_operations() -> None:
    model, x = net(resolutions=[], depths=[1], widths=[4]).eval(), images()

    def normed(norm: nn.BatchNorm2d, h: Tensor) -> Tensor:
        return F.batch_norm(h, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    h = normed(model.stem_norm, F.conv2d(x, model.stem_conv.weight, padding=2)).relu()
    block: Any = model.stages[0][0]  # type: ignore[index]
    inner = normed(block.first_norm, F.conv2d(h, block.first.weight, padding=2)).relu()
    h = (normed(block.second_norm, F.conv2d(inner, block.second.weight, padding=2)) + h).relu()
    expected = F.linear(h.mean((2, 3)), model.head.weight, model.head.bias)
    assert torch.allclose(model(x), expected, atol=1e-5)


def test_sizes_are_as_configured() -> None:
    model = net()
    assert model.count() == 2 * (2 * 3 * 2 * 2) ** 2
    costs = []
    for config in (model.smallest(), model.largest()):
        plain = model.extract(config)
        costs.append(cost_of(plain, images(1)))
        with model.configured(config):
            assert cost_of(model, images(1)).flops == costs[-1].flops
    assert costs[1].parameters == sum(p.numel() for p in model.parameters())
    assert costs[0].flops is not None and costs[1].flops is not None and 20 * costs[0].flops < costs[1].flops
    small = model.extract(model.smallest())
    assert [tuple(p.shape) for n, p in small.named_parameters() if p.dim() == 4] == [
        (2, 1, 3, 3), (1, 2, 3, 3), (2, 1, 3, 3), (2, 2, 3, 3), (4, 2, 3, 3), (4, 2, 1, 1)
    ]  # fmt: skip
    assert small(images()).shape == (5, 10)


def test_only_what_a_child_uses_has_a_gradient() -> None:
    model = net()
    model.configure(model.smallest())
    model(images()).sum().backward()
    grad = model.stages[1][0].second.weight.grad  # type: ignore[index,union-attr]
    assert grad is not None and grad[:4, :2, 1:4, 1:4].abs().sum() > 0
    rest = grad.clone()
    rest[:4, :2, 1:4, 1:4] = 0
    assert not rest.any()
    assert model.stages[1][1].first.weight.grad is None  # type: ignore[index,union-attr]


def test_blocks_begin_as_their_shortcuts() -> None:
    model = ElasticCNN(OFFER, zero_gamma=True).eval()
    deep, shallow = model.largest(), model.largest() | {"stage0.depth": 1, "stage1.depth": 1}
    with model.configured(shallow):
        expected = model(images())
    with model.configured(deep):
        assert torch.equal(model(images()), expected)


@pytest.mark.parametrize(
    ("offer", "settings", "sentence"),
    [
        (Offer("vector", (2,), "classes", 2), {}, "takes square images"),
        (Offer("image", (1, 8, 6), "classes", 2), {}, "takes square images"),
        (OFFER, {"kernels": [4]}, "has no centre"),
        (OFFER, {"widths": [4, 4, 4], "resolutions": [2, 8]}, "3 stages halve the image 2 times"),
    ],
)
def test_what_does_not_fit_is_refused(offer: Offer, settings: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ElasticCNN(offer, **settings)


def test_its_anatomy_names_every_site() -> None:
    anatomy = net().anatomy()
    assert len(anatomy.blocks) == 4 and anatomy.head is anatomy.module.head
    assert len(anatomy.sites("norm")) == 1 + 2 * 4 and len(anatomy.sites("conv")) == 1 + 2 * 4 + 1
