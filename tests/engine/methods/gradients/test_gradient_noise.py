"""Gradient noise: its variance over time, its place in the update, and a stream that a resumed run goes on with."""

import pytest
import torch

from engine.training.loop import Trainer
from engine.training.roles import order_of
from tests.engine.methods.short import ready, train

NOISE = {"use": "gradient-noise", "eta": 0.3}


def _parameters(run):
    return [p.detach().clone() for p in run.model.parameters()]


def _equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("step", [0, 10, 1000])
def test_the_variance_is_eta_over_one_plus_t_to_the_gamma(step):
    run, _ = ready(model={"use": "mlp", "hidden": [300, 340]}, techniques=[NOISE])
    role = run.roles["main"]
    run.step = step
    for p in role.parameters:
        p.grad = torch.full_like(p, 0.5)
    (hook,) = role.before
    hook(run, role)
    noise = torch.cat([(p.grad - 0.5).flatten() for p in role.parameters])
    assert len(noise) > 1e5
    assert noise.var().item() == pytest.approx(0.3 / (1 + step) ** 0.55, rel=0.02)
    assert abs(noise.mean().item()) < 4 * (0.3 / len(noise)) ** 0.5


def test_without_noise_the_run_is_the_plain_one_bit_for_bit_and_with_it_it_is_not():
    plain = _parameters(train()[0])
    assert _equal(_parameters(train(techniques=[{"use": "gradient-noise", "eta": 0.0}])[0]), plain)
    noisy = _parameters(train(techniques=[NOISE])[0])
    assert not _equal(noisy, plain)
    assert _equal(_parameters(train(techniques=[NOISE])[0]), noisy)


@pytest.mark.parametrize(("after", "positions"), [(True, ("clip", "noise")), (False, ("clip", "shape"))])
def test_it_acts_after_or_before_the_clipping(after, positions):
    clip = {"use": "gradient-clipping", "limit": 1e-9}
    run, _ = ready(techniques=[{**NOISE, "after_clip": after}, clip])
    where = {part: row["position"] for row in order_of(run.techniques) for part in row["parts"]}
    assert (where["gradient-clipping"], where["gradient-noise"]) == positions
    role = run.roles["main"]
    for p in role.parameters:
        p.grad = torch.ones_like(p)
    for hook in role.before:
        hook(run, role)
    length = torch.cat([p.grad.flatten() for p in role.parameters]).norm().item()
    assert length > 0.1 if after else length == pytest.approx(1e-9, rel=1e-3)


def test_with_accumulation_noise_is_added_once_a_step():
    whole, _, _ = train(techniques=[NOISE])
    parts, _, _ = train(techniques=[NOISE], training={"batch_size": 16, "accumulate": 4})
    for a, b in zip(_parameters(whole), _parameters(parts), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_goes_on_with_the_noise():
    whole = Trainer(ready(techniques=[NOISE])[0])
    whole.train()
    first = Trainer(ready(techniques=[NOISE])[0])
    for _ in range(5):
        first._step()
    second = Trainer(ready(techniques=[NOISE])[0])
    second.load(first.state())
    second.train()
    assert _equal(_parameters(whole.run), _parameters(second.run))


def test_the_log_shows_signal_to_noise_and_an_eta_over_time():
    schedule = {"value": 0.3, "schedule": {"use": "cosine"}}
    _, memory, _ = train(techniques=[{**NOISE, "eta": schedule}], budget={"steps": 21})
    steps, ratios = memory.points["gradient-noise/signal-to-noise"]
    norms = dict(zip(*memory.points["gradient-norm"], strict=True))
    count = 2 * 8 + 8 + 8 * 2 + 2
    assert steps == [0, 10, 20]
    assert ratios[0] == pytest.approx(norms[0] / (0.3 * count) ** 0.5, rel=1e-5)
    assert memory.points["value/gradient-noise.eta"][1][0] == pytest.approx(0.3)
