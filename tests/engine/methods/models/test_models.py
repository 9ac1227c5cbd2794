"""The plain models: shapes for every kind of task, refusals, causality, initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.methods.models.cnn import CNN
from engine.methods.models.mlp import MLP
from engine.methods.models.recurrent import Recurrent
from engine.methods.models.transformer import Transformer
from engine.parts import Model, Offer

IMAGE = Offer("image", (1, 8, 8), "classes", 10)
VECTOR = Offer("vector", (5,), "values", 2)
TOKENS = Offer("tokens", (12,), "next-token", 30, 30)
LABELLED = Offer("tokens", (12,), "classes", 3, 30)


def inputs(offer: Offer) -> torch.Tensor:
    return (
        torch.randint(offer.vocabulary, (4, *offer.shape)) if offer.input == "tokens" else torch.randn(4, *offer.shape)
    )


@pytest.mark.parametrize("kind", [MLP, CNN, Transformer, Recurrent])
@pytest.mark.parametrize("offer", [IMAGE, VECTOR, TOKENS, LABELLED])
def test_every_model_answers_in_the_tasks_shape_or_refuses(kind: type[Model], offer: Offer) -> None:
    refuses = (kind is MLP and offer.input == "tokens") or (kind is CNN and offer.input != "image")
    if refuses:
        with pytest.raises(ValueError, match=r"Choose (a|another) model"):
            kind(offer)  # type: ignore[call-arg]
        return
    torch.manual_seed(0)
    model = kind(offer)  # type: ignore[call-arg]
    out = model(inputs(offer))
    assert out.shape == ((4, 12, 30) if offer.output == "next-token" else (4, offer.size))
    out.square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for name, p in model.named_parameters() if "qkv" not in name
    )
    assert model.anatomy().head is model.head


@pytest.mark.parametrize("kind", [Transformer, Recurrent])
def test_next_token_models_do_not_look_ahead(kind: type[Model]) -> None:
    torch.manual_seed(0)
    model = kind(TOKENS).double().eval()  # type: ignore[call-arg]
    x = inputs(TOKENS)
    changed = x.clone()
    changed[:, 7] = (x[:, 7] + 1) % 30
    difference = (model(x) - model(changed)).abs().amax((0, 2))
    assert (difference[:7] == 0).all() and (difference[7:] > 1e-9).all()


def test_an_encoder_does_look_ahead() -> None:
    model = Transformer(LABELLED).double().eval()
    with model.anatomy().taps(["blocks.1"]) as taken:
        x = inputs(LABELLED)
        model(x)
        first = taken["blocks.1"]
        changed = x.clone()
        changed[:, 11] = (x[:, 11] + 1) % 30
        model(changed)
    assert (taken["blocks.1"] - first).abs().amax((0, 2))[0] > 1e-9


def test_attention_agrees_with_torchs() -> None:
    torch.manual_seed(0)
    mine = Transformer(TOKENS, width=8, depth=1, heads=2).double().blocks[0].attention
    theirs = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    names = {"in_proj_weight": mine.qkv.weight, "in_proj_bias": mine.qkv.bias}
    theirs.load_state_dict(names | {"out_proj.weight": mine.out.weight, "out_proj.bias": mine.out.bias})
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    blocked = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected = theirs(x, x, x, attn_mask=blocked, need_weights=False)[0]
    torch.testing.assert_close(mine(x), expected, rtol=1e-10, atol=1e-12)


def test_mlp_layers_norms_and_starts() -> None:
    model = MLP(IMAGE, hidden=[7, 5], activation="tanh", norm="layer", dropout=0.1)
    assert [[type(m).__name__ for m in block] for block in model.blocks] == [
        ["Linear", "LayerNorm", "Tanh", "Dropout"]
    ] * 2
    assert sum(p.dim() == 2 for p in MLP(IMAGE, hidden=[50] * 19, init="zeros").parameters()) == 20
    assert all((p == 0).all() for p in MLP(IMAGE, hidden=[50] * 19, init="zeros").parameters())
    torch.manual_seed(0)
    wide = MLP(IMAGE, hidden=[400, 400], init="normal", init_std=0.05)
    assert wide.blocks[1].linear.weight.detach().std().item() == pytest.approx(0.05, rel=0.02)
    assert (wide.blocks[1].linear.bias == 0).all()
    linear = MLP(IMAGE, hidden=[])
    assert [name for name, _ in linear.named_parameters()] == ["head.weight", "head.bias"]
    assert linear.anatomy().features is linear.stem


def test_cnn_stages_and_skips() -> None:
    model = CNN(IMAGE, widths=[4, 6, 8], depth=2)
    with model.anatomy().taps(["stem", "blocks.1", "blocks.3", "blocks.5"]) as taken:
        model(torch.randn(2, 1, 8, 8))
    assert [tuple(t.shape[1:]) for t in taken.values()] == [(4, 8, 8), (4, 8, 8), (6, 4, 4), (8, 2, 2)]
    plain = CNN(IMAGE, widths=[4, 6], skip=False)
    assert not any("shortcut" in name for name, _ in plain.named_parameters())
    block = CNN(IMAGE, widths=[4], norm="none").blocks[0]
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if "body" in name:
                parameter.zero_()
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(block(x), x)
    block.skip = False
    assert (block(x) == 0).all()
    with pytest.raises(ValueError, match="halve the image 5 times, and it has only 8"):
        CNN(IMAGE, widths=[4] * 6)
    with pytest.raises(ValueError, match="at least one stage"):
        CNN(IMAGE, widths=[])


def test_the_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match="5 heads do not divide a width of 64"):
        Transformer(TOKENS, heads=5)
