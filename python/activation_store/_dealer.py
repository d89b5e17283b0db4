"""Who runs which batch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any


class Dealer:
    """Deals the batches to the replicas by index: batch k goes to replica k modulo their number.

    It asks the loader for a batch only when a replica needs one, on that replica's thread. It keeps at most one for each
    of the others. Where the replicas' rows are merged in turn, a replica may have to run several batches before the
    ring takes rows of the next replica, which waits meanwhile. Then the dealer keeps as many batches as that takes: the
    ring bounds how far a replica runs ahead.
    """

    def __init__(self, batches: Iterable[Any], replicas: int, *, in_turn: bool = False) -> None:
        self._in_turn = in_turn
        self._batches: Iterable[Any] | None = batches
        self._iterator: Iterator[Any] | None = None
        self._kept: list[deque[Any]] = [deque() for _ in range(replicas)]
        self._next = 0
        """Index of the next batch."""
        self._is_loading = self._has_ended = False
        # Its lock may be taken twice by one thread: the garbage collector may stop a run anywhere.
        self._changed = threading.Condition()

    def batches_for(self, replica: int) -> Iterator[Any]:
        """The batches of a replica.

        Raises:
            BaseException: The loader's error, on the thread that asked it for a batch.
        """
        kept = self._kept[replica]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: kept or self._has_ended or self._may_load())
                if kept:
                    batch = kept.popleft()
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
                self._iterator, self._batches = iter(self._batches), None
            batch = next(self._iterator, _NONE)
            has_ended = batch is _NONE
        finally:
            with self._changed:
                self._is_loading = False
                if has_ended or self._has_ended:
                    self._has_ended, self._iterator = True, None  # a DataLoader's workers end with its iterator
                else:
                    self._kept[self._next % len(self._kept)].append(batch)
                    self._next += 1
                self._changed.notify_all()


_NONE: Any = object()
