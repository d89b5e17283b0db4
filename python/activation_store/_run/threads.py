"""A run of a model over batches, on threads of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any

from .._rows.torch import HAS_TORCH, torch
from .replicas import Replica
from .run import Run

_SLICE = 0.05
"""Seconds of a wait between two looks for Ctrl-C."""


class ThreadRun(Run):
    """Runs every replica on a daemon thread, and ends them."""

    _threads: Sequence[threading.Thread] = ()

    def start(self) -> None:
        """Starts the threads."""
        self._at_work = len(self._replicas)
        self._threads = [
            threading.Thread(target=self._work, args=(number, replica), name=f"activation-store-model-{number}", daemon=True)
            for number, replica in enumerate(self._replicas)
        ]
        for thread in self._threads:
            thread.start()

    def next(self, timeout: float | None) -> Any:
        end = None if timeout is None else time.monotonic() + timeout
        self._await_first_pass(timeout)
        return self._take(None if end is None else max(0.0, end - time.monotonic()))

    async def anext(self) -> Any:
        if not self.opening.decided.done():
            await asyncio.wrap_future(self.opening.decided)
        return await self._arrival()

    def _await_first_pass(self, timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _SLICE if end is None else min(_SLICE, max(0.0, end - time.monotonic()))
            try:
                self.opening.decided.result(left)
            except TimeoutError:
                if end is not None and time.monotonic() >= end:
                    raise TimeoutError(f"no minibatch was ready within {timeout} s: the first forward pass has not ended") from None
            else:
                return

    def _wait_until_idle(self, bound: float) -> str | None:
        end, here = time.monotonic() + bound, threading.current_thread()
        threads = [thread for thread in self._threads if thread is not here]
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, end - time.monotonic()))
        late = ", ".join(thread.name for thread in threads if thread.is_alive())
        if not late:
            return None
        return f"{late}: the forward pass, or the loader, has not returned within {bound:g} s. Nothing more is captured, and the thread ends when it returns"

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
