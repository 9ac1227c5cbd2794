"""Vector quantization: exact values, gradients of every variant, statistics, the codes' own step, replacement."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.kit.anatomy import Site
from engine.methods.layers.vq_ste_fixes import VQSTEFixes


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def layer(features: int = 3, codes: int = 6, **settings: Any) -> VQSTEFixes:
    return VQSTEFixes(features, **{"codes": codes, "affine": "none", "sync_nu": 0.0, **settings})


def plain(z: Tensor, codes: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """The usual quantizer, a vector at a time."""
    q = torch.stack([(codes - row).square().sum(1).argmin() for row in z])
    chosen = codes[q]
    loss = (1 - beta) * F.mse_loss(z, chosen.detach()) + beta * F.mse_loss(chosen, z.detach())
    return z + (chosen - z).detach(), alpha * loss, q


def test_without_its_changes_it_is_the_usual_quantizer() -> None:
    vq, z = layer(), torch.randn(20, 3, requires_grad=True)
    weight = torch.randn(20, 3)
    out = vq(z)
    loss = vq.aux_loss()
    assert loss is not None
    got = torch.autograd.grad((out * weight).sum() + loss, [z, vq.codebook])
    expected, extra, q = plain(z, vq.codebook, 10.0, 0.95)
    wanted = torch.autograd.grad((expected * weight).sum() + extra, [z, vq.codebook])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    assert torch.equal(vq.lookup(z), q)
    torch.testing.assert_close(loss, extra)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_synchronous_update_changes_gradients_and_no_value() -> None:
    vq, z = layer(sync_nu=2.0), torch.randn(9, 3, requires_grad=True)
    weight = torch.randn(9, 3)
    out = vq(z)
    assert (out - vq.table()[vq.lookup(z)]).abs().max() <= 1e-7
    to_z, to_codes = torch.autograd.grad((out * weight).sum(), [z, vq.codebook])
    assert torch.equal(to_z, weight)
    expected = torch.zeros_like(vq.codebook).index_add_(0, vq.lookup(z), 2.0 * weight)
    torch.testing.assert_close(to_codes, expected)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_learned_affine_map_starts_as_the_identity_and_moves_every_code(groups: int) -> None:
    vq = VQSTEFixes(3, codes=6, affine_groups=groups)
    assert torch.equal(vq.table(), vq.codebook)
    z = torch.randn(50, 3)
    vq(z)
    loss = vq.aux_loss()
    assert loss is not None
    loss.backward()
    before = vq.table().detach().clone()
    assert vq.affine is not None
    with torch.no_grad():
        for parameter in vq.affine.parameters():
            parameter -= 0.1 * parameter.grad  # type: ignore[operator]
    assert ((vq.table() - before).abs().sum(1) > 0).all()
    scale, shift = (p.detach()[:, 0] for p in vq.affine.parameters())
    rows = [vq.codebook[k] * (1 + 2 * scale[k * groups // 6]) + 2 * shift[k * groups // 6] for k in range(6)]
    torch.testing.assert_close(vq.table(), torch.stack(rows))


def test_running_statistics_give_the_codes_those_of_the_first_batch_then_follow() -> None:
    vq = layer(affine="running", codes=40)
    first, second = torch.randn(200, 3) * 2 + 5, torch.randn(200, 3) - 1
    vq(first)
    torch.testing.assert_close(vq.table().mean(0), first.mean(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(vq.table().std(0, correction=0), first.std(0, correction=0), rtol=0, atol=1e-5)
    vq(second)
    torch.testing.assert_close(vq.affine.z_mean[0, 0], 0.9 * first.mean(0) + 0.1 * second.mean(0))  # type: ignore[union-attr, index]
    var = 0.9 * first.var(0, correction=0) + 0.1 * second.var(0, correction=0)
    torch.testing.assert_close(vq.affine.z_var[0, 0], var)  # type: ignore[union-attr, index]
    vq.eval()(first)
    torch.testing.assert_close(vq.affine.z_var[0, 0], var)  # type: ignore[union-attr, index]


def test_the_codes_own_step_can_reach_the_means_of_their_vectors() -> None:
    vq, z = layer(alternating=True, inner_momentum=0.0), torch.randn(60, 3)
    q = vq.lookup(z)
    count = torch.bincount(q, minlength=6)
    rate: Any = (z.numel() / (2 * count.clamp_min(1))).unsqueeze(1)
    vq.inner_lr = rate
    before = vq.codebook.detach().clone()
    out = vq(z)
    for k in range(6):
        expected = z[q == k].mean(0) if count[k] else before[k]
        torch.testing.assert_close(vq.codebook[k], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(out, vq.codebook[q], rtol=0, atol=1e-6)
    assert vq.aux_loss() is None, "the task's loss stands alone"


def test_the_codes_own_step_is_sgd_with_momentum_and_leaves_no_other_gradient() -> None:
    vq = VQSTEFixes(3, codes=6, alternating=True, inner_lr=5.0, sync_nu=0.0)
    twin = nn.Parameter(vq.codebook.detach().clone())
    sgd = torch.optim.SGD([twin], lr=5.0, momentum=0.9)
    for _ in range(3):
        z = torch.randn(30, 3)
        q = vq.lookup(z)
        sgd.zero_grad()
        (twin[q] - z).square().mean().backward()
        sgd.step()
        vq(z)
        torch.testing.assert_close(vq.codebook, twin)
    assert vq.codebook.grad is None and all(p.grad is None for p in vq.parameters())
    kept = vq.codebook.detach().clone()
    vq.eval()(torch.randn(30, 3))
    with torch.no_grad():
        vq.train()(torch.randn(30, 3))
    assert torch.equal(vq.codebook, kept), "only in training"


def test_unused_codes_become_vectors_of_a_batch() -> None:
    vq = VQSTEFixes(3, codes=6, timeout=2)
    assert vq.affine is not None
    with torch.no_grad():
        vq.codebook[2:] += 100  # nobody chooses these
        vq.affine.scale.fill_(0.25)  # type: ignore[union-attr, operator]
        vq.affine.shift.fill_(-0.5)  # type: ignore[union-attr, operator]
    z = torch.randn(40, 3)
    for _ in range(2):
        vq(z)
        assert (vq.table()[2:] > 50).all()
    vq(z)
    found = vq.table()[2:]
    near = torch.cdist(found, z).min(1).values
    assert (near < 0.1).all() and (near > 0).all(), "a vector of the batch, a little off"
    assert (vq.left > 0).all()


def test_codes_start_at_the_clusters_of_the_first_batch() -> None:
    centres = torch.tensor([[10.0, 0, 0], [0, 10, 0], [0, 0, 10], [-10, 0, 0]])
    z = centres.repeat(25, 1) + 0.1 * torch.randn(100, 3)
    vq = layer(codes=4)
    vq.init_from(z)
    assert torch.cdist(vq.codebook, centres).min(0).values.max() < 0.2
    kept = layer(codes=4, k_means_start=False)
    before = kept.codebook.detach().clone()
    kept.init_from(z)
    assert torch.equal(kept.codebook, before)


@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (4, 7, 3), (6, 3)])
def test_vectors_are_the_channels_of_an_image_or_the_last_axis(shape: tuple[int, ...]) -> None:
    vq, x = layer(), torch.randn(shape)
    out = vq.eval()(x)
    assert out.shape == x.shape
    channels = 1 if x.dim() > 3 else x.dim() - 1
    for given, found in zip(vectors(x, channels), vectors(out, channels), strict=True):
        wanted = vq.codebook[(vq.codebook - given).square().sum(1).argmin()]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def vectors(x: Tensor, axis: int) -> list[Tensor]:
    """Every vector along an axis."""
    places = itertools.product(*(range(n) for n in x.shape[:axis] + x.shape[axis + 1 :]))
    return [x[(*place[:axis], slice(None), *place[axis:])] for place in places]


@pytest.mark.parametrize("kind", ["l2", "layer"])
def test_normalized_vectors_and_codes(kind: str) -> None:
    vq = layer(codes=5, normalize=kind)
    out = vq.eval()(torch.randn(8, 3) * 4)
    if kind == "l2":
        torch.testing.assert_close(out.norm(dim=1), torch.ones(8))
    else:
        torch.testing.assert_close(out.mean(1), torch.zeros(8), rtol=0, atol=1e-5)


def test_it_says_how_its_codes_are_used() -> None:
    vq = layer(codes=4)
    assert vq.measures() == {}
    with torch.no_grad():
        vq.codebook.copy_(torch.eye(4, 3) * 10)
    vq(torch.tensor([[10.0, 0, 0], [10, 0, 0], [0, 10, 0], [0, 9, 0]]))
    found = {name: value.item() for name, value in vq.measures().items()}
    assert found == pytest.approx({"active": 0.5, "perplexity": 2.0, "error": 1 / 12})


def test_it_follows_what_it_is_put_at() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    site = Site("1", net[1], net, "1", "activation", 3)
    made = VQSTEFixes.for_site(site, codes=4)
    assert isinstance(made, nn.Sequential) and made[0] is net[1] and isinstance(made[1], VQSTEFixes)
    alone = VQSTEFixes.for_site(Site("q", nn.Identity(), net, "q", "", 3), codes=4)
    assert isinstance(alone, VQSTEFixes)
    with pytest.raises(ValueError, match="do not divide 4 codes"):
        VQSTEFixes(3, codes=4, affine_groups=3)
