"""Groups of channels: permuting one changes nothing, and a channel whose outputs are zero can be cut out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.kit import weight_maps
from engine.kit.anatomy import derive
from engine.kit.tied import Group, find_groups
from engine.methods.models.cnn import CNN
from engine.methods.models.mlp import MLP
from engine.methods.models.recurrent import Recurrent
from engine.methods.models.transformer import Transformer
from engine.parts import Offer

IMAGE = Offer("image", (1, 8, 8), "classes", 10)
TOKENS = Offer("tokens", (6,), "next-token", 11, 11)
VECTOR = Offer("vector", (5,), "values", 1)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def permute(model: nn.Module, group: Group, order: Tensor) -> None:
    state = state_of(model)
    with torch.no_grad():
        for member in group.members:
            tensor = state[member.name]
            index = torch.arange(tensor.shape[member.dim])
            index[member.start : member.start + group.size * member.repeat] = member.places(order)
            tensor.copy_(tensor.index_select(member.dim, index))


class Joined(nn.Module):
    """Concatenation, flattening, a depthwise convolution, and a gain a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(1, 5, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.slope = nn.PReLU(8)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.head = nn.Linear(8 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.slope(self.depthwise(torch.cat([self.left(x), self.right(x)], dim=1))) * self.scale
        return self.head(torch.flatten(nn.functional.max_pool2d(y, 2), 1))


class Gated(nn.Module):
    """A gate a channel, computed from the means over pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(1, 6, 3), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        gate = self.gate(y.mean((2, 3))).sigmoid()
        return self.head((y * gate.unsqueeze(-1).unsqueeze(-1)).mean((-2, -1)))


MODELS = {
    "mlp": (lambda: MLP(IMAGE, hidden=[12, 9], norm="batch"), IMAGE, 2),
    "cnn": (lambda: CNN(IMAGE, widths=[6, 8], depth=2), IMAGE, 6),
    "plain-cnn": (lambda: CNN(IMAGE, widths=[6, 8], skip=False, norm="layer"), IMAGE, 5),
    "image-transformer": (lambda: Transformer(IMAGE, width=8, heads=2), IMAGE, 5),
    "decoder": (lambda: Transformer(TOKENS, width=8, heads=2), TOKENS, 5),
    "vector-transformer": (lambda: Transformer(VECTOR, width=8, heads=4, depth=1), VECTOR, 3),
    "joined": (Joined, IMAGE, 2),
    "gated": (Gated, IMAGE, 1),
}


@pytest.mark.parametrize("name", MODELS)
def test_permuting_a_group_leaves_the_function_unchanged(name: str) -> None:
    torch.manual_seed(0)
    make, offer, count = MODELS[name]
    model = make().double().eval()
    for tensor in state_of(model).values():  # gains, shifts and running statistics that tell channels apart
        if tensor.dim() == 1 and tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
    tokens = offer.input == "tokens"
    x = torch.randint(11, (3, 6)) if tokens else torch.randn(3, *offer.shape, dtype=torch.float64)
    example = x[:2].to("meta")
    groups = find_groups(model, example)
    assert len(groups) == count
    before = model(x)
    for group in groups:
        changed = [state_of(model)[n].clone() for n in group.names()]
        order = torch.arange(group.size).roll(1)
        permute(model, group, order)
        assert any(not torch.equal(a, state_of(model)[n]) for a, n in zip(changed, group.names(), strict=True))
        torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "cnn", "decoder", "joined", "gated"])
def test_a_group_that_misses_a_member_would_change_the_function(name: str) -> None:
    """Every member matters: leaving one out of the permutation shows."""
    torch.manual_seed(0)
    make, offer, _ = MODELS[name]
    model = make().double().eval()
    for tensor in state_of(model).values():
        if tensor.dim() == 1 and tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
    x = torch.randint(11, (3, 6)) if offer.input == "tokens" else torch.randn(3, *offer.shape, dtype=torch.float64)
    group = max(find_groups(model, x[:2].to("meta")), key=lambda g: len(g.members))
    before = model(x)
    for left_out in group.members:
        part = Group(group.size, tuple(m for m in group.members if m is not left_out))
        permute(model, part, torch.arange(group.size).roll(1))
        harmless = "running" not in left_out.name and "qkv.bias" in left_out.name  # keys' shifts cancel in the softmax
        assert harmless or not torch.allclose(model(x), before, rtol=1e-9, atol=1e-10), left_out
        permute(model, part, torch.arange(group.size).roll(-1))


def test_channels_of_zeros_can_be_cut_out_of_the_mlp() -> None:
    torch.manual_seed(0)
    wide, narrow = MLP(IMAGE, hidden=[12, 9]).double(), MLP(IMAGE, hidden=[10, 9]).double()
    group = wide.anatomy().tied()[0]
    kept = torch.tensor([0, 1, 2, 4, 5, 6, 8, 9, 10, 11])
    gone = torch.tensor([3, 7])
    state = {name: tensor.clone() for name, tensor in wide.state_dict().items()}
    with torch.no_grad():
        for member in group.members:
            if member.side == "output":
                wide.state_dict()[member.name].index_fill_(member.dim, gone, 0.0)
            state[member.name] = state[member.name].index_select(member.dim, member.places(kept))
    narrow.load_state_dict(state)
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(narrow(x), wide(x), rtol=1e-12, atol=1e-12)


def test_the_residual_stream_of_a_stage_is_one_group() -> None:
    groups = CNN(IMAGE, widths=[6, 8], depth=2).anatomy().tied()
    stream = next(g for g in groups if "stem.0.weight" in g.names("output"))
    assert {"stem.0.weight", "blocks.0.body.3.weight", "blocks.1.body.3.weight"} <= set(stream.names("output"))
    assert "blocks.2.shortcut.weight" in stream.names("input")


def test_what_cannot_be_followed_is_refused_with_the_reason() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).sort(-1)[0])

    example = torch.zeros(2, 4, device="meta")
    with pytest.raises(ValueError, match=r"Sorted cannot be followed through sort.*nothing is known of sort"):
        find_groups(Sorted(), example)
    with pytest.raises(ValueError, match="no example of its input"):
        derive(Sorted()).tied()
    masked = MLP(IMAGE)
    weight_maps.add_map(masked.blocks[0].linear, "weight", nn.Identity(), "mask", "part")
    with pytest.raises(ValueError, match="fold the model first"):
        masked.anatomy().tied()
    with pytest.raises(ValueError, match="nothing is known of LSTM"):
        Recurrent(TOKENS, width=8).anatomy().tied()


def test_following_changes_neither_modes_nor_weights() -> None:
    model = CNN(IMAGE).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    model.anatomy().tied()
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
