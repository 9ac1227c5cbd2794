"""MobileOne blocks: folding is exact for every shape, and what is left is one convolution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.kit.weight_maps import fold
from engine.methods.layers.mobileone_block import MobileOne, MobileOneBlock, identity_kernel
from engine.parts import Offer

IMAGE = Offer("image", (1, 8, 8), "classes", 10)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def lived(module: nn.Module) -> nn.Module:
    """Every norm as training leaves it."""
    for inner in module.modules():
        if isinstance(inner, nn.BatchNorm2d):
            assert inner.running_mean is not None and inner.running_var is not None
            inner.running_mean.normal_()
            inner.running_var.uniform_(0.3, 2)
            nn.init.normal_(inner.weight)
            nn.init.normal_(inner.bias)
    return module.eval()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "size"),
    [
        (4, 4, 1, 3),
        (4, 4, 4, 3),
        (4, 8, 1, 3),
        (4, 4, 2, 5),
        (4, 6, 1, 1),
        (4, 4, 1, 1),
    ],
)
def test_one_convolution_computes_what_the_branches_do(
    inputs: int, outputs: int, groups: int, size: int, stride: int, dtype: torch.dtype, limit: float
) -> None:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups)
    block = lived(MobileOneBlock(conv, k=3)).to(dtype)
    assert isinstance(block, MobileOneBlock)
    assert (block.scale is not None) == (size > 1)
    assert (block.skip is not None) == (stride == 1 and inputs == outputs)
    x = torch.randn(2, inputs, 7, 7, dtype=dtype)
    plain = block.fold()
    assert type(plain) is nn.Conv2d
    assert (plain(x) - block(x)).abs().max() <= limit * max(1.0, block(x).abs().max().item())


def by_hand(block: MobileOneBlock, x: Tensor) -> Tensor:
    """The branches one by one, each convolution and each norm written out."""

    def norm(bn: nn.BatchNorm2d, h: Tensor) -> Tensor:
        mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), correction=0, keepdim=True)
        return (h - mean) / (var + bn.eps).sqrt() * bn.weight.view(-1, 1, 1) + bn.bias.view(-1, 1, 1)

    total = sum(norm(bn, nn.functional.conv2d(x, conv.weight, padding=1)) for conv, bn in block.kernels)  # type: ignore[union-attr, misc]
    scale, bn = block.scale  # type: ignore[misc]
    assert block.skip is not None
    return total + norm(bn, nn.functional.conv2d(x, scale.weight)) + norm(block.skip, x)  # type: ignore[has-type]


def test_in_training_it_is_the_sum_of_its_branches() -> None:
    block = lived(MobileOneBlock(nn.Conv2d(3, 3, 3, padding=1), k=2)).train()
    assert isinstance(block, MobileOneBlock)
    x = torch.randn(5, 3, 6, 6)
    torch.testing.assert_close(block(x), by_hand(block, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_identity_kernel_hands_its_input_on(groups: int) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=False)
    conv.weight = nn.Parameter(identity_kernel(conv))
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(conv(x), x)


@pytest.mark.parametrize("squeeze", ["none", "all"])
def test_a_folded_network_has_one_convolution_a_block_and_no_norm(squeeze: str) -> None:
    counts = []
    for k in (1, 4):
        net = lived(MobileOne(IMAGE, [4, 8], [1, 2], k=k, squeeze=squeeze))  # type: ignore[arg-type]
        x = torch.randn(3, 1, 8, 8)
        expected = net(x)
        blocks = sum(isinstance(module, MobileOneBlock) for module in net.modules())
        plain = fold(net)
        assert blocks == 1 + 2 * 3
        torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-4)
        if squeeze == "none":
            assert sum(isinstance(module, nn.Conv2d) for module in plain.modules()) == blocks
        assert not any(isinstance(m, nn.BatchNorm2d | MobileOneBlock) for m in plain.modules())
        counts.append(sum(p.numel() for p in plain.parameters()))
    assert counts[0] == counts[1], "whatever k was"


def test_what_it_cannot_replace_is_refused() -> None:
    for module in (nn.Linear(2, 2), nn.Conv1d(2, 2, 3), nn.Conv2d(2, 2, 3, padding_mode="circular", padding=1)):
        with pytest.raises(ValueError, match="takes the place of a convolution over images"):
            MobileOneBlock(module)
    for widths, depths, words in (([4], [1, 1], "1 widths and 2 depths"), ([4] * 5, [1] * 5, "Write fewer stages")):
        with pytest.raises(ValueError, match=words):
            MobileOne(IMAGE, widths, depths)
    with pytest.raises(ValueError, match="takes images"):
        MobileOne(Offer("vector", (4,), "classes", 2))


def test_branches_only_where_they_are_wanted() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    bare = MobileOneBlock(conv, k=1, scale_branch=False, skip_branch=False)
    assert bare.scale is None and bare.skip is None and len(bare.kernels) == 1
    uneven = MobileOneBlock(nn.Conv2d(4, 4, 3, padding=0), k=1)
    assert uneven.scale is None and uneven.skip is None, "their images would not fit"
