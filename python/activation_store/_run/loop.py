"""A run of a model whose passes run in the thread of the loop over the minibatches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from .pass_context import like_a_new_thread
from .run import Run

_SLICE = 0.0005
"""Seconds of a wait for the writer between two looks at what it has left."""


class LoopRun(Run):
    """Runs a pass of its only replica whenever the loop wants a minibatch and none is ready.

    Handing over does not wait for room, because only this loop makes room. What exceeds it waits in the ring's queue. The
    next batch runs only when the ring has taken the rows of the one before: so at most one batch's rows are kept aside. `_lock` is held
    during a pass, because several threads may share the loop.
    """

    _batches: Iterator[tuple[int, Any]] | None = None
    """None before the first pass."""

    def start(self) -> None:
        """Starts nothing: the first pass runs when the first minibatch is wanted."""

    def next(self, timeout: float | None) -> Any:
        """The next minibatch. A pass is never broken off: the timeout counts between two passes, and the first begins in any case."""
        end, has_run = None if timeout is None else time.monotonic() + timeout, False
        while True:
            left = None if end is None else max(0.0, end - time.monotonic())
            # Looked at first, so that all minibatches of these rows are ready below.
            is_settled = not self._has_rows_aside()
            try:
                return self._take(left if self.opening.has_ended else 0.0 if is_settled else _SLICE)
            except TimeoutError:
                if left == 0 and (has_run or not is_settled):
                    consumer = self.opening.consumer()
                    raise TimeoutError(f"no minibatch was ready within {timeout} s") if consumer is None else consumer.late(timeout) from None
            if is_settled:
                self._advance(left)
                has_run = True

    async def anext(self) -> Any:
        """The next minibatch. A pass runs on a thread of asyncio's, so that other tasks go on."""
        while not self.opening.has_ended:
            try:
                return self._take(0)
            except TimeoutError:
                self.gate.check()  # here, because the pass runs on another thread
                await asyncio.to_thread(self._advance_and_settle)
            except StopIteration:
                raise StopAsyncIteration from None
        return await self._arrival()

    def _has_rows_aside(self) -> bool:
        """Whether rows wait for the writer, or for room in the ring."""
        stats = self.opening.stats()
        return stats is not None and any(component.queued for component in stats.components.values())

    def _advance(self, timeout: float | None) -> None:
        """Runs the next batch. If another thread does, waits for that. If rows are aside, waits for the writer, a little."""
        self.gate.check()  # before the lock: a pass that this thread holds back may have it
        if not self._lock.acquire(blocking=False):
            if self._lock.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
                self._lock.release()
            return
        try:
            if not self.opening.has_ended and not self._has_rows_aside():
                self._run_batch()
        finally:
            self._lock.release()

    def _advance_and_settle(self) -> None:
        """Runs the next batch, and waits until the writer has done what it can. For a task, on a thread that may wait."""
        self._advance(None)
        while not self.opening.has_ended and self._has_rows_aside():
            try:
                store = self.opening.store
                if store.stats().frames_ready:
                    return
                store.flush(_SLICE)
            except TimeoutError:
                pass
            except (RuntimeError, ValueError):  # the run has been ended meanwhile
                return

    def _run_batch(self) -> None:
        replicas = self._replicas  # another thread may end the run
        if not replicas:
            return
        [replica] = replicas
        try:
            with like_a_new_thread():
                if self._batches is None:
                    self._batches = self._dealer.batches_for(0)
                    replica.__enter__()
                following = next(self._batches, None)
                goes_on = following is not None and replica.run(*following)
            if goes_on:
                self._progress.passed(self.opening)
                self._ran += 1
            else:
                self._end(None if self._is_stopping else self.opening.nothing_kept(self._ran))
        except Exception as error:  # noqa: BLE001
            self._end(error)
        except BaseException:
            # Ctrl-C has broken off a batch, whose rows would be missing.
            self.stop()
            raise

    def _end(self, error: Exception | None) -> None:
        """Runs no more batches. What was captured is served, then the error is raised."""
        self._take_hooks_off()
        self.opening.end_lane(0)
        self._dealer.stop()
        self.opening.end(error)
        self._progress.close(self.opening)

    def _wait_until_idle(self, bound: float) -> str | None:
        if self._lock.acquire(timeout=bound):
            self._lock.release()
            return None
        return f"the forward pass, or the loader, has not returned within {bound:g} s. Nothing more is captured"
