"""Label smoothing is torch's, a value a sample, and refuses what it cannot smooth."""

import pytest
import torch
from torch.nn import functional as F

from engine.methods.regularizers.label_smoothing import LabelSmoothing
from engine.parts import Batch
from tests.engine.methods.short import ready, train


def _terms(output, target, amount, mask=None):
    run, _ = ready()
    batch = Batch({"x": torch.zeros(len(target), 1)}, target, torch.arange(len(target)), mask=mask)
    return LabelSmoothing(amount).on_terms(run, run.task.objective(output, batch), output, batch)["task"]


@pytest.mark.parametrize("amount", [0.0, 0.1, 1.0])
def test_it_is_torchs_label_smoothing_sample_by_sample(amount):
    output, target = torch.randn(7, 5, dtype=torch.float64), torch.randint(5, (7,))
    expected = F.cross_entropy(output, target, label_smoothing=amount, reduction="none")
    torch.testing.assert_close(_terms(output, target, amount), expected, rtol=1e-12, atol=1e-12)


def test_tokens_are_smoothed_position_by_position_under_the_mask():
    output, target = torch.randn(3, 4, 6, dtype=torch.float64), torch.randint(6, (3, 4))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    each = F.cross_entropy(output.flatten(0, 1), target.flatten(), label_smoothing=0.2, reduction="none").view(3, 4)
    expected = (each * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(_terms(output, target, 0.2, mask), expected, rtol=1e-12, atol=1e-12)


def test_soft_targets_are_mixed_with_the_even_ones():
    output, target = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64).softmax(-1)
    expected = F.cross_entropy(output, 0.7 * target + 0.3 / 3, reduction="none")
    torch.testing.assert_close(_terms(output, target, 0.3), expected, rtol=1e-12, atol=1e-12)


def test_in_a_run_it_keeps_the_model_less_sure():
    def sureness(**changes):
        run, _, _ = train(budget={"steps": 50}, optimizer={"use": "adamw", "lr": 0.05}, **changes)
        (batch,) = run.batches("train")
        return run.predict(batch).softmax(-1).amax(-1).max().item()

    assert sureness(techniques=[{"use": "label-smoothing", "amount": 0.3}]) < 0.95 < sureness()
