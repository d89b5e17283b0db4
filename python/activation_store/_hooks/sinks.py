"""Takes the rows of forward passes: to the lanes of a ring, to a recorder, to any other store."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from .. import _native
from .._native import IfFull
from .._rows.incoming import incoming
from .._rows.masks import mask_bytes, select
from .._rows.torch import torch
from ..errors import StoreFullError
from ..producer import Producer
from ..recorder import Recorder, Tee
from ..ring_store import RingStore

if TYPE_CHECKING:
    from ..base_store import ActivationStore


class Sink(Protocol):
    """Takes the rows of forward passes."""

    @property
    def closed(self) -> bool:
        """Whether no more rows are taken."""

    def number(self, component: int | str, /) -> int:
        """The number of a component."""

    def note_writer(self) -> None:
        """This thread is going to write."""

    def stage(self, rows: torch.Tensor, component: int, mask: Any, hold: bool) -> Any:
        """Rows of one component that nothing changes any more."""

    def write(self, staged: list[tuple[int, Any]]) -> None:
        """Writes the rows of one pass."""

    def close(self) -> None:
        """No more passes come."""


def sink_into(store: ActivationStore | Producer | Sink, wait: bool) -> Sink:
    """Where the passes go that are captured into `store`."""
    if isinstance(store, RingStore | Producer | Recorder | Tee):
        return RingSink(store, wait)
    return OtherSink(store) if hasattr(store, "extend") else store


def check_whole(store: Any, captured: list[int]) -> None:
    """Checks that every component is captured, where a store takes only whole passes.

    Raises:
        ValueError: If one is not.
    """
    if not isinstance(store, RingStore | Recorder | Tee) or len(captured) == store.n_components:
        return
    missing = ", ".join(repr(name) for number, name in enumerate(store.component_names) if number not in captured)
    if isinstance(store, RingStore):
        what, instead = "no row would be whole", "capture into a store.producer() and write the rest to that yourself"
    else:
        what, instead = f"no pass would be whole, as a {type(store).__name__} needs it", "make the recorder (and a Tee's store) without it"
    raise ValueError(f"nothing is captured into {missing}, so {what}; capture it too, or {instead}")


class RingSink:
    """Writes to a ring, each pass on a lane that no other thread uses meanwhile; or to a recorder."""

    def __init__(self, store: RingStore[Any] | Producer | Recorder | Tee, wait: bool) -> None:
        self._store = store
        self._lane = store._lane  # noqa: SLF001
        self._free: deque[_native.Lane] = deque()
        """Lanes that were opened for passes and are between two of them."""
        self._wait = wait and getattr(store, "_waits", True)
        self._parties = store._parties  # noqa: SLF001
        self.number = self._lane.find
        self.note_writer = self._parties.note_writer

    @property
    def closed(self) -> bool:
        """Whether no more rows are taken."""
        return self._lane.closed

    def stage(self, rows: torch.Tensor, component: int, mask: Any, hold: bool) -> _native.Rows:
        """Copies the rows: what follows in the forward pass may change them."""
        staged = incoming(rows, self._lane, component, mask)
        self._lane.stage(component, staged)
        return staged

    def write(self, staged: list[tuple[int, _native.Rows]], value: bytes | None = None) -> None:
        """Writes the rows of one pass, with a value of the caller's."""
        if len({len(rows) for _, rows in staged}) > 1:
            counts = {self._lane.component(component)[0]: len(rows) for component, rows in staged}
            raise ValueError(f"the captured modules give different numbers of rows, by component: {counts}; they cannot be aligned")
        lane = self._take()
        try:
            if len(staged) == lane.n_components:
                self._hand_in(partial(lane.extend_pass, staged, value=value))
            else:
                self._write_part(lane, staged)
        except StoreFullError as error:
            raise PassRejected from error
        finally:
            if lane is not self._lane:
                self._free.append(lane)

    def _write_part(self, lane: _native.Lane, staged: list[tuple[int, _native.Rows]]) -> None:
        """Writes a pass of some of the components, one after the other."""
        (first, rows), *rest = staged
        self._hand_in(partial(lane.extend, first, rows))
        try:
            for component, rows in rest:
                lane.extend(component, rows, IfFull.LINE_UP)  # its counterparts have been taken, so it does not wait
        except BaseException:
            lane.close()  # its components may no longer match
            raise

    def _hand_in(self, write: Callable[..., _native.WriteOutcome]) -> None:
        """Calls `write(if_full, timeout, notice)`, so that it waits for room if it is to."""
        write(IfFull.LINE_UP if self._wait is False else IfFull.WAIT, None, self._parties.writer_waits("a captured pass"))

    def _take(self) -> Any:
        if not isinstance(self._store, RingStore):
            return self._lane
        try:
            return self._free.pop()
        except IndexError:
            return self._store._ring.open_numbered_lane("capture")  # noqa: SLF001

    def close(self) -> None:
        """Ends the lanes that were opened here."""
        while self._free:
            self._free.pop().close()


class OtherSink:
    """Writes to any other store."""

    def __init__(self, store: Any) -> None:
        self._store: ActivationStore = store
        self._lock = threading.Lock()

    @property
    def closed(self) -> bool:
        """Whether no more rows are taken, where the store says so."""
        return getattr(self._store, "closed", False) is True

    def number(self, component: int | str) -> int:
        if isinstance(component, str) or not -self._store.n_components <= component < self._store.n_components:
            raise IndexError(f"there is no component {component!r}; this store has {self._store.n_components}, numbered from 0")
        return component % self._store.n_components

    def stage(self, rows: torch.Tensor, component: int, mask: Any, hold: bool) -> torch.Tensor:
        return kept_rows(rows, mask, hold)

    def write(self, staged: list[tuple[int, torch.Tensor]]) -> None:
        """Writes the rows of one pass, not mixed with another thread's."""
        with self._lock:
            for component, rows in staged:
                self._store.extend(rows, component)

    def note_writer(self) -> None:
        """Such a store does not ask."""

    def close(self) -> None:
        """Nothing to do."""


def kept_rows(rows: torch.Tensor, mask: Any, hold: bool) -> torch.Tensor:
    """Rows that the mask keeps, `[rows, features]`. With `hold`, a copy: what follows in the forward pass may change them."""
    rows, mask = select(rows, mask)
    flat = rows.reshape(-1, rows.shape[-1])
    if mask is not None:
        return flat[torch.from_numpy(mask_bytes(mask, tuple(rows.shape[:-1]))) != 0]
    return flat.clone() if hold else flat


class PassRejected(Exception):
    """The ring is full, and was made to say so. Nothing of the pass was written."""
