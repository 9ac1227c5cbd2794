"""What holds around a piece of work without being handed from call to call: whose permissions, which workspace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Around(Generic[T]):
    """A frozen dataclass that holds for a stretch; outside of any, what `make` makes."""

    def __init__(self, name: str, make: Callable[[], T]):
        self._make = make
        self._current: ContextVar[T | None] = ContextVar(name, default=None)

    def now(self) -> T:
        """What holds at this moment."""
        return self._current.get() or self._make()

    @contextmanager
    def changed(self, **changes: Any) -> Iterator[T]:
        """A stretch with some of it changed."""
        changed: T = replace(self.now(), **changes)  # type: ignore[type-var]
        token = self._current.set(changed)
        try:
            yield changed
        finally:
            self._current.reset(token)
