"""Lanes of a ring store."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from . import _native
from ._producer_side import ProducerSide
from ._ring.parties import Parties


class Producer(ProducerSide):
    """A lane of its own into a `RingStore`; see `RingStore.producer`. Closing it, or letting go of it, ends the lane."""

    def __init__(self, lane: _native.Lane, parties: Parties) -> None:
        self._lane = lane
        self._parties = parties

    def close(self) -> None:
        """Ends the lane: it takes no more rows."""
        self._lane.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a Producer cannot be pickled: its store belongs to this process")
