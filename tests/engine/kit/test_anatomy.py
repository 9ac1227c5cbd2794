"""Sites, selections, width roles, taps and the derived anatomy of a foreign module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.kit import weight_maps
from engine.kit.anatomy import Anatomy, derive, example_input, output_shapes
from engine.methods.models.cnn import CNN
from engine.methods.models.mlp import MLP
from engine.methods.models.transformer import Transformer
from engine.parts import Offer

IMAGE = Offer("image", (1, 8, 8), "classes", 10)
TOKENS = Offer("tokens", (16,), "next-token", 40, 40)


def paths(sites: list) -> list[str]:
    return [site.path for site in sites]


@pytest.fixture
def mlp() -> Anatomy:
    return MLP(IMAGE, hidden=[32, 16], norm="batch").anatomy()


def test_sites_of_the_mlp(mlp: Anatomy) -> None:
    assert paths(mlp.sites("linear")) == ["blocks.0.linear", "blocks.1.linear", "head"]
    assert paths(mlp.sites("norm")) == ["blocks.0.norm", "blocks.1.norm"]
    assert mlp.sites("weight") == mlp.sites("linear")
    norm = mlp.sites("norm")[1]
    assert (norm.features, norm.shape, norm.previous, norm.following) == (
        16,
        (16,),
        "blocks.1.linear",
        "blocks.1.activation",
    )
    with pytest.raises(ValueError, match="no role 'relu'"):
        mlp.sites("relu")


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("linear", ["blocks.0.linear", "blocks.1.linear", "head"]),
        ("linear, not first", ["blocks.1.linear", "head"]),
        ("linear, not last", ["blocks.0.linear", "blocks.1.linear"]),
        ("weight, not head", ["blocks.0.linear", "blocks.1.linear"]),
        ("linear, not head, not last", ["blocks.0.linear"]),
        ("linear, first, last", ["blocks.0.linear", "head"]),
        ("blocks.*.norm", ["blocks.0.norm", "blocks.1.norm"]),
        ("blocks.1", ["blocks.1.linear", "blocks.1.norm", "blocks.1.activation"]),
        ("norm, activation, blocks.0", ["blocks.0.norm", "blocks.0.activation"]),
        ("blocks, linear", ["blocks.0.linear", "blocks.1.linear"]),
        ("head", ["head"]),
        ("not linear, not norm", ["blocks.0.activation", "blocks.1.activation"]),
        ("all, not blocks.0", ["blocks.1.linear", "blocks.1.norm", "blocks.1.activation", "head"]),
        ("conv", []),
    ],
)
def test_selection(mlp: Anatomy, selector: str, found: list[str]) -> None:
    assert paths(mlp.select(selector)) == found


@pytest.mark.parametrize("selector", ["norms", "blocks.7", "linear, not tail", ""])
def test_a_selection_that_means_nothing_is_refused(mlp: Anatomy, selector: str) -> None:
    with pytest.raises(ValueError, match="selection"):
        mlp.select(selector)


def test_shapes_agree_with_a_real_pass_and_change_nothing() -> None:
    model = CNN(IMAGE, widths=[4, 6]).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    seen = {}
    for path, module in model.named_modules():
        module.register_forward_hook(lambda _m, _i, out, path=path: seen.__setitem__(path, tuple(out.shape[1:])))
    shapes = output_shapes(model, example_input(IMAGE))
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(module.training for module in model.modules())
    seen.clear()
    with torch.no_grad():
        model(torch.rand(2, 1, 8, 8))
    assert shapes == seen


def test_a_weight_map_does_not_hide_a_site() -> None:
    model = MLP(IMAGE)
    weight_maps.add_map(model.blocks[0].linear, "weight", nn.Identity(), "mask", "part")
    anatomy = model.anatomy()
    assert paths(anatomy.sites("linear")) == ["blocks.0.linear", "blocks.1.linear", "head"]
    assert anatomy.width_role("blocks.0.linear.parametrizations.weight.original") == "input"


def test_attention_and_its_weights_are_sites() -> None:
    anatomy = Transformer(TOKENS, width=8, depth=1, heads=2).anatomy()
    assert paths(anatomy.sites("attention")) == ["blocks.0.attention"]
    assert "blocks.0.attention.qkv" in paths(anatomy.sites("linear"))
    assert paths(anatomy.sites("embedding")) == ["stem.embed"]


def test_width_roles() -> None:
    for model, inputs in [
        (MLP(IMAGE, norm="layer"), {"blocks.0.linear.weight"}),
        (CNN(IMAGE), {"stem.0.weight"}),
        (Transformer(TOKENS, width=8, depth=1, heads=2), {"stem.embed.weight", "stem.positions"}),
    ]:
        anatomy = model.anatomy()
        roles = {name: anatomy.width_role(name) for name, _ in model.named_parameters()}
        assert {name for name, role in roles.items() if role == "input"} == inputs
        assert {name for name, role in roles.items() if role == "output"} == {"head.weight"}
        assert {name for name, role in roles.items() if role == "vector"} == {
            name for name, p in model.named_parameters() if p.dim() == 1
        }


def test_taps_give_what_passes_and_leave_no_hook() -> None:
    model = MLP(IMAGE, hidden=[8]).eval()
    anatomy = model.anatomy()
    x = torch.rand(3, 1, 8, 8)
    with anatomy.taps(["blocks.0", "head"]) as taken:
        out = model(x)
    assert torch.equal(taken["head"], out)
    assert torch.equal(model.head(taken["blocks.0"]), out)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match=r"no module 'blocks\.9'"), anatomy.taps(["blocks.9"]):
        pass
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("model", [MLP(IMAGE), CNN(IMAGE), Transformer(TOKENS, width=8, depth=2, heads=2)])
def test_the_features_are_what_the_head_takes(model: nn.Module) -> None:
    anatomy = model.anatomy()
    taken = []
    handle = anatomy.head.register_forward_pre_hook(lambda _m, inputs: taken.append(inputs[0]))
    x = torch.rand(2, 1, 8, 8) if not isinstance(model, Transformer) else torch.zeros(2, 16, dtype=torch.long)
    with anatomy.taps([anatomy.path(anatomy.features)]) as features:
        model(x)
    handle.remove()
    assert torch.equal(taken[0], next(iter(features.values())))


class Backwards(nn.Module):
    """Registers its layers in another order than it runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))
        self.first = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def test_derived_anatomy_follows_the_order_of_running() -> None:
    module = Backwards()
    anatomy = derive(module)
    assert anatomy.stem is module.first
    assert anatomy.blocks == list(module.blocks)
    assert anatomy.head is module.last
    assert paths(anatomy.sites("linear")) == ["first", "blocks.0.0", "blocks.1.0", "blocks.2.0", "last"]
    assert anatomy.width_role("first.weight") == "input"
    assert anatomy.width_role("last.weight") == "output"


def test_what_cannot_be_traced_is_refused_with_the_reason() -> None:
    class Branching(Backwards):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match=r"Branching cannot be traced: .*control flow.*anatomy\(\)"):
        derive(Branching())
    with pytest.raises(ValueError, match="no linear or convolution module"):
        derive(nn.Sequential(nn.ReLU()))


def test_putting_a_module_at_a_site() -> None:
    model = MLP(IMAGE, hidden=[8])
    for site in model.anatomy().sites("activation"):
        site.put(nn.Tanh())
    assert isinstance(model.blocks[0].activation, nn.Tanh)
    stack = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    derive(stack).sites("activation")[0].put(nn.GELU())
    assert [type(m) for m in stack] == [nn.Linear, nn.GELU, nn.Linear]
