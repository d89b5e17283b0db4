"""Minibatches that arrived for tasks which had been cancelled by then."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from .. import _native

Callback: TypeAlias = "Callable[[_native.Minibatch | None, BaseException | None], None]"


class Returned:
    """The minibatches that cancelled tasks of a store have returned, for the next thread or task that asks."""

    def __init__(self) -> None:
        self._minibatches: deque[_native.Minibatch] = deque()
        self._waiting: deque[Callback] = deque()
        """The tasks that wait for a minibatch."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._minibatches)

    def pop(self) -> _native.Minibatch | None:
        """The oldest, if there is one."""
        if self._minibatches:  # cheap, and there hardly ever is one
            with contextlib.suppress(IndexError):
                return self._minibatches.popleft()
        return None

    def put(self, minibatch: _native.Minibatch | None) -> None:
        """Returns one."""
        if minibatch is not None:
            self._minibatches.append(minibatch)
            self._hand_on()

    @contextlib.contextmanager
    def given_to(self, callback: Callback) -> Iterator[None]:
        """Gives one to a task that waits, through its `callback`, while the context lasts."""
        self._waiting.append(callback)
        self._hand_on()
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(callback)

    def clear(self) -> None:
        """Drops all of them."""
        self._minibatches.clear()

    def _hand_on(self) -> None:
        """Gives returned minibatches to tasks that wait for one."""
        while True:
            with self._lock:
                if not (self._minibatches and self._waiting):
                    return
                try:
                    minibatch = self._minibatches.popleft()
                except IndexError:  # a thread has taken it
                    return
                try:
                    callback = self._waiting.popleft()
                except IndexError:  # the task waits no longer
                    self._minibatches.appendleft(minibatch)
                    return
            callback(minibatch, None)
