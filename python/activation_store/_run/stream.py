"""The minibatches of a run, for threads and for tasks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from .run import Run

_SLICE = 0.05
"""Seconds of a wait between two looks for Ctrl-C."""


class Stream:
    """Serves the minibatches of a run. Never refers to the iterator, so a traceback from here does not keep the run going."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.has_ended = False
        """Whether a loop was told that there is no more."""

    def next(self, timeout: float | None) -> Any:
        end = None if timeout is None else time.monotonic() + timeout
        self._await_first_pass(timeout)
        try:
            consumer = self._run.opening.consumer()
            if consumer is None:
                raise StopIteration
            return consumer.next(None if end is None else max(0.0, end - time.monotonic()))
        except TimeoutError:
            raise
        except BaseException as end:
            self._settle(end)
            raise

    async def anext(self) -> Any:
        decided = self._run.opening.decided
        if not decided.done():
            await asyncio.wrap_future(decided)
        try:
            consumer = self._run.opening.consumer()
            if consumer is None:
                raise StopAsyncIteration
            return await consumer.__anext__()
        except asyncio.CancelledError:
            raise
        except BaseException as end:
            self._settle(end)
            raise

    def _await_first_pass(self, timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _SLICE if end is None else min(_SLICE, max(0.0, end - time.monotonic()))
            try:
                self._run.opening.decided.result(left)
            except TimeoutError:
                if end is not None and time.monotonic() >= end:
                    raise TimeoutError(f"no minibatch was ready within {timeout} s: the first forward pass has not ended") from None
            else:
                return

    def _settle(self, end: BaseException) -> None:
        """If the run has ended, and not only this wait: sees to it that no thread or hook is left of it."""
        if isinstance(end, StopIteration | StopAsyncIteration):
            self.has_ended = True
            self._run.stop()
        elif self._run.opening.has_ended:
            self._run.settle()
