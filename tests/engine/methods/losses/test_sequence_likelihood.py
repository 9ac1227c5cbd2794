"""The likelihood of sequences: its two scales, against sums by hand."""

from __future__ import annotations

import pytest
import torch

from engine.errors import RecipeError
from engine.methods.losses.sequence_likelihood import SequenceLikelihood
from engine.parts import Batch
from tests.engine.methods.models.test_seq2seq_lstm import RECIPE
from tests.engine.methods.short import ready


def test_a_sentences_sum_is_the_mean_over_tokens_times_tokens_by_sentence() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(5, 4, 6, dtype=torch.float64), torch.randint(6, (5, 4))
    mask = torch.arange(4) < torch.tensor([4, 1, 2, 3, 4]).unsqueeze(1)
    batch = Batch({}, target, torch.arange(5), mask=mask)
    sentence = SequenceLikelihood("sentence")(logits, batch)["task"]
    token = SequenceLikelihood("token")(logits, batch)["task"]
    log_p = logits.log_softmax(-1)
    by_hand = [-sum(log_p[i, t, target[i, t]] for t in range(4) if mask[i, t]) for i in range(5)]
    assert torch.allclose(sentence, torch.stack(by_hand), atol=1e-12)
    assert token.mean() == pytest.approx(float(sum(by_hand) / mask.sum()), abs=1e-12)
    assert sentence.mean() == pytest.approx(float(token.mean() * mask.sum() / 5), abs=1e-12)


def test_a_mean_over_the_tokens_of_a_batch_cannot_be_split() -> None:
    training = {"batch_size": 32, "accumulate": 2}
    with pytest.raises(RecipeError, match="cannot be split"):
        ready(**{**RECIPE, "training": training}, loss={"use": "sequence-likelihood", "scale": "token"})
    ready(**{**RECIPE, "training": training}, loss={"use": "sequence-likelihood", "scale": "sentence"})
