"""Choice blocks: mixing against the sum written out, keeping one, twins that share an architecture."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from engine.kit.choice import (
    MIXED,
    OPERATIONS,
    Choice,
    architecture,
    choices,
    decide,
    entropies,
    extracted,
    genotype,
    image_choice,
    twin,
)

X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def model() -> nn.Sequential:
    torch.manual_seed(1)
    made = nn.Sequential(image_choice(4), nn.ReLU(), image_choice(4, ("conv3", "skip")))
    with torch.no_grad():
        for number, alpha in enumerate(architecture(made)):
            alpha.copy_(torch.randn(len(alpha), generator=torch.Generator().manual_seed(number)))
    return made


def test_an_open_choice_is_the_sum_weighed_by_softmax() -> None:
    choice = choices(model())["0"].eval()
    shares = choice.alpha.exp() / choice.alpha.exp().sum()
    expected = sum(share * operation(X) for share, operation in zip(shares, choice.operations, strict=True))
    assert torch.allclose(choice(X), expected, atol=1e-6)
    assert float(choice.weights().sum()) == pytest.approx(1.0)


def test_the_operations() -> None:
    made = {name: make(4).eval() for name, make in OPERATIONS.items()}
    assert all(made[name](X).shape == X.shape for name in made)
    assert not made["zero"](X).any() and torch.equal(made["skip"](X), X)
    around = X[0, 0, 2:5, 2:5].mean()
    assert float(made["pool"](X)[0, 0, 3, 3]) == pytest.approx(float(around), rel=1e-5)
    assert float(made["pool"](X)[0, 0, 0, 0]) == pytest.approx(float(X[0, 0, :2, :2].mean()), rel=1e-5)
    sizes = {name: sum(p.numel() for p in made[name].parameters()) for name in made}
    assert sizes == {"zero": 0, "skip": 0, "conv3": 4 * 4 * 9 + 8, "conv1": 4 * 4 + 8, "pool": 0}


def test_what_is_kept_is_what_it_leans_to_and_reaches_a_checkpoint() -> None:
    net = model().eval()
    leading = [list(c.operations)[int(c.alpha.argmax())] for c in choices(net).values()]
    expected = leading[1](net[1](leading[0](X)))
    plain = extracted(net)
    names = genotype(net)
    assert not choices(plain) and torch.equal(plain(X), expected) and not torch.equal(net(X), expected)
    decide(net)
    assert torch.equal(net(X), expected)
    fresh = model().eval()
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(X), expected)
    with torch.no_grad():
        choices(fresh)["0"].alpha.zero_()
    assert genotype(fresh) == names, "what was decided does not change with alpha"
    choices(fresh)["0"].keep(MIXED)
    assert genotype(fresh)[0] == "zero"


def test_twins_share_the_architecture_and_nothing_else() -> None:
    net = model()
    other = twin(net)
    shared = {id(p) for p in net.parameters()} & {id(p) for p in other.parameters()}
    assert shared == {id(p) for p in architecture(net)} and [id(p) for p in architecture(other)] == [
        id(p) for p in architecture(net)
    ]
    other(X)
    running = [(a, b) for a, b in zip(net.buffers(), other.buffers(), strict=True) if a.is_floating_point()]
    assert all(a is not b for a, b in running) and any(not torch.equal(a, b) for a, b in running)
    assert {id(p) for p in copy.deepcopy(net).parameters()}.isdisjoint(shared)


def test_entropies_tell_how_open_choices_are() -> None:
    choice = Choice({"a": nn.Identity(), "b": nn.Tanh(), "c": nn.ReLU()})
    assert float(entropies(nn.Sequential(choice))["0"]) == pytest.approx(float(torch.tensor(3.0).log()))
    with torch.no_grad():
        choice.alpha.copy_(torch.tensor([50.0, 0.0, 0.0]))
    assert float(entropies(nn.Sequential(choice))["0"]) == pytest.approx(0.0, abs=1e-6)
    assert float(extracted(choice)(torch.tensor(-2.0))) == -2.0
