"""A run of a model whose passes run in the thread of the loop over the minibatches."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from .._rows.warnings import warn
from . import run
from .dealer import Dealer
from .gate import Gate
from .opening import Opening
from .pass_context import like_a_new_thread
from .progress import NoProgress, Progress
from .replicas import Replica

_SLICE = 0.0005
"""Seconds of a wait for the writer between two looks at what it has left."""


class LoopRun:
    """Runs a pass whenever the loop wants a minibatch and none is ready. It never refers to the iterator that serves it.

    Handing over does not wait for room, because only this loop makes room. What exceeds it waits in the ring's queue. The
    next batch runs only when the ring has taken the rows of the one before: so at most one batch's rows are kept aside.
    """

    def __init__(self, replica: Replica, dealer: Dealer, opening: Opening, progress: Progress | NoProgress, gate: Gate) -> None:
        self.opening = opening
        self.gate = gate
        self._replica: Replica | None = replica
        self._dealer = dealer
        self._batches = dealer.batches_for(0)
        self._progress: Progress | NoProgress = progress
        self._process = os.getpid()
        # Held during a pass: several threads may share the loop. The garbage collector may end a run in the middle of a pass.
        self._lock = threading.RLock()
        self._has_entered = self._is_stopping = False
        self._ran = 0
        """How many batches the model has run."""

    def start(self) -> None:
        """Starts nothing: the first pass runs when the first minibatch is wanted."""

    def runs(self, models: Sequence[Any]) -> bool:
        """Whether it still runs one of these models."""
        replica = self._replica
        return not self.opening.has_ended and replica is not None and any(replica.model is model for model in models)

    def has_rows_aside(self) -> bool:
        """Whether rows wait for the writer, or for room in the ring."""
        stats = self.opening.stats()
        return stats is not None and any(component.queued for component in stats.components.values())

    def advance(self, timeout: float | None) -> None:
        """Runs the next batch. If another thread does, waits for that. If rows are aside, waits for the writer, a little."""
        self.gate.check()  # before the lock: a pass that this thread holds back may have it
        if not self._lock.acquire(blocking=False):
            if self._lock.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
                self._lock.release()
            return
        try:
            if not self.opening.has_ended and not self.has_rows_aside():
                self._run_batch()
        finally:
            self._lock.release()

    def advance_and_settle(self) -> None:
        """Runs the next batch, and waits until the writer has done what it can. For a task, on a thread that may wait."""
        self.advance(None)
        while not self.opening.has_ended and self.has_rows_aside():
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
        replica = self._replica
        if replica is None:
            return
        try:
            with like_a_new_thread():
                if not self._has_entered:
                    self._has_entered = True
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

    def stop(self) -> None:
        """Discards what was captured. Waits, for a bounded time, for a batch that another thread runs. Any thread may call it, also twice."""
        if os.getpid() != self._process:
            return  # a forked child has no writer
        self._is_stopping = True
        self.gate.end()
        self._dealer.stop()
        self.opening.abort()
        self.settle()

    def settle(self) -> None:
        """Waits, for a bounded time, for a batch that another thread runs. Lets go of everything."""
        is_idle = self._lock.acquire(timeout=run.BOUND)
        self._take_hooks_off()
        if is_idle:
            self._lock.release()
        self._progress.close(self.opening)
        if self._is_stopping:
            self.opening.release()
        if not is_idle:
            warn(f"the forward pass, or the loader, has not returned within {run.BOUND:g} s. Nothing more is captured")

    def _take_hooks_off(self) -> None:
        if self._replica is not None:
            self._replica.remove()
        self._replica = None
