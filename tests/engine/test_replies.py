"""Replies of language models, kept beside the log."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.errors import ContactError
from engine.replies import Replies, forget, key_of

REQUEST = {"model": "small", "messages": [{"role": "user", "content": "grüß dich"}], "repetition": [0, 1]}


def test_a_reply_comes_back_for_the_same_request_alone(tmp_path: Path) -> None:
    path = tmp_path / "replies.db"
    kept = Replies(path, "one")
    assert kept.get(REQUEST) is None and not path.exists(), "looking makes no file"
    kept.put(REQUEST, {"text": "guten Tag", "tokens": 3})
    assert Replies(path).get(dict(reversed(REQUEST.items()))) == {"text": "guten Tag", "tokens": 3}
    assert Replies(path).get({**REQUEST, "repetition": [0, 2]}) is None
    assert key_of(REQUEST) != key_of({**REQUEST, "repetition": [1]}) and len(kept) == 1


def test_in_memory_nothing_is_written() -> None:
    kept = Replies()
    kept.put(REQUEST, {"text": "a", "tokens": 0})
    assert kept.get(REQUEST) == {"text": "a", "tokens": 0} and len(kept) == 1 and Replies().get(REQUEST) is None


def test_the_first_reply_stays(tmp_path: Path) -> None:
    """Two runs that ask at once hear the same."""
    path = tmp_path / "replies.db"
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda i: Replies(path, f"run {i}").put(REQUEST, {"text": str(i)}), range(12)))
    assert len({reply["text"] for reply in told}) == 1 and Replies(path).get(REQUEST) == told[0]


def test_what_no_run_uses_any_more_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "replies.db"
    forget(path, "one")
    assert not path.exists()
    Replies(path, "one").put(REQUEST, {"text": "shared"})
    Replies(path, "one").put({**REQUEST, "model": "b"}, {"text": "alone"})
    assert Replies(path, "two").get(REQUEST) == {"text": "shared"}
    forget(path, "one")
    assert len(Replies(path)) == 1 and Replies(path).get(REQUEST) == {"text": "shared"}
    forget(path, "two")
    forget(path, "")
    assert len(Replies(path)) == 0


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "replies.db"
    path.write_text("no database" * 100)
    with pytest.raises(ContactError, match="cannot be read or written"):
        Replies(path).get(REQUEST)
