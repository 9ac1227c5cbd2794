"""UnMix-TNS: the start keeps the trained moments, its limits, its formulas sample by sample, and its state in a run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import RecipeError
from engine.methods.adaptation.unmix_tns import UnMixNorm, rate_of, replaceable
from engine.training.run import Run
from tests.engine.methods.short import ready

C = 5


def norm(seed: int = 0) -> nn.BatchNorm2d:
    rng = torch.Generator().manual_seed(seed)
    made = nn.BatchNorm2d(C)
    for tensor in (made.running_mean, made.weight, made.bias):
        tensor.data.normal_(generator=rng)
    made.running_var.uniform_(0.5, 2.0, generator=rng)
    return made.eval()


def layer(components: int = 4, seed: int = 0, **settings: Any) -> UnMixNorm:
    return UnMixNorm(norm(), components, rng=torch.Generator().manual_seed(seed), **settings)


def images(n: int = 6, seed: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, C, 4, 4, generator=rng) * 1.5 + torch.randn(n, C, 1, 1, generator=rng)


def slowly(x: Tensor, of: UnMixNorm, within: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The answer and the moved state, one sample, one component and one channel after the other."""
    means, variances = of.means.tolist(), of.variances.tolist()
    count, (new_means, new_variances) = len(means), (of.means.clone(), of.variances.clone())
    y = torch.empty_like(x)
    for b in range(len(x)):
        m = [float(x[b, c].mean()) for c in range(C)]
        s = [float(((x[b, c] - m[c]) ** 2).mean()) for c in range(C)]
        alike = []
        for k in range(count):
            dot = sum(m[c] * means[k][c] for c in range(C))
            alike.append(dot / math.sqrt(sum(v * v for v in m)) / math.sqrt(sum(v * v for v in means[k])) / 0.07)
        top = max(alike)
        p = [math.exp(a - top) for a in alike]
        p = [each / sum(p) for each in p]
        for c in range(C):
            mixed = [(1 - p[k]) * means[k][c] + p[k] * m[c] for k in range(count)]
            spread = [(1 - p[k]) * variances[k][c] + p[k] * s[c] for k in range(count)]
            if within:
                spread = [v + p[k] * (1 - p[k]) * (m[c] - means[k][c]) ** 2 for k, v in enumerate(spread)]
            mean = sum(mixed) / count
            var = sum(spread) / count + sum(v * v for v in mixed) / count - mean**2
            y[b, c] = (x[b, c] - mean) / math.sqrt(var + of.norm.eps) * of.norm.weight[c] + of.norm.bias[c]
            for k in range(count):
                new_means[k, c] += of.rate * p[k] * (m[c] - means[k][c]) / len(x)
                new_variances[k, c] += of.rate * p[k] * (s[c] - variances[k][c]) / len(x)
    return y.detach(), new_means.detach(), new_variances.detach()


@pytest.mark.parametrize("within", [False, True])
def test_an_answer_and_a_move_by_the_formulas(within: bool) -> None:
    made, x = layer(within=within, rate=0.3), images()
    expected, means, variances = slowly(x, made, within)
    assert torch.allclose(made(x), expected, atol=1e-5)
    assert torch.allclose(made.means, means, atol=1e-6) and torch.allclose(made.variances, variances, atol=1e-6)
    assert not torch.allclose(made(x), expected, atol=1e-3), "the state has moved"


def test_the_start_keeps_the_trained_mean_and_variance_in_expectation() -> None:
    source = norm()
    starts = [layer(16, seed) for seed in range(3000)]
    means = torch.stack([start.means for start in starts])
    mean = means.mean((0, 1))
    assert torch.allclose(mean, source.running_mean, atol=0.02 * float(source.running_var.max().sqrt()))
    total = torch.stack([start.variances.mean(0) + start.means.var(0, unbiased=False) for start in starts]).mean(0)
    assert torch.allclose(total, source.running_var, rtol=0.02)
    assert torch.allclose(starts[0].variances, (0.5 * source.running_var).expand(16, -1)), "half of it within"


def test_one_component_is_instance_normalization() -> None:
    made, x = layer(1), images()
    source = norm()
    assert torch.equal(made.means[0], source.running_mean) and torch.equal(made.variances[0], source.running_var)
    for _ in range(2):
        found = made(x)
        assert torch.allclose(found, F.instance_norm(x, weight=source.weight, bias=source.bias), atol=1e-5)


def test_no_rate_no_move_and_frozen_is_frozen() -> None:
    x = images()
    for made in (layer(rate=0.0), layer(rate=0.5)):
        made.frozen = made.rate > 0
        before = made.means.clone(), made.variances.clone()
        made(x)
        assert torch.equal(made.means, before[0]) and torch.equal(made.variances, before[1])


def test_a_samples_answer_does_not_depend_on_the_others_before_the_move() -> None:
    x = images()
    assert torch.allclose(layer()(x)[2:4], layer()(x[2:4]), atol=1e-5)


def test_small_batches_move_it_slowly() -> None:
    assert rate_of(0.1, 64) == pytest.approx(0.1)
    assert rate_of(0.1, 1) == pytest.approx(0.0016449, rel=1e-3)
    assert (1 - rate_of(0.1, 1)) ** 64 == pytest.approx(1 - rate_of(0.1, 64)), "64 of them are one of 64"


def test_gradients_pass_the_statistics_but_not_the_shares() -> None:
    made = layer()
    made.frozen = True
    x = images().double().requires_grad_(True)
    made.double()
    (grad,) = torch.autograd.grad(made(x).square().sum(), x)
    fixed = made.shares(x.detach().mean((2, 3)))

    def by_hand(x: Tensor) -> Tensor:
        mean, var = made.mixture(x.mean((2, 3)), x.var((2, 3), unbiased=False), fixed)
        y = (x - mean[..., None, None]) / (var[..., None, None] + made.norm.eps).sqrt()
        return (y * made.norm.weight.view(1, -1, 1, 1) + made.norm.bias.view(1, -1, 1, 1)).square().sum()

    (expected,) = torch.autograd.grad(by_hand(x), x)
    assert torch.allclose(grad, expected, atol=1e-9)
    assert made.norm.weight.requires_grad


# -- in a run ----------------------------------------------------------------------------------------------------------


def run_of(**changes: Any) -> Run:
    base: dict[str, Any] = {
        "task": {"use": "corrupted-digits", "order": "sorted", "passes": 3, "test_share": 0.2},
        "model": {"use": "cnn", "widths": [4]},
        "decoder": {"use": "unmix-tns", "components": 4},
        "training": {"batch_size": 32, "evaluation_batch": 64},
        "budget": {"steps": 4},
    }
    return ready(**{**base, **changes})[0]


def test_every_image_norm_is_replaced_while_it_answers_and_back_after() -> None:
    run = run_of()
    before = dict(run.model.named_modules())
    state = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    seen: list[int] = []
    run.model.register_forward_hook(lambda m, i, o: seen.append(sum(isinstance(x, UnMixNorm) for x in m.modules())))
    run.evaluate("test")
    count = len([m for m in before.values() if isinstance(m, nn.BatchNorm2d)])
    assert set(seen) == {count} and count == 3 == len(replaceable(run.model))
    assert dict(run.model.named_modules()) == before
    assert all(torch.equal(state[name], tensor) for name, tensor in run.model.state_dict().items())


def test_a_stream_moves_the_state_and_a_probe_does_not() -> None:
    run = run_of()
    first = run.evaluate("test")
    with run.answering() as answer:
        batches = list(run.batches("test"))
        start = [answer(batches[0])]
        moved = run.decoder._places[0][2].means.clone()  # type: ignore[union-attr]
        start.append(answer(batches[0]))
        assert not torch.equal(start[0], start[1])
        assert not torch.equal(run.decoder._places[0][2].means, moved)  # type: ignore[union-attr]
    for _ in range(2):
        assert torch.equal(run.predict(batches[0]), start[0]), "what is asked alone begins at the trained statistics"
    assert run.evaluate("test") == first


def test_it_starts_from_the_statistics_of_the_variant_that_is_measured() -> None:
    run = run_of(techniques=[{"use": "switch-ema", "decay": 0.5, "switch_interval": 0}])
    with torch.no_grad():
        for _, _, each in replaceable(run.model):
            each.running_mean.add_(3.0)  # type: ignore[union-attr]
    batch = next(run.batches("test"))
    assert not torch.allclose(run.predict(batch), run.predict(batch, "ema"), atol=1e-2)


def test_a_model_without_batch_normalization_is_refused() -> None:
    with pytest.raises(RecipeError, match="batch normalization over images"):
        run_of(model={"use": "cnn", "widths": [4], "norm": "layer"})
    with pytest.raises(RecipeError, match="batch normalization over images"):
        run_of(techniques=[{"use": "replace", "sites": "norm", "layer": {"use": "layer-norm"}}])
    with pytest.raises(RecipeError, match="takes image, but the task offers vector"):
        run_of(task={"use": "two-moons"}, model={"use": "mlp", "norm": "batch"})
