"""The future that a write returns."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NamedTuple

from ._ring.watch import watcher

if TYPE_CHECKING:
    from . import _native

_RUNNING = "RUNNING"
_FINISHED = "FINISHED"


class Written(NamedTuple):
    """Rows that a store has taken.

    Attributes:
        rows: How many rows.
        first_row: The position of the first in the sequence of rows that its component has taken on its lane.
    """

    rows: int
    first_row: int


class Future(concurrent.futures.Future[Written]):
    """The outcome of a write: resolves when the store holds the rows, or with the error.

    Works wherever a `concurrent.futures.Future` does, and can be awaited: `await store.extend(batch, 0)`. A write
    cannot be cancelled. Dropping the future loses nothing, but its error is told nowhere else.
    """

    # Making one costs next to nothing: what the base class needs is made at its first use. The background thread (one for all
    # futures) watches only those that are awaited or have a callback.
    _state = _RUNNING
    _result: Written | None = None
    _exception: BaseException | None = None
    _watched = False
    _settling = False

    def __init__(self, outcome: _native.WriteOutcome) -> None:
        self._outcome = outcome

    @classmethod
    def resolved(cls, written: Written) -> Future:
        """The future of a write that has been done."""
        future = cls.__new__(cls)
        future._state, future._result, future._settling = _FINISHED, written, True
        return future

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        # The base class and `concurrent.futures.wait` take this lock, then look at the state and leave a callback or a
        # waiter: time to settle, or to watch.
        own = self.__dict__
        own.setdefault("_waiters", [])
        own.setdefault("_done_callbacks", [])
        self._watch()
        condition: threading.Condition = own.setdefault("_lock", threading.Condition())
        return condition

    def _watch(self) -> None:
        if self._settling or self._state != _RUNNING:
            return
        if self._outcome.done():
            self._settle()
        elif not self._watched:
            self._watched = True
            watcher().watch_write(self._outcome, self._settle)

    def _settle(self, timeout: float | None = 0) -> None:
        """Takes over the outcome.

        Raises:
            TimeoutError: If it is not known in time.
        """
        error, written = None, Written(0, 0)
        try:
            counts = self._outcome.wait(timeout)
        except Exception as raised:  # noqa: BLE001
            self._outcome.done()  # raises too where the future does not work at all: in another process
            error = raised
        else:
            if counts is None:
                raise TimeoutError(f"the rows were not in the store within {timeout} s; the write goes on")
            written = Written(*counts)
        self._settling = True
        try:
            if error is None:
                super().set_result(written)
            else:
                super().set_exception(error)
        except concurrent.futures.InvalidStateError:
            pass  # another thread was faster

    def done(self) -> bool:
        """Whether the outcome is known."""
        if self._state == _RUNNING and self._outcome.done():
            self._settle()
        return self._state == _FINISHED

    def running(self) -> bool:
        """Whether the outcome is not known yet."""
        return not self.done()

    def cancel(self) -> bool:
        """Does nothing: a write cannot be cancelled."""
        return False

    def cancelled(self) -> bool:
        """False: a write cannot be cancelled."""
        return False

    def result(self, timeout: float | None = None) -> Written:
        """Waits for the outcome.

        Raises:
            TimeoutError: If it is not known in time; the write goes on.
            Exception: The write's error.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        assert self._result is not None
        return self._result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits for the outcome: the write's error, or None.

        Raises:
            TimeoutError: If it is not known in time; the write goes on.
        """
        if self._state == _RUNNING:
            self._settle(timeout)
        return self._exception

    def __await__(self) -> Generator[Any, None, Written]:
        if not self.done():
            yield from asyncio.wrap_future(self).__await__()
        return self.result()

    def __reduce__(self) -> Any:
        raise TypeError("a write's Future cannot be pickled: it belongs to the process that wrote")
