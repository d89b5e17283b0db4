"""Deals batches to replicas by index."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .._rows.warnings import warn
from .positions import Position


class Dealer:
    """Deals the batches to the replicas by index: batch k goes to replica k modulo their number.

    It asks the loader for a batch only when a replica needs one, on that replica's thread. It keeps at most one for each
    of the others. Where the replicas' rows are merged in turn, a replica may have to run several batches before the
    ring takes rows of the next replica, which waits meanwhile. Then the dealer keeps as many batches as that takes: the
    ring bounds how far a replica runs ahead.
    """

    def __init__(self, batches: Iterable[Any], starts: Sequence[Position | None], *, in_turn: bool = False) -> None:
        self._starts = list(starts)
        self._in_turn = in_turn
        self._batches: Iterable[Any] | None = batches
        self._iterator: Iterator[Any] | None = None
        self._kept: list[deque[tuple[int, Any]]] = [deque() for _ in starts]
        self._next = min((start.batch for start in starts if start is not None), default=0)
        """Index of the next batch."""
        self._is_loading = False
        self._has_ended = all(start is None for start in starts)
        # Its lock may be taken twice by one thread: the garbage collector may stop a run anywhere.
        self._changed = threading.Condition()

    def batches_for(self, replica: int) -> Iterator[tuple[int, Any]]:
        """The batches of a replica, with their indices.

        Raises:
            BaseException: The loader's error, on the thread that asked it for a batch.
        """
        kept = self._kept[replica]
        if self._starts[replica] is None:
            return
        while True:
            with self._changed:
                self._changed.wait_for(lambda: kept or self._has_ended or self._may_load())
                if kept:
                    batch: Any = kept.popleft()
                    self._changed.notify_all()
                elif self._has_ended:
                    return
                else:
                    self._is_loading, batch = True, _NONE
            if batch is _NONE:
                self._load()
            else:
                yield batch
                del batch

    def stop(self) -> None:
        """Deals no more batches."""
        with self._changed:
            self._has_ended = True
            for kept in self._kept:
                kept.clear()
            self._changed.notify_all()

    def _may_load(self) -> bool:
        return not self._is_loading and (self._in_turn or not self._kept[self._next % len(self._kept)])

    def _load(self) -> None:
        """Takes the next batch from the loader. The lock is free meanwhile."""
        batch, has_ended = _NONE, True
        try:
            if self._iterator is None:
                assert self._batches is not None
                self._iterator, self._batches = batches_from(self._batches, self._next), None
            batch = next(self._iterator, _NONE)
            has_ended = batch is _NONE
        finally:
            with self._changed:
                self._is_loading = False
                if has_ended or self._has_ended:
                    self._has_ended, self._iterator = True, None  # a DataLoader's workers end with its iterator
                else:
                    replica = self._next % len(self._kept)
                    start = self._starts[replica]
                    if start is not None and self._next >= start.batch:
                        self._kept[replica].append((self._next, batch))
                    self._next += 1
                self._changed.notify_all()


def batches_from(batches: Iterable[Any], first: int) -> Iterator[Any]:
    """The batches from an index on. What cannot be indexed is read from its start."""
    if first == 0:
        return iter(batches)
    if hasattr(batches, "__getitem__") and hasattr(batches, "__len__"):
        indexed: Any = batches
        return (indexed[index] for index in range(first, len(indexed)))
    warn(f"the run goes on with batch {first}: `batches` ({type(batches).__name__}) cannot be indexed, so the batches before are "
         "loaded and skipped")  # fmt: skip
    iterator = iter(batches)
    for _ in range(first):
        next(iterator, None)
    return iterator


_NONE: Any = object()
