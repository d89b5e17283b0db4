"""The producers' side of a ring store: what the store and the lanes that it opens share, and a lane of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from . import _native
from ._native import IfFull
from ._ring.parties import Parties
from ._rows.incoming import incoming, incoming_pass, incoming_row
from .future import Future


class ProducerSide:
    """Hands rows over, on one lane."""

    _lane: _native.Lane
    _parties: Parties
    _waits = True
    """Whether a pass waits for room. Not where the thread that would wait is the only one that makes room."""

    def extend(
        self,
        batch: Any,
        component_idx: int | str = 0,
        *,
        mask: Any = None,
        copy: bool = True,
        timeout: float | None = None,
    ) -> Future:
        """Hands over rows of a component; the background writer puts them into the ring.

        Copies the rows once (more than 512 KiB without the GIL) into memory of the store's own; the caller may change or free its array as
        soon as this returns. While the store's queue is full it waits for room, unless it is called without a timeout on a
        thread that runs an event loop (a cell of a Jupyter notebook is one): there it returns at once, and awaiting the
        future is what slows the caller down. Ctrl-C while a large batch is being copied may leave a part of it written.

        Args:
            batch: A numpy array or torch tensor, any layout, on any device. The last axis is the features; the axes before it
                become rows. Other floats than f32, f16 and bf16 are converted, and integers to a component's integers if they fit.
            component_idx: The component, by number or name.
            mask: One boolean per row (the shape of the axes before the features, or flat), or one for several rows (the
                shape of the first axes): True keeps the row, as in an attention mask. An axis of size 1 goes for all entries of
                that axis. Where one axis of values fits two axes of the rows, give `mask[:, None]` or `mask[None, :]`.
            copy: False hands the array's own memory over without a copy, where its layout allows. Leave the array unchanged until
                the future is done. If the store has several components, leave the arrays of one pass unchanged until all
                their futures are done.
            timeout: Seconds to wait for room.

        Returns:
            The future of the rows' arrival in the ring. It need not be kept.

        Raises:
            TimeoutError: If there is no room in time. Nothing was written.
            StoreFullError: If the store is full and was made to say so (`when_full="reject"`).
            StoreClosedError: If the store is closed, or is closed while this waits. Nothing was written.
            ValueError: If the rows have the wrong width, or one component runs too far ahead of another.
            TypeError: If it is no array, or its elements do not fit the component's.
            IndexError: If there is no such component.
        """
        notice = self._parties.writer_waits("`extend`")
        return Future(self._lane.extend(component_idx, incoming(batch, self._lane, component_idx, mask, copy=copy), if_full_here(timeout), timeout, notice))

    def extend_pass(
        self,
        batches: Mapping[int | str, Any],
        *,
        mask: Any = None,
        copy: bool = True,
        timeout: float | None = None,
        value: bytes | None = None,
    ) -> Future:
        """Hands over the rows of all components that one forward pass gave, as a whole: all of them, or none.

            >>> _ = store.extend_pass({"attn": attn, "mlp": mlp}, mask=attention_mask)

        Waits for room as `extend` does. After an error, or Ctrl-C, nothing of the pass was written, so the components stay
        aligned. Several threads may write whole passes at once.

        Args:
            batches: For every component of the store, by number or name, its rows: as `extend` takes them, and equally many.
            mask: Which rows to keep, of every component; see `extend`.
            copy: False hands the arrays' own memory over; leave them unchanged until the future is done.
            timeout: Seconds to wait for room.
            value: A small value of your own, such as the data loader's position after this pass. `resume_at` of a resumed store
                has the value of the last pass that you need not send again.

        Returns:
            The future of the pass's arrival in the ring. It need not be kept.

        Raises:
            ValueError: If a component is missing, is given twice, or has another number of rows; or if components were
                written one by one to this lane and are uneven.
            TimeoutError, StoreFullError, StoreClosedError, TypeError, IndexError: As `extend`.
        """
        notice = self._parties.writer_waits("`extend_pass`")
        if_full = if_full_here(timeout) if self._waits else IfFull.LINE_UP
        rows = incoming_pass(batches, self._lane, mask, copy=copy)
        return Future(self._lane.extend_pass(rows, if_full, timeout, notice, value))

    def append(self, item: Any, component_idx: int | str = 0, *, timeout: float | None = None) -> Future:
        """Hands over one row, `[features]`. As `extend`, which is much cheaper per row.

        Raises:
            ValueError: If it is not one row; else as `extend`.
        """
        notice = self._parties.writer_waits("`append`")
        return Future(self._lane.extend(component_idx, incoming_row(item, self._lane, component_idx), if_full_here(timeout), timeout, notice))

    def try_extend(self, batch: Any, component_idx: int | str = 0, *, mask: Any = None, copy: bool = True) -> Future:
        """Hands over rows if the queue has room for them. Never waits.

        Raises:
            StoreFullError: If it has no room. Nothing was written.
        """
        self._parties.note_writer()
        return Future(self._lane.extend(component_idx, incoming(batch, self._lane, component_idx, mask, copy=copy), IfFull.REFUSE))

    def try_extend_pass(self, batches: Mapping[int | str, Any], *, mask: Any = None, copy: bool = True) -> Future:
        """Hands over a whole pass if the queue has room for it; see `extend_pass`. Never waits.

        Raises:
            StoreFullError: If it has no room. Nothing was written.
        """
        self._parties.note_writer()
        return Future(self._lane.extend_pass(incoming_pass(batches, self._lane, mask, copy=copy), IfFull.REFUSE))

    def send_again(self) -> None:
        """Tells a resumed store that you send this lane again from its first row. The store skips the rows that it does not need.

        For a capture that cannot start in the middle. Call it before the first write to a lane of a resumed store.

        Raises:
            ValueError: If rows were written already.
            StoreClosedError: If the lane had ended.
        """
        self._lane.send_again()


class Producer(ProducerSide):
    """A lane of its own into a `RingStore`; see `RingStore.producer`. Closing it, or letting go of it, ends the lane."""

    def __init__(self, lane: _native.Lane, parties: Parties) -> None:
        self._lane = lane
        self._parties = parties

    def close(self) -> None:
        """Ends the lane: it takes no more rows."""
        self._lane.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a Producer cannot be pickled: its store belongs to this process")


def if_full_here(timeout: float | None) -> IfFull:
    """Whether a call on this thread waits for room: not where the thread runs an event loop, which would stop, unless it says how long."""
    runs_event_loop = asyncio._get_running_loop() is not None  # noqa: SLF001
    return IfFull.LINE_UP if timeout is None and runs_event_loop else IfFull.WAIT
