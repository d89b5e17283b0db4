"""A run of a model over batches, on threads of its own."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from .._rows.torch import HAS_TORCH, torch
from .._rows.warnings import warn
from .dealer import Dealer
from .gate import Gate
from .opening import Opening
from .progress import NoProgress, Progress
from .replicas import Replica

BOUND = 5.0
"""Seconds that ending a run waits for its threads."""


class Run:
    """Runs every replica on a daemon thread, and ends them. It never refers to the iterator that serves it."""

    def __init__(
        self, replicas: Sequence[Replica], dealer: Dealer, opening: Opening, progress: Progress | NoProgress, gate: Gate
    ) -> None:
        self.opening = opening
        self.gate = gate
        self._replicas = list(replicas)
        self._dealer = dealer
        self._progress = progress
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._at_work = len(self._replicas)
        self._ran = 0
        """How many batches the model has run."""
        self._is_stopping = False
        self._threads = [
            threading.Thread(target=self._work, args=(number, replica), name=f"activation-store-model-{number}", daemon=True)
            for number, replica in enumerate(self._replicas)
        ]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def runs(self, models: Sequence[Any]) -> bool:
        """Whether it still runs one of these models."""
        return not self.opening.has_ended and any(replica.model is model for replica in self._replicas for model in models)

    def stop(self) -> None:
        """Discards what was captured and ends the threads with their forward passes. Any thread may call it, also twice."""
        if os.getpid() != self._process:
            return  # a forked child has no such threads
        self._is_stopping = True
        self.gate.end()
        self._dealer.stop()
        self.opening.abort()
        self.settle()

    def settle(self) -> None:
        """Waits, for a bounded time, until the threads of a run that has ended are gone. Lets go of everything."""
        end = time.monotonic() + BOUND
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))
        late = [thread.name for thread in self._threads if thread.is_alive() and thread is not threading.current_thread()]
        for replica in self._replicas:
            replica.remove()
        if self._is_stopping:
            self.opening.release()
        if late:
            warn(f"{', '.join(late)}: the forward pass, or the loader, has not returned within {BOUND:g} s. Nothing more is captured, "
                 "and the thread ends when it returns")  # fmt: skip
        self._threads, self._replicas = [], []

    def _work(self, number: int, replica: Replica) -> None:
        error: BaseException | None = None
        try:
            with torch.no_grad() if HAS_TORCH else contextlib.nullcontext(), replica:
                for index, batch in self._dealer.batches_for(number):
                    if self._is_stopping or not replica.run(index, batch):
                        break
                    self._progress.passed(self.opening)
                    with self._lock:
                        self._ran += 1
        except BaseException as raised:  # noqa: BLE001
            error = raised
        # The hooks are off by now.
        self.opening.end_lane(number)
        with self._lock:
            self._at_work -= 1
            is_last = not self._at_work
        if error is None and is_last and not self._is_stopping:
            error = self.opening.nothing_kept(self._ran)
        if error is not None or is_last:
            self._dealer.stop()
            self.opening.end(error)
        if is_last:
            self._progress.close(self.opening)
