"""The consumers' side of a ring store: minibatches for threads and for tasks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

from . import _native
from ._watch import watcher

_SLICE = 0.05
"""Seconds that a thread waits for a minibatch before it looks for one that a cancelled task has returned."""

_Callback = Callable[["_native.Minibatch | None", "BaseException | None"], None]


class Consumer:
    """Takes minibatches of a ring. Threads and tasks share it.

    A minibatch that arrives for a task which is cancelled at that moment goes to the next thread or task that asks.
    """

    def __init__(self, ring: _native.Ring) -> None:
        self._ring = ring
        self._returned: deque[_native.Minibatch] = deque()
        """Minibatches that arrived for cancelled tasks."""
        self._waiting: deque[_Callback] = deque()
        """The tasks that wait for a minibatch."""
        self._lock = threading.Lock()

    def take(self, timeout: float | None) -> _native.Minibatch | None:
        """Waits for the next minibatch; None at the end.

        Raises:
            TimeoutError: If none is ready in time.
        """
        end = None if timeout is None else time.monotonic() + timeout
        left = timeout
        while True:
            if self._returned:
                with contextlib.suppress(IndexError):
                    return self._returned.popleft()
            try:
                minibatch = self._ring.next(_SLICE if left is None else min(left, _SLICE))
            except TimeoutError:
                if end is not None:
                    left = max(0.0, end - time.monotonic())
                    if left == 0:
                        raise TimeoutError(f"no minibatch was ready within {timeout} s") from None
            else:
                if minibatch is not None or not self._returned:
                    return minibatch

    async def arrival(self) -> _native.Minibatch | None:
        """Awaits the next minibatch; None at the end. Cancelling it loses none."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[_native.Minibatch | None] = loop.create_future()

        def hand_over(minibatch: _native.Minibatch | None, error: BaseException | None) -> None:
            if arrived.done():
                self._give_back(minibatch)
            elif error is not None:
                arrived.set_exception(error)
            else:
                arrived.set_result(minibatch)

        def callback(minibatch: _native.Minibatch | None, error: BaseException | None) -> None:
            try:
                loop.call_soon_threadsafe(hand_over, minibatch, error)
            except RuntimeError:  # the loop has been closed
                self._give_back(minibatch)

        task = watcher().watch_next(self._ring, callback)
        self._waiting.append(callback)
        self._hand_on()
        try:
            return await arrived
        except asyncio.CancelledError:
            if not arrived.cancelled() and arrived.exception() is None:
                self._give_back(arrived.result())
            raise
        finally:
            watcher().forget(task)
            with contextlib.suppress(ValueError):
                self._waiting.remove(callback)

    def discard_returned(self) -> None:
        """Drops the minibatches that cancelled tasks have returned."""
        self._returned.clear()

    def _give_back(self, minibatch: _native.Minibatch | None) -> None:
        if minibatch is not None:
            self._returned.append(minibatch)
            self._hand_on()

    def _hand_on(self) -> None:
        """Gives returned minibatches to tasks that wait for one."""
        while True:
            with self._lock:
                if not (self._returned and self._waiting):
                    return
                try:
                    minibatch = self._returned.popleft()
                except IndexError:  # a thread has taken it
                    return
                try:
                    callback = self._waiting.popleft()
                except IndexError:  # the task waits no longer
                    self._returned.appendleft(minibatch)
                    return
            callback(minibatch, None)
