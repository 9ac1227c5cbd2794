"""Text as tensors, and a module that holds it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kit.texts import Texts, pack, unpack

PLAIN = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=20)


@given(st.lists(PLAIN, max_size=6))
def test_what_is_packed_comes_back(texts: list[str]) -> None:
    codes = pack(texts)
    assert codes.dtype == torch.uint8 and codes.shape[0] == len(texts) and unpack(codes) == texts


def test_texts_are_saved_with_the_weights() -> None:
    one, other = Texts({"prompt": "héllo"}), Texts({"prompt": ""})
    one["answer 1"] = "a longer text"
    state = one.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values()) and not list(one.parameters())
    one["prompt"] = "changed"
    other.load_state_dict({name: value.clone() for name, value in state.items()})
    assert other.texts == {"prompt": "héllo", "answer 1": "a longer text"}
