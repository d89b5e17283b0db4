"""Where the rows of forward passes go."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

from . import _native
from ._incoming import incoming
from ._masks import mask_bytes, select
from ._native import IfFull
from ._producer_side import on_event_loop
from ._torch import torch
from .errors import StoreFullError
from .producer import Producer
from .ring_store import RingStore

if TYPE_CHECKING:
    from .base_store import ActivationStore


def sink_into(store: ActivationStore | Producer, wait: bool | None) -> RingSink | OtherSink:
    """Where the passes go that are captured into `store`."""
    return RingSink(store, wait) if isinstance(store, RingStore | Producer) else OtherSink(store)


class RingSink:
    """Writes to a ring: each pass on a lane that no other thread uses meanwhile."""

    def __init__(self, store: RingStore | Producer, wait: bool | None) -> None:
        self._store = store
        self._lane = store._lane  # noqa: SLF001
        self._free: deque[_native.Lane] = deque()
        """Lanes that were opened for passes and are between two of them."""
        self._wait = wait
        self._has_warned = False
        self.number = self._lane.find

    def stage(self, rows: torch.Tensor, component: int, mask: Any, hold: bool) -> _native.Rows:
        """Copies the rows: what follows in the forward pass may change them."""
        staged = incoming(rows, mask)
        self._lane.stage(component, staged)
        return staged

    def write(self, staged: list[tuple[int, _native.Rows]]) -> None:
        """Writes the rows of one pass."""
        counts = {component: len(rows) for component, rows in staged}
        if len(set(counts.values())) > 1:
            raise ValueError(f"the captured modules give different numbers of rows, by component: {counts}; they cannot be aligned")
        lane = self._take()
        begun = False
        try:
            for component, rows in staged:
                if begun:
                    lane.extend(component, rows, IfFull.LINE_UP)
                else:
                    self._begin(lane, component, rows)
                begun = True
        except BaseException as error:
            if begun or not isinstance(error, Exception):
                lane.close()  # its components may no longer match
                raise
            self._free_again(lane)  # nothing was written
            if isinstance(error, StoreFullError):
                raise PassRejected from error
            raise
        self._free_again(lane)

    def _begin(self, lane: _native.Lane, component: int, rows: _native.Rows) -> None:
        """Hands in the first rows of a pass; the rest follows without waiting."""
        wait = self._wait
        if wait is None and on_event_loop():
            try:
                lane.extend(component, rows, IfFull.WAIT, 0)
                return
            except TimeoutError:
                wait = False
                if not self._has_warned:
                    self._has_warned = True
                    warn("this thread runs an event loop (a Jupyter cell does), so capture does not wait for the trainer, and rows pile up; "
                         "use capture(..., wait=True), or capture on another thread")  # fmt: skip
        lane.extend(component, rows, IfFull.LINE_UP if wait is False else IfFull.WAIT)

    def _take(self) -> _native.Lane:
        if isinstance(self._store, Producer):
            return self._lane
        try:
            return self._free.pop()
        except IndexError:
            return self._store._ring.open_lane()  # noqa: SLF001

    def _free_again(self, lane: _native.Lane) -> None:
        if lane is not self._lane:
            self._free.append(lane)

    def close(self) -> None:
        """Ends the lanes that were opened here."""
        while self._free:
            self._free.pop().close()


class OtherSink:
    """Writes to any other store."""

    def __init__(self, store: Any) -> None:
        self._store: ActivationStore = store
        self._lock = threading.Lock()

    def number(self, component: int | str) -> int:
        if isinstance(component, str) or not -self._store.n_components <= component < self._store.n_components:
            raise IndexError(f"there is no component {component!r}; this store has {self._store.n_components}, numbered from 0")
        return component % self._store.n_components

    def stage(self, rows: torch.Tensor, component: int, mask: Any, hold: bool) -> torch.Tensor:
        """Rows that nobody will change, `[rows, features]`."""
        rows, mask = select(rows, mask)
        flat = rows.reshape(-1, rows.shape[-1])
        if mask is not None:
            return flat[torch.from_numpy(mask_bytes(mask, tuple(rows.shape[:-1]))) != 0]
        return flat.clone() if hold else flat

    def write(self, staged: list[tuple[int, torch.Tensor]]) -> None:
        """Writes the rows of one pass, not mixed with another thread's."""
        with self._lock:
            for component, rows in staged:
                self._store.extend(rows, component)

    def close(self) -> None:
        """Nothing to do."""


class PassRejected(Exception):
    """The ring is full, and was made to say so. Nothing of the pass was written."""


def warn(message: str) -> None:
    """Warns, also where warnings are errors: those must not get into the forward pass."""
    with contextlib.suppress(Warning):
        warnings.warn(message, RuntimeWarning, stacklevel=4)
