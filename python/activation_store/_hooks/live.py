"""The captures and the runs of models that are under way now."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, cast

lock = threading.RLock()
"""Held while one is looked for and another is added. The garbage collector may end a run, with its capture, anywhere."""


class Live(Protocol):
    """A capture, or the iterator of a run."""

    def _uses(self, models: Sequence[Any], /) -> bool:
        """Whether it captures or runs one of these models."""


LiveT = TypeVar("LiveT", bound=Live)

_live: list[weakref.ref[Any]] = []


def add(thing: Live) -> None:
    """Notes one. It need not be removed."""
    with lock:
        _live[:] = [ref for ref in _live if ref() is not None] + [weakref.ref(thing)]


def remove(thing: Live) -> None:
    """Forgets one."""
    with lock:
        _live[:] = [ref for ref in _live if ref() is not thing]


def using(kind: type[LiveT], models: Sequence[Any]) -> list[weakref.ref[LiveT]]:
    """Weak references to the captures, or to the runs, that use one of these models."""
    with lock:
        return [ref for ref in _live if isinstance(ref(), kind) and cast("LiveT", ref())._uses(models)]  # noqa: SLF001
