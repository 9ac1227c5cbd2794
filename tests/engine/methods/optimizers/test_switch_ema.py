"""Switch EMA: torch's own average as the oracle, the switch, and what it must leave alone."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engine.methods.optimizers.switch_ema import averaged
from engine.training.loop import Trainer
from tests.engine.methods.short import ready, train

NORM = {"use": "mlp", "hidden": [8], "norm": "batch"}
EPOCHS = {"epochs": 3}


def _weights(run):
    return [t.detach().clone() for t in run.model.state_dict().values()]


def _equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_without_switches_the_run_is_the_plain_one_and_the_average_is_torchs():
    plain, _, _ = train(model=NORM, budget=EPOCHS)
    run, _ = ready(model=NORM, budget=EPOCHS, techniques=[{"use": "switch-ema", "decay": 0.9, "switch_interval": 0}])
    theirs = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.update_parameters(run.model)  # its first call only copies
    original = run.update

    def update(role, terms):
        original(role, terms)
        theirs.update_parameters(run.model)

    run.update = update
    Trainer(run).train()
    assert _equal(_weights(run), _weights(plain))
    (part,) = run.techniques
    torch.testing.assert_close(part.shadow, averaged(theirs.module), rtol=1e-6, atol=1e-6)
    assert not torch.equal(part.shadow[0], next(run.model.parameters()))


def test_with_decay_zero_it_is_the_plain_run_bit_for_bit():
    plain, _, _ = train(model=NORM, budget=EPOCHS)
    run, _, _ = train(model=NORM, budget=EPOCHS, techniques=[{"use": "switch-ema", "decay": 0.0}])
    assert _equal(_weights(run), _weights(plain))


@pytest.mark.parametrize(
    ("settings", "switched"),
    [({}, True), ({"switch_start": 3}, False), ({"switch_interval": 2}, False), ({"switch_interval": 3}, True)],
)
def test_after_a_switch_the_live_weights_are_the_average_to_the_last_bit(settings, switched):
    run, _, _ = train(model=NORM, budget=EPOCHS, techniques=[{"use": "switch-ema", "decay": 0.9, **settings}])
    (part,) = run.techniques
    assert _equal(part.shadow, averaged(run.model)) is switched


def test_steps_can_be_counted_instead_of_epochs():
    settings = {"use": "switch-ema", "decay": 0.9, "unit": "step", "switch_interval": 4}
    for steps, switched in ((7, False), (8, True)):
        run, _, _ = train(budget={"steps": steps}, techniques=[settings])
        assert _equal(run.techniques[0].shadow, averaged(run.model)) is switched


def test_the_variant_is_the_average_and_leaves_the_live_weights_as_they_were():
    settings = {"use": "switch-ema", "decay": 0.9, "switch_interval": 0}
    run, _, outcome = train(model=NORM, budget=EPOCHS, techniques=[settings])
    live = _weights(run)
    (part,) = run.techniques
    with run.variants()["ema"]():
        assert _equal(averaged(run.model), part.shadow)
    assert _equal(_weights(run), live)
    assert outcome.metrics["val@ema/loss"] != outcome.metrics["val/loss"]


def test_buffers_can_be_left_to_the_live_model_and_counters_always_are():
    run, _, _ = train(model=NORM, techniques=[{"use": "switch-ema", "decay": 0.9, "include_buffers": False}])
    assert len(run.techniques[0].shadow) == len(list(run.model.parameters()))
    both, _, _ = train(model=NORM, techniques=[{"use": "switch-ema", "decay": 0.9}])
    assert len(both.techniques[0].shadow) == len(list(run.model.parameters())) + 2  # mean and variance, no counter


def test_warming_up_starts_with_a_short_memory():
    settings = {"use": "switch-ema", "decay": 0.9, "switch_interval": 0}
    slow, _, _ = train(budget={"steps": 1}, techniques=[settings])
    quick, _, _ = train(budget={"steps": 1}, techniques=[{**settings, "warmup_steps": 10}])
    start = averaged(ready()[0].model)[0].detach()
    share = 1 - 0.9 * (1 - torch.tensor(-0.1).exp())
    for run, kept in ((slow, 0.1), (quick, share)):
        moved = run.techniques[0].shadow[0] - start
        torch.testing.assert_close(moved, kept * (averaged(run.model)[0].detach() - start), rtol=1e-4, atol=1e-7)
