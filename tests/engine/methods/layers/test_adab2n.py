"""AdaB2N: its weights of samples, its share of the running statistics, and torch's own norm as the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.methods.layers.adab2n import AdaB2N


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return 2 + 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(features: int = 3, **settings: object) -> AdaB2N:
    return AdaB2N(nn.BatchNorm2d(features), **settings).double()  # type: ignore[arg-type]


def test_one_experience_is_torchs_batch_norm() -> None:
    layer, x = made(), numbers(8, 3, 4, 4)
    layer.side(torch.zeros(8, dtype=torch.long))
    expected = F.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    vectors = AdaB2N(nn.BatchNorm1d(3)).double()
    vectors.side(torch.zeros(8, dtype=torch.long))
    torch.testing.assert_close(vectors(x[:, :, 0, 0]), F.batch_norm(x[:, :, 0, 0], None, None, training=True))


@pytest.mark.parametrize(("kappa", "shares"), [(1.0, [0.1] * 6), (0.0, [1 / t for t in range(1, 7)])])
def test_the_running_share_is_an_average_of_all_or_of_the_newest(kappa: float, shares: list[float]) -> None:
    layer, found, mean = made(kappa=kappa), [], torch.zeros(3, dtype=torch.float64)
    for t, share in enumerate(shares):
        x = numbers(8, 3, 2, 2, seed=t)
        layer.side(torch.zeros(8, dtype=torch.long))
        layer(x)
        found.append(float(layer.eta))
        mean = (1 - share) * mean + share * x.mean((0, 2, 3))
    assert found == pytest.approx(shares, abs=1e-7)
    torch.testing.assert_close(layer.running_mean, mean, rtol=1e-6, atol=1e-6)


def test_between_the_ends_the_share_falls_as_the_recurrence_says() -> None:
    layer, eta = made(kappa=0.7), 0.1**0.7
    for t in range(5):
        layer.side(torch.zeros(4, dtype=torch.long))
        layer(numbers(4, 3, 2, 2, seed=t))
        assert float(layer.eta) == pytest.approx(eta, rel=1e-6)
        eta = eta / (eta + 0.9**0.7)


EXPERIENCE = torch.tensor([0, 0, 0, 0, 0, 2, 2, 7])


def test_the_weights_of_samples_sum_to_one_and_follow_the_formula() -> None:
    layer = made()
    with torch.no_grad():
        layer.balance.copy_(torch.linspace(-1, 1, 10))
    found = layer.shares(EXPERIENCE)
    count = {0: 5, 2: 2, 7: 1}
    size = {k: layer.balance[k].exp().item() + n for k, n in count.items()}
    expected = [size[int(k)] / sum(size.values()) / count[int(k)] for k in EXPERIENCE]
    assert found.tolist() == pytest.approx(expected, rel=1e-12) and float(found.detach().sum()) == pytest.approx(1)


def test_the_limits_of_the_balance_are_plain_and_equal_shares() -> None:
    layer = made()
    for balance, shares in ((-60.0, [5 / 8, 2 / 8, 1 / 8]), (60.0, [1 / 3] * 3)):
        with torch.no_grad():
            layer.balance.fill_(balance)
        found = layer.shares(EXPERIENCE).detach()
        assert [float(found[k == EXPERIENCE].sum()) for k in (0, 2, 7)] == pytest.approx(shares)


def test_the_reference_keeps_what_is_absent_in_the_denominator() -> None:
    layer = made(absent="reference")
    assert float(layer.shares(EXPERIENCE).detach().sum()) == pytest.approx(1)
    later = layer.shares(torch.tensor([0, 0])).detach()
    assert float(later.sum()) == pytest.approx((1 + 2) / (3 + 1 + 1)), "experiences 2 and 7 were seen and are absent"


def test_the_statistics_are_the_weighted_ones() -> None:
    layer, x = made(), numbers(8, 3, 2, 2)
    layer.side(EXPERIENCE)
    out = layer(x)
    share = layer.shares(EXPERIENCE)
    mean = sum(share[i] * x[i].mean((1, 2)) for i in range(8))
    var = sum(share[i] * (x[i] - mean[:, None, None]).square().mean((1, 2)) for i in range(8))  # type: ignore[index]
    expected = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()  # type: ignore[index]
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


def test_the_pull_is_towards_the_running_statistics_and_reaches_the_balance() -> None:
    layer, x = made(pull=2.0, start=2), numbers(8, 3, 2, 2)
    layer.side(EXPERIENCE)
    layer(x)
    share = layer.shares(EXPERIENCE)
    mean = share @ x.mean((2, 3))
    var = share @ (x - mean[None, :, None, None]).square().mean((2, 3))
    expected = 2 * (F.mse_loss(mean, layer.running_mean) + F.mse_loss(var, layer.running_var))
    loss = layer.aux_loss()
    assert loss is not None and loss.item() == pytest.approx(expected.item(), rel=1e-10)
    loss.backward()
    assert layer.balance.grad is not None and layer.balance.grad[0] != 0
    layer.side(torch.zeros(8, dtype=torch.long))
    layer(x)
    assert layer.aux_loss() is not None and float(layer.aux_loss()) == 0, "before its first experience it is silent"  # type: ignore[arg-type]


def test_evaluation_and_what_it_folds_to_are_the_plain_norm() -> None:
    layer, x = made(), numbers(8, 3, 2, 2)
    layer.side(EXPERIENCE)
    layer(x)
    with torch.no_grad():
        layer.weight.mul_(1.5)
        layer.bias.add_(0.2)
    layer.eval()
    expected = F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=1e-5)
    torch.testing.assert_close(layer(x), expected)
    assert layer.aux_loss() is None
    plain = layer.fold()
    assert type(plain) is nn.BatchNorm2d
    torch.testing.assert_close(plain(x), expected)


def test_other_norms_are_refused() -> None:
    with pytest.raises(ValueError, match="takes the place of a batch normalization"):
        AdaB2N(nn.LayerNorm(3))
