"""PRepBN against its two ends and its fold; linear attention against sums written out."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.kit.folding import Affine, merge_norms
from engine.kit.weight_maps import fold
from engine.methods.layers.prepbn import PRepBN, RepBN, SimplifiedLinearAttention, linear_attention
from engine.methods.models.transformer import Transformer
from engine.parts import Offer, Progress

IMAGE = Offer("image", (1, 8, 8), "classes", 10)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def lived(module: Any) -> Any:
    for inner in module.modules():
        if isinstance(inner, RepBN):
            inner.bn.running_mean.normal_()  # type: ignore[union-attr]
            inner.bn.running_var.uniform_(0.3, 2)  # type: ignore[union-attr]
            for parameter in (inner.bn.weight, inner.bn.bias, inner.eta):
                nn.init.normal_(parameter)
    return module.eval()


def test_rep_bn_normalizes_over_samples_and_positions_and_adds_the_input() -> None:
    rep, x = RepBN(4), torch.randn(3, 5, 4)
    rep.eta.data.fill_(0.7)
    mean, std = x.mean((0, 1)), (x.var((0, 1), correction=0) + rep.bn.eps).sqrt()
    torch.testing.assert_close(rep(x), (x - mean) / std + 0.7 * x, rtol=1e-5, atol=1e-5)


def test_it_is_layer_norm_at_first_and_rep_bn_in_the_end() -> None:
    layer, x = PRepBN(nn.LayerNorm(6)), torch.randn(8, 3, 6)
    nn.init.normal_(layer.ln.weight)
    layer.tick(Progress(0, 10))
    torch.testing.assert_close(layer(x), layer.ln(x), rtol=0, atol=1e-6)
    layer.tick(Progress(5, 10))
    torch.testing.assert_close(layer(x), 0.5 * layer.ln(x) + 0.5 * layer.rep(x), rtol=0, atol=1e-6)
    layer.tick(Progress(10, 10))
    torch.testing.assert_close(layer(x), layer.rep(x), rtol=0, atol=1e-6)
    layer.tick(Progress(0, 10))
    layer.eval()
    torch.testing.assert_close(layer(x), layer.rep(x), rtol=0, atol=0)


@pytest.mark.parametrize(("total", "warm", "steps", "r0"), [(0, 0, 20, 1.0), (0, 5, 20, 0.5), (8, 3, 20, 1.0)])
def test_the_share_falls_in_a_line_and_is_exactly_zero_after_its_steps(
    total: int, warm: int, steps: int, r0: float
) -> None:
    layer = PRepBN(nn.LayerNorm(2), total, warm, r0)
    length = total or steps - warm
    for step in range(steps + 3):
        layer.tick(Progress(step, steps))
        expected = r0 * max(length - max(step - warm, 0), 0) / length
        assert layer.share.item() == pytest.approx(expected, abs=1e-7)
        assert (layer.share.item() == 0) == (step >= warm + length)


def test_statistics_rest_while_layer_norm_is_alone() -> None:
    layer, x = PRepBN(nn.LayerNorm(4), warm_steps=2), torch.randn(6, 4)
    for step, counted in ((0, 0), (1, 0), (2, 1), (3, 2)):
        layer.tick(Progress(step, 10))
        out = layer(x)
        assert layer.rep.bn.num_batches_tracked == counted
        if not counted:
            assert torch.equal(out, layer.ln(x))


def test_it_folds_into_a_scale_and_a_shift() -> None:
    layer, x = lived(PRepBN(nn.LayerNorm(5))), torch.randn(7, 3, 5)
    plain = layer.fold()
    assert isinstance(plain, Affine)
    torch.testing.assert_close(plain(x), layer(x), rtol=1e-5, atol=1e-5)
    bn, eta = layer.rep.bn, layer.rep.eta
    as_norm = nn.BatchNorm1d(5).eval()  # the same as one batch norm with other gains
    as_norm.load_state_dict(bn.state_dict())
    with torch.no_grad():
        as_norm.weight += eta * (bn.running_var + bn.eps).sqrt()
        as_norm.bias += eta * bn.running_mean
    torch.testing.assert_close(as_norm(x.flatten(0, 1)).view_as(x), plain(x), rtol=1e-5, atol=1e-5)


def test_in_a_transformer_it_goes_into_the_next_matrix() -> None:
    net = Transformer(IMAGE, 16, 2, 2)
    for site in net.anatomy().sites("norm"):
        site.put(PRepBN.for_site(site))
    x = torch.randn(4, 1, 8, 8)
    expected = lived(net)(x)
    plain = fold(net)
    assert len(merge_norms(plain, partial(plain, x))) == 4, "all but the last, which a mean follows"
    torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-5)
    left = [m for m in plain.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm1d | PRepBN | Affine)]
    assert [type(m) for m in left] == [Affine]


def test_what_is_no_layer_norm_is_refused() -> None:
    for norm in (nn.BatchNorm1d(3), nn.LayerNorm((2, 3)), nn.LayerNorm(3, elementwise_affine=False)):
        with pytest.raises(ValueError, match="takes the place of a layer normalization"):
            PRepBN(norm)


# -- attention ---------------------------------------------------------------------------------------------------------


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = torch.zeros_like(v)
    for i in range(len(q)):
        scores = torch.stack([(q[i] * k[j]).sum() for j in range(len(k))])
        out[i] = sum(scores[j] * v[j] for j in range(len(k))) / (scores.sum() + 1e-6)
    return out


def test_both_orders_are_the_sums() -> None:
    q, k, v = torch.rand(7, 4), torch.rand(7, 4), torch.randn(7, 3)
    for order in ("kv", "qk", "auto"):
        torch.testing.assert_close(linear_attention(q, k, v, order), written_out(q, k, v), rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["kv", "qk"])
def test_rows_sum_to_one_wherever_a_score_is_positive(order: Any) -> None:
    q, k = torch.relu(torch.randn(2, 9, 4)), torch.relu(torch.randn(2, 9, 4))
    q[0, 3] = 0
    rows = linear_attention(q, k, torch.eye(9).expand(2, 9, 9), order)
    assert (rows >= 0).all() and not rows[0, 3].any()
    some = (q @ k.mT).sum(-1) > 0.1
    torch.testing.assert_close(rows.sum(-1)[some], torch.ones(int(some.sum())), rtol=0, atol=2e-5)


def attention_of(net: Transformer, **settings: Any) -> SimplifiedLinearAttention:
    site = net.anatomy().sites("attention")[0]
    made = SimplifiedLinearAttention.for_site(site, **settings)
    assert isinstance(made, SimplifiedLinearAttention)
    return made


@pytest.mark.parametrize("offer", [IMAGE, Offer("vector", (16,), "classes", 2)], ids=["line", "square"])
def test_each_head_is_linear_attention_and_a_convolution_of_its_values(offer: Offer) -> None:
    layer = attention_of(Transformer(offer, 8, 1, 2))
    length = layer.length
    assert layer.side == (4 if length == 16 else 0)
    nn.init.normal_(layer.positions)
    x = torch.randn(3, length, 8)
    q, k, v = layer.qkv(x).chunk(3, -1)
    k = k + layer.positions
    mixed = torch.zeros_like(v)
    for b in range(3):
        for h in (slice(0, 4), slice(4, 8)):
            local = v[b, :, h].T.unsqueeze(0)
            local = layer.conv(local.unflatten(-1, (4, 4)) if layer.side else local)
            mixed[b, :, h] = written_out(q[b, :, h].relu(), k[b, :, h].relu(), v[b, :, h])
            mixed[b, :, h] += local.flatten(2)[0].T
    torch.testing.assert_close(layer(x), layer.out(mixed), rtol=1e-4, atol=1e-5)


def test_what_it_cannot_attend_to_is_refused() -> None:
    causal = Transformer(Offer("tokens", (8,), "next-token", 5, vocabulary=5), 8, 1, 2)
    for net, settings, words in (
        (causal, {}, "may only see those before"),
        (Transformer(IMAGE, 8, 1, 2), {"kernel": 4}, "Write an odd number"),
        (Transformer(IMAGE, 8, 1, 2), {"grid": "square"}, "make no square"),
    ):
        with pytest.raises(ValueError, match=words):
            attention_of(net, **settings)
    with pytest.raises(ValueError, match="takes the place of self-attention"):
        SimplifiedLinearAttention(nn.MultiheadAttention(8, 2))


def test_a_transformer_with_it_still_folds() -> None:
    net = Transformer(IMAGE, 16, 1, 2)
    for site in net.anatomy().sites("attention"):
        site.put(SimplifiedLinearAttention.for_site(site))
    for site in net.anatomy().sites("norm"):
        site.put(PRepBN.for_site(site))
    x = torch.randn(4, 1, 8, 8)
    expected = lived(net)(x)
    plain = fold(net)
    assert len(merge_norms(plain, partial(plain, x))) == 2
    torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-5)
