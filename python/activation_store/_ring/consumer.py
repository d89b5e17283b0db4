"""One consumer of a ring: minibatches for threads and for tasks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Self

from .. import _native
from .._rows.batches import Batch
from .._rows.warnings import warn
from ..errors import ClosedWithError
from . import parties
from .failure import Failure
from .parties import Parties
from .returned import Returned
from .watch import watcher

_SLICE = 0.05
"""Seconds that a thread waits for a minibatch before it looks for one that a cancelled task has returned."""


class Consumer:
    """One consumer of a ring: what a loop iterates with. Threads and tasks may share it.

    A minibatch that arrives for a task which is cancelled at that moment goes to the next thread or task that asks.
    """

    def __init__(
        self,
        native: _native.Consumer,
        returned: Returned,
        failure: Failure,
        parties: Parties,
        out: Callable[[_native.Minibatch], Batch],
        is_late: bool = False,
    ) -> None:
        self._native = native
        self._returned = returned
        self._failure = failure
        self._parties = parties
        self._out = out
        self._is_late = is_late
        """Whether earlier loops had all minibatches before this one began."""
        self._has_failed = False
        """Whether the stream has ended with an error that is still to be raised."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        return self.next()

    def next(self, timeout: float | None = None) -> Batch:
        """As `RingStore.next`."""
        return self._served(self._take(timeout), StopIteration)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch:
        while True:
            try:
                minibatch = self._take(0)
            except TimeoutError:
                try:
                    minibatch = await self._arrival()
                except ClosedWithError as error:
                    self._note_failure(error)
                    continue
            return self._served(minibatch, StopAsyncIteration)

    def _served(self, minibatch: _native.Minibatch | None, end: type[Exception]) -> Batch:
        """A minibatch as it leaves. At the end says, once, why this loop, or every loop, had nothing."""
        self._parties.values.look(self._native.odd_values())
        if minibatch is not None:
            return self._out(minibatch)
        self._parties.note_end(self._native.only_dropped())
        if self._is_late:
            self._is_late = False
            warn("a loop over a store that has ended serves nothing: a store serves each row once, and earlier loops had all of them. To loop "
                 "several times, record the rows and loop over a Recording, or keep them in a TensorActivationStore")  # fmt: skip
        raise end

    def _take(self, timeout: float | None) -> _native.Minibatch | None:
        """Waits for the next minibatch; None at the end.

        Raises:
            TimeoutError: If none is ready in time.
            BaseException: The error that the store was closed with, once, after the last minibatch.
        """
        self._parties.note_reader()
        end = None if timeout is None else time.monotonic() + timeout
        left = timeout
        noticed: float | None = None
        while True:
            returned = self._returned.pop()
            if returned is not None:
                return returned
            if self._has_failed:
                self._has_failed = False
                raise self._failure.error()
            try:
                minibatch = self._native.next(_SLICE if left is None else min(left, _SLICE))
            except ClosedWithError as error:
                self._note_failure(error)
            except TimeoutError:
                if end is not None:
                    left = max(0.0, end - time.monotonic())
                    if left == 0:
                        raise self.late(timeout) from None
                else:
                    noticed = self._notice(noticed)
            else:
                if minibatch is not None or not self._returned:
                    return minibatch

    def late(self, timeout: float | None) -> TimeoutError:
        """The error of a wait that is over. Names the lane that a resumed store waits for."""
        missing = self._native.missing_lane()
        return TimeoutError(f"no minibatch was ready within {timeout} s" + (f": {missing}" if missing else ""))

    def _note_failure(self, error: ClosedWithError) -> None:
        """The stream has ended with the error that the store was closed with; with one of the native side, if Python gave none."""
        self._failure.note(RuntimeError(str(error)))
        self._has_failed = True

    def _notice(self, since: float | None) -> float:
        """Says what is missing if this thread has waited long since then. Returns the moment to count from."""
        now = time.monotonic()
        if since is None:
            return now
        if now - since < parties.AFTER:
            return since
        self._parties.look_for_writer("a loop over the store", missing_lane=self._native.missing_lane())
        return now

    async def _arrival(self) -> _native.Minibatch | None:
        """Awaits the next minibatch; None at the end. Cancelling it loses none."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[_native.Minibatch | None] = loop.create_future()

        def hand_over(minibatch: _native.Minibatch | None, error: BaseException | None) -> None:
            if arrived.done():
                self._returned.put(minibatch)
            elif error is not None:
                arrived.set_exception(error)
            else:
                arrived.set_result(minibatch)

        def callback(minibatch: _native.Minibatch | None, error: BaseException | None) -> None:
            try:
                loop.call_soon_threadsafe(hand_over, minibatch, error)
            except RuntimeError:  # the loop has been closed
                self._returned.put(minibatch)

        reminder: asyncio.TimerHandle

        def notice() -> None:
            nonlocal reminder
            self._parties.look_for_writer("a loop over the store", is_task=True, missing_lane=self._native.missing_lane())
            reminder = loop.call_later(parties.AFTER, notice)

        reminder = loop.call_later(parties.AFTER, notice)
        task = watcher().watch_next(self._native, callback)
        with self._returned.given_to(callback):
            try:
                return await arrived
            except asyncio.CancelledError:
                if not arrived.cancelled() and arrived.exception() is None:
                    self._returned.put(arrived.result())
                raise
            finally:
                reminder.cancel()
                watcher().forget(task)

    def __reduce__(self) -> Any:
        raise TypeError("a loop over a store cannot be pickled: its store belongs to this process")
