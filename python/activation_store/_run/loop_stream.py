"""The minibatches of a run in the loop's thread, for threads and for tasks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from .loop_run import _SLICE, LoopRun


class LoopStream:
    """Serves the minibatches of a run, and runs its passes. Never refers to the iterator, so a traceback from here does not keep the run going."""

    def __init__(self, run: LoopRun) -> None:
        self._run = run
        self.has_ended = False
        """Whether a loop was told that there is no more."""

    def next(self, timeout: float | None) -> Any:
        """The next minibatch. A pass is never broken off: the timeout counts between two passes, and the first begins in any case."""
        run, end, has_run = self._run, None if timeout is None else time.monotonic() + timeout, False
        while True:
            left = None if end is None else max(0.0, end - time.monotonic())
            # Looked at first, so that all minibatches of these rows are ready below.
            is_settled = not run.has_rows_aside()
            try:
                return self._take(left if run.opening.has_ended else 0.0 if is_settled else _SLICE)
            except TimeoutError:
                if left == 0 and (has_run or not is_settled):
                    consumer = run.opening.consumer()
                    raise TimeoutError(f"no minibatch was ready within {timeout} s") if consumer is None else consumer.late(timeout) from None
            if is_settled:
                run.advance(left)
                has_run = True

    async def anext(self) -> Any:
        """The next minibatch. A pass runs on a thread of asyncio's, so that other tasks go on."""
        run = self._run
        while not run.opening.has_ended:
            try:
                return self._take(0)
            except TimeoutError:
                run.gate.check()  # here, because the pass runs on another thread
                await asyncio.to_thread(run.advance_and_settle)
            except StopIteration:
                raise StopAsyncIteration from None
        try:
            consumer = run.opening.consumer()
            if consumer is None:
                raise StopAsyncIteration
            return await consumer.__anext__()
        except asyncio.CancelledError:
            raise
        except BaseException as end:
            self._settle(end)
            raise

    def _take(self, timeout: float | None) -> Any:
        """A minibatch that is ready in time.

        Raises:
            TimeoutError: If none is.
            StopIteration: At the end.
        """
        opening = self._run.opening
        try:
            consumer = opening.consumer()
            if consumer is not None:
                return consumer.next(timeout)
            if opening.has_ended:
                raise StopIteration
            raise TimeoutError
        except TimeoutError:
            raise
        except BaseException as end:
            self._settle(end)
            raise

    def _settle(self, end: BaseException) -> None:
        """If the run has ended, and not only this wait: sees to it that no hook is left of it."""
        if isinstance(end, StopIteration | StopAsyncIteration):
            self.has_ended = True
            self._run.stop()
        elif self._run.opening.has_ended:
            self._run.settle()
