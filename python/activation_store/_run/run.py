"""What a run on threads and a run in the loop's own thread share."""

from __future__ import annotations

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from .._rows.warnings import warn
from .dealer import Dealer
from .gate import Gate
from .opening import Opening
from .progress import NoProgress, Progress
from .replicas import Replica

BOUND = 5.0
"""Seconds that ending a run waits for the passes under way."""


class Run(ABC):
    """Runs a model over batches, and serves the minibatches.

    It never refers to the iterator that serves them, so a traceback from here does not keep the run going.
    """

    def __init__(
        self, replicas: Sequence[Replica], dealer: Dealer, opening: Opening, progress: Progress | NoProgress, gate: Gate
    ) -> None:
        self.opening = opening
        self.gate = gate
        self.has_served_all = False
        """Whether a loop was told that there is no more."""
        self._replicas = list(replicas)
        self._dealer = dealer
        self._progress = progress
        self._process = os.getpid()
        # The garbage collector may end a run anywhere, also in a pass.
        self._lock = threading.RLock()
        self._is_stopping = False
        self._ran = 0
        """How many batches the model has run."""

    @abstractmethod
    def start(self) -> None:
        """Begins."""

    @abstractmethod
    def next(self, timeout: float | None) -> Any:
        """The next minibatch, for a thread."""

    @abstractmethod
    async def anext(self) -> Any:
        """The next minibatch, for a task."""

    @abstractmethod
    def _wait_until_idle(self, bound: float) -> str | None:
        """Waits so many seconds for the passes under way. What to say if one has not returned by then."""

    def uses(self, models: Sequence[Any]) -> bool:
        """Whether it still runs one of these models."""
        return not self.opening.has_ended and any(replica.model is model for replica in self._replicas for model in models)

    def stop(self) -> None:
        """Discards what was captured, and ends the run. Waits, for a bounded time. Any thread may call it, also twice."""
        if os.getpid() != self._process:
            return  # a forked child has neither the threads nor the writer
        self._is_stopping = True
        self.gate.end()
        self._dealer.stop()
        self.opening.abort()
        self._settle()

    def _settle(self) -> None:
        """Sees to it that no thread or hook is left of a run that has ended. Waits, for a bounded time."""
        late = self._wait_until_idle(BOUND)
        self._take_hooks_off()
        self._progress.close(self.opening)
        if self._is_stopping:
            self.opening.release()
        if late is not None:
            warn(late)

    def _take_hooks_off(self) -> None:
        for replica in self._replicas:
            replica.remove()
        self._replicas = []

    def _take(self, timeout: float | None) -> Any:
        """A minibatch that is ready in time.

        Raises:
            TimeoutError: If none is.
            StopIteration: At the end.
            BaseException: The error that ended the run, once.
        """
        try:
            consumer = self.opening.consumer()
            if consumer is not None:
                return consumer.next(timeout)
            raise StopIteration if self.opening.has_ended else TimeoutError
        except TimeoutError:
            raise
        except BaseException as end:
            self._note_end(end)
            raise

    async def _arrival(self) -> Any:
        """As `_take`, for a task that waits as long as it takes. The ring is open, or will never be."""
        try:
            consumer = self.opening.consumer()
            if consumer is None:
                raise StopAsyncIteration
            return await consumer.__anext__()
        except asyncio.CancelledError:
            raise
        except BaseException as end:
            self._note_end(end)
            raise

    def _note_end(self, end: BaseException) -> None:
        """If the run has ended, and not only this wait: sees to it that nothing is left of it."""
        if isinstance(end, StopIteration | StopAsyncIteration):
            self.has_served_all = True
            self.stop()
        elif self.opening.has_ended:
            self._settle()
