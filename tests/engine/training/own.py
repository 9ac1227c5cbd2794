"""Parts that exist for one test: the catalog as if they were among the methods."""

from __future__ import annotations

from typing import Any

import pytest

from engine import registry
from engine.parts import info


def offer(monkeypatch: pytest.MonkeyPatch, *parts: Any) -> None:
    """Makes parts known to recipes until the test ends."""
    known = {**registry.classes(), **{info(part).id: part for part in parts}}
    monkeypatch.setattr(registry, "classes", lambda: known)
