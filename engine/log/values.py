"""JSON in the database: one way to write it and to read it."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

import numpy as np


def dump(value: Any) -> str:
    """JSON text. NaN and infinities are written as Python's json writes them (NaN, Infinity), so that they come back.

    That is why these columns are read with `load`, never with SQLite's own JSON functions.
    """
    return json.dumps(value, default=_plain, separators=(",", ":"), ensure_ascii=False)


def load(text: str) -> Any:
    return json.loads(text)


def _plain(value: Any) -> Any:
    """NumPy's and the file system's types as plain data."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
