"""The Toeplitz network: causal, and the same token by token."""

from __future__ import annotations

import pytest
import torch

from engine.methods.models.tnn import TNN
from engine.parts import Offer
from tests.engine.methods.short import train

OFFER = Offer("tokens", (12,), "next-token", 9, 9)


def model() -> TNN:
    torch.manual_seed(0)
    return TNN(OFFER, 8, 2, 0.9, 2, 6)


def test_a_token_sees_itself_and_those_before_it() -> None:
    made, x = model(), torch.randint(9, (3, 12))
    other = x.clone()
    other[:, 7:] = (other[:, 7:] + 1) % 9
    one, two = made(x), made(other)
    assert torch.allclose(one[:, :7], two[:, :7], atol=1e-5)
    assert not torch.allclose(one[:, 7], two[:, 7], atol=1e-2)
    first = x.clone()
    first[:, 0] = (first[:, 0] + 1) % 9
    assert not torch.allclose(one[:, -1], made(first)[:, -1], atol=1e-4), "the first token is seen from the last"


def test_token_by_token_it_says_what_it_says_at_once() -> None:
    made, x = model(), torch.randint(9, (3, 12))
    expected = made(x).log_softmax(-1)
    state = made.begin(x[:, :5])
    for place in range(5, 12):
        log_p, state = made.advance(state, x[:, place])
        assert torch.allclose(log_p, expected[:, place], atol=1e-5)


def test_it_learns_to_tell_the_next_character() -> None:
    text = {"use": "python-text", "characters": 10000, "length": 16}
    recipe = {"task": text, "model": {"use": "tnn", "width": 16, "depth": 1, "rpe_dim": 8}, "budget": {"steps": 40}}
    _, _, outcome = train(**recipe, optimizer={"use": "adamw", "lr": 0.01})
    assert outcome.metrics["test/bits"] < 5.5  # 7 where nothing is known
    with pytest.raises(ValueError, match="next token"):
        TNN(Offer("vector", (3,), "classes", 2))
