"""Folding against PyTorch's own fusion, and against the models that were folded."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from engine.kit.folding import Affine, folded, merge_after, merge_before, merge_norms, scale_and_shift, takes_before


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def lived(norm: Any) -> Any:
    """A norm as training leaves it: no statistic or gain where it began."""
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.2, 3)
        if norm.affine:
            norm.weight.normal_()
            norm.bias.normal_()
    return norm.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (4, 1), (4, 2), (2, 1)])
def test_a_convolution_takes_the_norm_after_it(groups: int, stride: int, bias: bool) -> None:
    conv = nn.Conv2d(4, 8, 3, stride, 1, groups=groups, bias=bias).double()
    norm = lived(nn.BatchNorm2d(8)).double()
    x = torch.randn(3, 4, 7, 7, dtype=torch.float64)
    expected, fused = norm(conv(x)), fuse_conv_bn_eval(conv.eval(), norm)
    merge_after(conv, norm)
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(conv.weight, fused.weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(conv.bias, fused.bias, rtol=0, atol=1e-12)


def test_a_matrix_takes_the_norm_after_it_in_its_own_precision() -> None:
    linear, norm = nn.Linear(5, 6), lived(nn.BatchNorm1d(6))
    x = torch.randn(9, 5)
    expected, fused = norm(linear(x)), fuse_linear_bn_eval(linear.eval(), norm)
    merge_after(linear, norm)
    assert linear.weight.dtype == torch.float32
    torch.testing.assert_close(linear(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(linear.weight, fused.weight)


def test_a_norm_without_gains_is_folded_too() -> None:
    conv, norm = nn.Conv1d(3, 4, 3), lived(nn.BatchNorm1d(4, affine=False))
    x = torch.randn(2, 3, 9)
    expected = norm(conv(x))
    merge_after(conv, norm)
    torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_layer_takes_the_norm_before_it(groups: int) -> None:
    conv, norm = nn.Conv2d(4, 8, 3, groups=groups).double(), lived(nn.BatchNorm2d(4)).double()
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    expected = conv(norm(x))
    merge_before(conv, norm)
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-12)
    linear, affine = nn.Linear(5, 6, bias=False).double(), Affine(torch.randn(5), torch.randn(5), -1).double()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    expected = linear(affine(x))
    merge_before(linear, affine)
    torch.testing.assert_close(linear(x), expected, rtol=0, atol=1e-12)


def test_what_pads_with_zeros_takes_no_shift_before_it() -> None:
    assert takes_before(nn.Linear(1, 1)) and takes_before(nn.Conv2d(1, 1, 3)) and not takes_before(nn.ReLU())
    assert not takes_before(nn.Conv2d(1, 1, 3, padding=1)) and not takes_before(nn.Conv2d(1, 1, 3, padding="same"))
    assert takes_before(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"))


def test_only_what_is_fixed_in_evaluation_folds() -> None:
    for norm in (nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3), nn.GroupNorm(1, 3)):
        assert scale_and_shift(norm) is None
        with pytest.raises(ValueError, match="no fixed scale and shift"):
            folded(torch.eye(3), None, norm)


class Both(nn.Module):
    """Every way in which a norm can and cannot be merged."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Identity(), lived(nn.BatchNorm2d(4)))
        self.open, self.open_norm = nn.Conv2d(4, 4, 1), lived(nn.BatchNorm2d(4))  # its output is used twice
        self.shared = nn.Conv2d(4, 4, 1)
        self.shared_norm = lived(nn.BatchNorm2d(4))
        self.before, self.padded = lived(nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 3, padding=1)
        self.flat_norm, self.drop = lived(nn.BatchNorm1d(4)), nn.Dropout(0.5)
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)
        self.rows, self.row_norm = nn.Linear(3, 3), lived(nn.BatchNorm1d(2))  # its channels are not the outputs

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = self.open(x)
        x = self.open_norm(y) + y
        x = torch.relu(self.shared_norm(self.shared(self.shared(x))))
        x = self.padded(self.before(x)).mean((2, 3))
        x = self.drop(self.flat_norm(x))
        x = torch.stack([self.one(x), self.two(x)], 1)
        return self.row_norm(self.rows(x))


def test_norms_are_merged_where_nothing_else_sees_what_lies_between() -> None:
    model = Both().eval().double()
    x = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    expected = model(x)
    merged = merge_norms(model, partial(model, x))
    assert merged == [("first.2", "first.0"), ("flat_norm", "one")]
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)
    kept = {name for name, module in model.named_modules() if scale_and_shift(module) is not None}
    assert kept == {"open_norm", "shared_norm", "before", "row_norm"}


class Branching(nn.Module):
    """A model whose graph depends on values, so that nobody can follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), lived(nn.BatchNorm1d(4)), nn.ReLU(), lived(nn.BatchNorm1d(4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if x.sum() > 0 else self.body(-x)


def test_without_a_graph_the_sequences_are_merged() -> None:
    model = Branching().eval().double()
    x = torch.randn(4, 3, dtype=torch.float64)
    expected = model(x)
    assert merge_norms(model, partial(model, x)) == [("body.1", "body.0")]
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)


def test_affine_is_a_scale_and_a_shift_along_its_axis() -> None:
    x, scale, shift = torch.randn(2, 3, 4), torch.randn(3), torch.randn(3)
    torch.testing.assert_close(Affine(scale, shift)(x), x * scale[:, None] + shift[:, None])
    torch.testing.assert_close(Affine(scale, shift, -1)(x.mT), x.mT * scale + shift)
