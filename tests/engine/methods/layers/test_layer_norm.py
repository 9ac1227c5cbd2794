"""Layer normalization: agreement with its formula, its invariances, its places; and the recurrent cells."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.kit.anatomy import Site
from engine.kit.recurrent import NormalizedGRU, NormalizedLSTM, NormalizedRecurrent, NormalizedRNN
from engine.methods.layers.layer_norm import LayerNorm
from engine.methods.models.cnn import CNN
from engine.methods.models.mlp import MLP
from engine.parts import Offer

IMAGE = Offer("image", (1, 8, 8), "classes", 10)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def at(module: nn.Module, role: str, features: int) -> Site:
    return Site("here", module, nn.Sequential(module), "0", role, features)


def norm(features: int, eps: float = 1e-5, affine: bool = True) -> LayerNorm:
    return LayerNorm(at(nn.LayerNorm(features), "norm", features), eps, affine).double()


def by_hand(a: Tensor, eps: float) -> Tensor:
    mean = a.sum(-1, keepdim=True) / a.shape[-1]
    variance = (a - mean).pow(2).sum(-1, keepdim=True) / a.shape[-1]
    return (a - mean) / (variance + eps).sqrt()


def test_it_is_the_formula() -> None:
    layer = norm(6)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.uniform_(-1, 1)
    a = 3 * torch.randn(4, 6, dtype=torch.float64) + 2
    torch.testing.assert_close(layer(a), layer.weight * by_hand(a, 1e-5) + layer.bias, rtol=1e-12, atol=1e-12)
    sequence = torch.randn(4, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(sequence)[:, 1], layer(sequence[:, 1]), rtol=1e-12, atol=1e-12)


def test_mean_zero_and_variance_v_over_v_plus_eps() -> None:
    a = torch.randn(4, 6, dtype=torch.float64)
    out, variance = norm(6, eps=0.1)(a), a.var(1, correction=0)
    torch.testing.assert_close(out.mean(1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(out.var(1, correction=0), variance / (variance + 0.1), rtol=1e-10, atol=0)


def test_invariances_of_the_weights_before_it() -> None:
    layer, x = norm(6, eps=0.0), torch.randn(4, 5, dtype=torch.float64)
    w = torch.randn(6, 5, dtype=torch.float64)
    out = layer(x @ w.T)
    for same in (layer(7 * x @ w.T), layer(x @ (0.3 * w).T), layer(x @ (w + torch.randn(5, dtype=torch.float64)).T)):
        torch.testing.assert_close(same, out, rtol=1e-9, atol=1e-9)
    w[2] *= 2
    assert (layer(x @ w.T) - out).abs().max() > 0.1


def test_samples_do_not_see_each_other_and_evaluation_is_training() -> None:
    layer, x = norm(6), torch.randn(64, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[5:6], layer(x[5:6]), rtol=0, atol=0)
    torch.testing.assert_close(layer(x), layer.eval()(x), rtol=0, atol=0)
    assert not list(layer.buffers())


def test_in_an_image_it_goes_over_channels_and_pixels_with_a_gain_a_channel() -> None:
    model = CNN(IMAGE, widths=[4])
    site = model.anatomy().sites("norm")[0]
    layer = LayerNorm.for_site(site, eps=1e-5).double()
    with torch.no_grad():
        layer.weight.copy_(torch.arange(1.0, 5.0))
    a = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    expected = by_hand(a.flatten(1), 1e-5).view_as(a) * torch.arange(1.0, 5.0, dtype=torch.float64).view(4, 1, 1)
    torch.testing.assert_close(layer(a), expected, rtol=1e-10, atol=1e-10)


def test_places() -> None:
    model = MLP(IMAGE, hidden=[8])
    act = model.anatomy().sites("activation")[0]
    before, after = (LayerNorm.for_site(act, placement=p) for p in ("before", "after"))
    assert [type(m) for m in before] == [LayerNorm, nn.ReLU]
    assert [type(m) for m in after] == [nn.ReLU, LayerNorm]
    linear = LayerNorm.for_site(model.anatomy().sites("linear")[0])
    assert [type(m) for m in linear] == [nn.Linear, LayerNorm]
    with pytest.raises(ValueError, match="not to a Dropout"):
        LayerNorm.for_site(at(nn.Dropout(), "dropout", 8))
    with pytest.raises(ValueError, match="how many units"):
        LayerNorm.for_site(at(nn.ReLU(), "activation", 0))


# -- recurrent ---------------------------------------------------------------------------------------------------------


def ln(a: Tensor, module: nn.Module) -> Tensor:
    return module.weight * by_hand(a, 1e-5) + module.bias


def lstm_by_hand(cell: NormalizedLSTM, x: Tensor) -> Tensor:
    n, h, c = cell.width, torch.zeros(cell.width).double(), torch.zeros(cell.width).double()
    out = []
    for x_t in x:
        a = ln(cell.weight_h @ h, cell.norm_h) + ln(cell.weight_x @ x_t, cell.norm_x) + cell.bias
        f, i, o, g = a[:n], a[n : 2 * n], a[2 * n : 3 * n], a[3 * n :]
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(ln(c, cell.norm_c))
        out.append(h)
    return torch.stack(out)


def gru_by_hand(cell: NormalizedGRU, x: Tensor) -> Tensor:
    n, h = cell.width, torch.zeros(cell.width).double()
    out = []
    for x_t in x:
        gates = ln(cell.weight_h[: 2 * n] @ h, cell.norm_h) + ln(cell.weight_x[: 2 * n] @ x_t, cell.norm_x)
        r, z = torch.sigmoid(gates + cell.bias[: 2 * n]).split(n)
        own = ln(cell.weight_x[2 * n :] @ x_t, cell.candidate_x) + cell.bias[2 * n :]
        new = torch.tanh(own + r * ln(cell.weight_h[2 * n :] @ h, cell.candidate_h))
        h = (1 - z) * new + z * h
        out.append(h)
    return torch.stack(out)


def rnn_by_hand(cell: NormalizedRNN, x: Tensor) -> Tensor:
    h, out = torch.zeros(cell.width).double(), []
    for x_t in x:
        h = torch.tanh(ln(cell.weight_h @ h + cell.weight_x @ x_t, cell.norm))
        out.append(h)
    return torch.stack(out)


CELLS = [(NormalizedLSTM, lstm_by_hand), (NormalizedGRU, gru_by_hand), (NormalizedRNN, rnn_by_hand)]


@pytest.mark.parametrize(("kind", "by_hand"), CELLS)
def test_normalized_cells_are_their_formulas(kind: type[NormalizedRecurrent], by_hand) -> None:
    cell = kind(3, 4).double()
    for parameter in cell.parameters():
        nn.init.uniform_(parameter, 0.2, 1.0) if parameter.dim() == 1 else nn.init.normal_(parameter)
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    out = cell(x)
    for sample in range(2):
        torch.testing.assert_close(out[sample], by_hand(cell, x[sample]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [NormalizedLSTM, NormalizedRNN, NormalizedGRU])
def test_normalized_cells_do_not_look_ahead(kind: type[NormalizedRecurrent]) -> None:
    cell, x = kind(3, 4).double(), torch.randn(2, 6, 3, dtype=torch.float64)
    changed = x.clone()
    changed[:, 4] += 1
    difference = (cell(x) - cell(changed)).abs().amax((0, 2))
    assert (difference[:4] == 0).all() and (difference[4:] > 0).all()
