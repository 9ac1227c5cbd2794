"""Stacked weight maps: one order, one mask, the trained parameter kept."""

from __future__ import annotations

import copy
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from engine.kit import weight_maps


class Affine(nn.Module):
    """w -> scale * w + shift: two of them commute only by accident."""

    def __init__(self, scale: float, shift: float):
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, w: Tensor) -> Tensor:
        return self.scale * w + self.shift


class Noise(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w + torch.randn_like(w)


class Mask(nn.Module):
    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, w: Tensor) -> Tensor:
        return w * self.mask


MAPS = {rank: (2.0 + i, 0.5 - i) for i, rank in enumerate(weight_maps.RANKS)}


def composed(weight: Tensor) -> Tensor:
    for scale, shift in MAPS.values():
        weight = scale * weight + shift
    return weight


@pytest.mark.parametrize("order", list(permutations(weight_maps.RANKS))[::17])
def test_the_ranks_decide_the_order_not_the_registration(order: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    trained, before = layer.weight, layer.weight.detach().clone()
    for rank in order:
        weight_maps.add_map(layer, "weight", Affine(*MAPS[rank]), rank, f"{rank} part")
    torch.testing.assert_close(weight_maps.effective(layer), composed(before), rtol=1e-12, atol=1e-12)
    assert weight_maps.latent(layer) is trained
    assert [(m.rank, m.owner) for m in weight_maps.maps(layer)] == [(r, f"{r} part") for r in weight_maps.RANKS]
    expected = before
    for scale, shift in list(MAPS.values())[:2]:
        expected = scale * expected + shift
    torch.testing.assert_close(weight_maps.upto(layer, "weight", "mask"), expected, rtol=1e-12, atol=1e-12)


def test_a_second_mask_is_refused_with_both_names() -> None:
    layer = nn.Linear(3, 2)
    weight_maps.add_map(layer, "weight", Mask(torch.ones(2, 3)), "mask", "first-part")
    with pytest.raises(ValueError, match=r"first-part and second-part both want to mask the weight 'weight'"):
        weight_maps.add_map(layer, "weight", Mask(torch.ones(2, 3)), "mask", "second-part")
    assert len(weight_maps.maps(layer)) == 1
    weight_maps.add_map(layer, "bias", Mask(torch.ones(2)), "mask", "second-part")


def test_unknown_rank_and_missing_weight_are_refused() -> None:
    with pytest.raises(ValueError, match="no rank 'masks'"):
        weight_maps.add_map(nn.Linear(1, 1), "weight", Affine(1, 0), "masks", "part")
    with pytest.raises(ValueError, match="Linear has no weight 'wieght'"):
        weight_maps.add_map(nn.Linear(1, 1), "wieght", Affine(1, 0), "mask", "part")
    with pytest.raises(ValueError, match="part has no map"):
        weight_maps.remove(nn.Linear(1, 1), "weight", "part")


def test_registration_draws_no_random_numbers() -> None:
    layer = nn.Linear(3, 2)
    state = torch.get_rng_state()
    weight_maps.add_map(layer, "weight", Noise(), "noise", "noisy")
    weight_maps.add_map(layer, "weight", Affine(2, 0), "quantize", "other")
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_reach_the_trained_weight_through_the_mask() -> None:
    layer = nn.Linear(4, 1, bias=False)
    mask = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    weight_maps.add_map(layer, "weight", Mask(mask), "mask", "part")
    layer(torch.ones(1, 4)).sum().backward()
    assert torch.equal(weight_maps.latent(layer).grad, mask)


def test_removing_one_owner_keeps_the_others_and_the_trained_weight() -> None:
    layer = nn.Linear(3, 2).double()
    trained, before = layer.weight, layer.weight.detach().clone()
    weight_maps.add_map(layer, "weight", Affine(3, 1), "quantize", "a")
    weight_maps.add_map(layer, "weight", Affine(2, 0), "mask", "b")
    weight_maps.remove(layer, "weight", "b")
    torch.testing.assert_close(layer.weight, 3 * before + 1, rtol=1e-12, atol=1e-12)
    weight_maps.remove(layer, "weight", "a")
    assert layer.weight is trained
    assert type(layer) is nn.Linear
    assert torch.equal(layer.weight, before)


def test_copies_and_state_dicts_hold_the_maps() -> None:
    layer = nn.Linear(3, 2)
    weight_maps.add_map(layer, "weight", Affine(3, 1), "quantize", "a")
    weight_maps.add_map(layer, "weight", Mask(torch.tensor([[1.0, 0, 1]] * 2)), "mask", "b")
    twin = copy.deepcopy(layer)
    assert [(m.rank, m.owner) for m in weight_maps.maps(twin)] == [("mask", "b"), ("quantize", "a")]
    with torch.no_grad():
        weight_maps.latent(twin).zero_()
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.weight, layer.weight)
    assert weight_maps.latent(twin) is not weight_maps.latent(layer)


def test_fold_leaves_a_plain_model_that_computes_the_same() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

        def fold(self) -> nn.Module:
            plain = nn.Linear(2, 2)
            plain.load_state_dict({name: 2 * t for name, t in self.inner.state_dict().items()})
            return plain

    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), Doubled())
    for path in (model[0], model[2].inner):
        weight_maps.add_map(path, "weight", Affine(3, 1), "quantize", "a")
    x = torch.randn(5, 3)
    before = model(x)
    folded = weight_maps.fold(model)
    assert folded is model
    assert [type(m) for m in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert not weight_maps.maps(model)
    torch.testing.assert_close(model(x), before)
