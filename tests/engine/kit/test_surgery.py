"""Channels cut out of models against nets built small by hand, and what hangs on parameters carried along."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.kit.masks import Masks
from engine.kit.surgery import (
    carried,
    carry_optimizer,
    cut,
    even_momenta,
    own_members,
    places_without,
    remove_channels,
    tensors_of,
)
from engine.kit.tied import Group, find_groups
from engine.methods.models.cnn import CNN
from engine.methods.models.mlp import MLP
from engine.methods.models.transformer import Transformer
from engine.parts import Moved, Offer

IMAGE = Offer("image", (1, 8, 8), "classes", 10)


def lively(model: nn.Module) -> nn.Module:
    """Gains, shifts and running statistics that tell channels apart; double precision; evaluation."""
    model = model.double().eval()
    for tensor in tensors_of(model).values():
        if tensor.dim() == 1 and tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
    return model


def silence(model: nn.Module, group: Group, channels: Tensor) -> None:
    with torch.no_grad():
        for member in own_members(group, model):
            tensors_of(model)[member.name].index_fill_(member.dim, member.places(channels), 0.0)


class Net(nn.Module):
    """A convolution, batch norm, pooling, flattening and a linear layer, with any number of channels."""

    def __init__(self, channels: int, pictures: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(pictures, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.depth = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.slope, self.head = nn.PReLU(channels), nn.Linear(channels * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.slope(self.depth(self.norm(self.conv(x)).relu()))
        return self.head(torch.flatten(F.max_pool2d(y, 2), 1))


def test_a_cut_net_is_the_net_built_small_by_hand() -> None:
    torch.manual_seed(0)
    wide, narrow = lively(Net(6)), Net(4).double().eval()
    (group,) = find_groups(wide, torch.empty(2, 1, 8, 8, device="meta"))
    gone, stays = torch.tensor([1, 4]), torch.tensor([0, 2, 3, 5])
    silence(wide, group, gone)
    with torch.no_grad():
        for name, tensor in narrow.state_dict().items():
            source = wide.state_dict()[name]
            if name == "head.weight":  # a channel fills 16 neighbouring inputs
                source = source.view(4, 6, 16)[:, stays].reshape(4, 64)
            elif source.dim() and name != "head.bias":
                source = source[stays]
            tensor.copy_(source)
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    before = wide(x)
    moves = remove_channels(wide, [(group, gone)])
    assert {n: t.shape for n, t in wide.state_dict().items()} == {n: t.shape for n, t in narrow.state_dict().items()}
    assert all(torch.equal(a, b) for a, b in zip(wide.state_dict().values(), narrow.state_dict().values(), strict=True))
    assert torch.equal(wide(x), narrow(x))
    torch.testing.assert_close(wide(x), before, rtol=1e-12, atol=1e-12)
    assert repr(wide) == repr(narrow), "sizes are told as a small net tells them"
    assert len(moves) == 10, "all but the head's bias, and two running statistics"


@pytest.mark.parametrize(
    "make",
    [
        lambda: CNN(IMAGE, widths=[6, 8], depth=2),
        lambda: CNN(IMAGE, widths=[5, 7], norm="none", activation="silu"),
        lambda: MLP(IMAGE, hidden=[12, 9], norm="batch", activation="tanh"),
        lambda: Transformer(IMAGE, width=8, heads=2),
    ],
)
def test_silent_channels_of_every_group_can_go_at_once(make) -> None:
    """Residual streams, strided shortcuts, batch norms; in the transformer only what is between two linear layers."""
    torch.manual_seed(0)
    model = lively(make())
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    removals = [(group, torch.tensor([0, group.size - 1])) for group in model.anatomy().tied() if group.removable]
    assert removals
    for group, channels in removals:
        silence(model, group, channels)
    before, weights = model(x), sum(p.numel() for p in model.parameters())
    remove_channels(model, removals)
    assert sum(p.numel() for p in model.parameters()) < weights
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-10)
    model.train()
    model(x).sum().backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())


def test_a_channel_that_zero_weights_do_not_silence_is_kept() -> None:
    kinds = {
        "normalizes each channel with all others": CNN(IMAGE, widths=[4], norm="layer"),
        "makes something else of zero": MLP(IMAGE, hidden=[4], activation="sigmoid"),
        "splits its width into so many heads": Transformer(IMAGE, width=8, heads=2),
    }
    for words, model in kinds.items():
        kept = [group for group in model.anatomy().tied() if not group.removable]
        assert any(words in group.reason for group in kept), words
        with pytest.raises(ValueError, match="cannot be removed"):
            remove_channels(model, [(kept[0], torch.tensor([0]))])

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(1 + self.a(x))

    (group,) = find_groups(Shifted(), torch.empty(2, 3, device="meta"))
    assert "add() makes something else of zero" in group.reason
    (group,) = MLP(IMAGE, hidden=[4]).anatomy().tied()
    with pytest.raises(ValueError, match="one must stay"):
        remove_channels(MLP(IMAGE, hidden=[4]), [(group, torch.arange(4))])


def test_a_shared_weight_is_cut_once() -> None:
    a, b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    b.weight = a.weight
    both = nn.ModuleDict({"a": a, "b": b})
    cut(both, {"a.weight": {0: torch.tensor([0, 2])}, "b.weight": {1: torch.tensor([1, 2, 3])}})
    assert a.weight is b.weight and a.weight.shape == (2, 3)
    with pytest.raises(ValueError, match="other places"):
        cut(both, {"a.weight": {0: torch.tensor([0])}, "b.weight": {0: torch.tensor([1])}})


def problem(seed: int = 0) -> tuple[Net, Tensor]:
    torch.manual_seed(seed)
    return Net(6), torch.randn(16, 1, 8, 8)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        lambda p: torch.optim.Adagrad(p, lr=0.01),
    ],
)
def test_the_optimizer_goes_on_as_one_that_never_saw_the_channels(make) -> None:
    """Momentum and squares follow entry by entry: the next step is the one of a small net with the small state."""
    wide, x = problem()
    optimizer = make(wide.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        wide(x).square().mean().backward()
        optimizer.step()
    (group,) = find_groups(wide, torch.empty(2, 1, 8, 8, device="meta"))
    kept = places_without(wide, [(group, torch.tensor([1, 4]))])
    state = copy.deepcopy(optimizer.state_dict())
    names = [name for name, _ in wide.named_parameters()]
    moves = cut(wide, kept)
    carry_optimizer(optimizer, moves)
    narrow = Net(4)
    narrow.load_state_dict(wide.state_dict())
    small = make(narrow.parameters())
    for number, values in state["state"].items():
        for key, value in values.items():
            for dim, places in kept.get(names[number], {}).items() if value.dim() else ():
                value = value.index_select(dim, places)
            values[key] = value
    small.load_state_dict(state)
    for model, each in ((wide, optimizer), (narrow, small)):
        each.zero_grad()
        model(x).square().mean().backward()
        each.step()
    assert all(torch.equal(a, b) for a, b in zip(wide.parameters(), narrow.parameters(), strict=True))


def test_state_of_another_shape_starts_anew_and_what_is_gone_leaves() -> None:
    a, b, c = (nn.Parameter(torch.randn(3, 2)) for _ in range(3))
    optimizer = torch.optim.SGD([{"params": [a, b]}, {"params": [c], "lr": 0.5}], lr=0.1)
    optimizer.state[a] = {"step": 3, "factor": torch.ones(3, 3)}
    optimizer.state[b] = {"step": 3, "momentum": torch.ones(3, 2)}
    new = nn.Parameter(torch.zeros(2, 2))
    carry_optimizer(optimizer, {a: Moved(new, lambda t: t[:2]), b: Moved(None), c: Moved(c)})
    assert [group["params"] for group in optimizer.param_groups] == [[new], [c]]
    assert new not in optimizer.state and a not in optimizer.state and b not in optimizer.state


def test_fused_momenta_are_all_there_or_none() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([a, b], lr=0.1, momentum=0.9, fused=True)
    even_momenta(optimizer)
    assert not optimizer.state
    for _ in range(2):
        a.grad, b.grad = torch.ones(3), torch.ones(2)
        optimizer.step()
    new = nn.Parameter(torch.ones(4))
    carry_optimizer(optimizer, {b: Moved(new)})
    even_momenta(optimizer)
    a.grad, new.grad = torch.ones(3), torch.ones(4)
    optimizer.step()
    assert torch.equal(new, torch.full((4,), 0.9)), "the first step of a parameter is a plain one"
    torch.testing.assert_close(a, torch.full((3,), 1 - 0.1 * (1 + 1.9 + 2.71)))


def test_averages_follow_entry_by_entry() -> None:
    a, b, c = torch.arange(4.0), torch.arange(3.0), torch.zeros(2)
    short, fresh = torch.zeros(2), torch.full((5,), 7.0)
    moves = {a: Moved(short, lambda t: t[1:3]), c: Moved(None)}
    found = carried([a + 10, b + 10, c + 10], [a, b, c], [fresh, short, b], moves)
    assert [each.tolist() for each in found] == [[7.0] * 5, [11.0, 12.0], [10.0, 11.0, 12.0]]


def test_the_mask_service_has_one_writer_a_weight_and_follows() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    masks, weight = Masks(lambda: model), model[0].weight
    mask = torch.ones(4, 3)
    mask[1] = 0
    mask[2, 0] = 0
    masks.hold("first", weight, mask)
    assert torch.equal(weight == 0, mask == 0)
    with pytest.raises(ValueError, match=r"first and second both want to mask the weight '0.weight'"):
        masks.hold("second", weight, mask)
    with pytest.raises(ValueError, match="does not fit"):
        masks.hold("first", weight, mask[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(weight == 0, mask == 0)
    masks.apply()
    masks.clear(optimizer)
    assert torch.equal(weight == 0, mask == 0)
    assert not optimizer.state[weight]["momentum_buffer"][mask == 0].any()

    state = masks.state()
    masks.release("second", weight)
    masks.release("first", weight)
    assert not len(masks)
    masks.load(state)
    assert torch.equal(masks.mask(weight), mask)
    kept = torch.tensor([0, 2, 3])
    masks.on_surgery(cut(model, {"0.weight": {0: kept}, "0.bias": {0: kept}, "1.weight": {1: kept}}))
    assert torch.equal(masks.mask(model[0].weight), mask[kept]) and masks.mask(weight) is None
    kept = torch.tensor([0, 2])
    masks.on_surgery(cut(model, {"0.weight": {0: kept}, "0.bias": {0: kept}, "1.weight": {1: kept}}))
    assert not len(masks), "a mask that holds nothing any more ends"
