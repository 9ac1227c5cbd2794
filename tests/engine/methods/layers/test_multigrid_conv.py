"""The multigrid convolution: a cycle and a neuron at the same place, and where it may go."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.kit.anatomy import Site
from engine.methods.layers.multigrid_conv import MultigridConv
from engine.methods.models.field_cnn import FieldCNN
from engine.parts import Offer
from engine.recipe import Recipe
from engine.training.assemble import assemble, filled
from engine.training.recorder import Memory, Recorder


def site(conv: nn.Module, side: int = 16) -> Site:
    return Site("blocks.0", conv, nn.Sequential(conv), "0", "conv", 3, shapes=lambda: {"blocks.0": (3, side, side)})


@pytest.mark.parametrize("padding", ["zeros", "circular", "reflect"])
def test_it_is_the_sum_of_a_cycle_and_of_the_values_at_the_same_place(padding: str) -> None:
    torch.manual_seed(0)
    made = MultigridConv(site(nn.Conv2d(2, 3, 3, padding=1, padding_mode=padding)), levels=3).double()
    x = torch.randn(4, 2, 16, 16, dtype=torch.float64)
    mixed = torch.einsum("oi,bihw->bohw", made.local.weight[..., 0, 0], x) + made.local.bias[:, None, None]
    torch.testing.assert_close(made(x), made.cycle(x) + mixed)
    assert all(m.padding_mode == padding for m in made.cycle.modules() if isinstance(m, nn.Conv2d))
    assert len(made.cycle.R) == 2


def test_it_sees_the_whole_picture() -> None:
    torch.manual_seed(0)
    reach = []
    for levels in (1, 4):
        made = MultigridConv(site(nn.Conv2d(1, 1, 3, padding=1, bias=False)), levels=levels).double()
        x = torch.zeros(1, 1, 16, 16, dtype=torch.float64, requires_grad=True)
        made(x)[0, 0, 0, 0].backward()
        assert x.grad is not None and made.local.bias is None
        reach.append((x.grad[0, 0] != 0).nonzero().max().item())
    assert reach == [1, 15]


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(2, 3, 3),
        nn.Conv2d(2, 3, 3, 2, 1),
        nn.Conv2d(2, 3, 1),
        nn.Conv2d(2, 4, 3, padding=1, groups=2),
        nn.Conv1d(2, 3, 3, padding=1),
    ],
)
def test_other_convolutions_are_refused(conv: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"Select other sites|only convolutions of pictures"):
        MultigridConv.for_site(site(conv))


def test_sizes() -> None:
    with pytest.raises(ValueError, match="12 x 12 cannot be halved 3 times"):
        MultigridConv(site(nn.Conv2d(2, 3, 3, padding=1), 12), levels=4)
    for conv in (nn.Conv2d(2, 3, 5, padding=2), nn.Conv2d(2, 3, 3, padding="same"), nn.Conv2d(2, 3, 3, 1, 2, 2)):
        assert MultigridConv(site(conv))(torch.randn(1, 2, 16, 16)).shape == (1, 3, 16, 16)


def test_it_goes_into_a_network_on_fields() -> None:
    document = {
        "task": {"use": "darcy-flow", "size": 8, "samples": 8, "held_out": 4},
        "model": {"use": "field-cnn", "width": 3, "depth": 2},
        "techniques": [{"use": "replace", "layer": {"use": "multigrid-conv"}, "sites": "conv, blocks"}],
        "training": {"batch_size": 4},
        "budget": {"steps": 1},
    }
    run = assemble(filled(Recipe.of(document)), Recorder(Memory()))
    assert [type(block[0]) for block in run.model.blocks] == [MultigridConv] * 2  # type: ignore[union-attr, index]
    plain = FieldCNN(Offer("image", (1, 8, 8), "field", 64, answer=(1, 8, 8)), width=3, depth=2)
    x = torch.randn(2, 1, 8, 8)
    assert run.model(x).shape == plain(x).shape
