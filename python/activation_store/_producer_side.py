"""What a ring store and the producers that it opens share: handing rows over."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from . import _native
from ._components import Components
from ._staging import one_row, ready, stage
from .future import Future

Room = Literal["wait", "need", "line"]


class ProducerSide:
    """Hands rows over, on one lane."""

    _components: Components
    _ring: _native.Ring
    _to: _native.Ring | _native.Lane

    def _hand_in(self, component: int, rows: _native.Rows, room: Room, timeout: float | None) -> _native.WriteOutcome:
        return self._to.extend(component, rows, room, timeout)

    def _write(self, batch: Any, component: int, mask: Any, copy: bool, room: Room, timeout: float | None) -> Future:
        rows = ready(self._components, component, batch, mask, copy)
        if isinstance(rows, tuple):
            return Future(self._to.write(component, *rows, room, timeout))
        return Future(self._to.extend(component, rows, room, timeout))

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

        Copies the rows once, without the GIL, into memory of the store's own; the caller may change or free its array as
        soon as this returns. While the store's queue is full it waits for room, unless it is called without a timeout on a
        thread that runs an event loop (a cell of a Jupyter notebook is one): there it returns at once, and awaiting the
        future is what slows the caller down. Ctrl-C while a large batch is being copied may leave a part of it written.

        Args:
            batch: A numpy array or torch tensor of f32, f16 or bf16, any layout, on any device. The last axis is the
                features; the axes before it become rows.
            component_idx: The component, by number or name.
            mask: One boolean per row (the shape of the axes before the features, or flat), or one for several rows (the
                shape of the first axes): True keeps the row, as in an attention mask.
            copy: False hands the array's own memory over, where its layout allows, without a copy: leave it unchanged
                until the future is done, and those of the same rows of all other components.
            timeout: Seconds to wait for room.

        Returns:
            The future of the rows' arrival in the ring. It need not be kept.

        Raises:
            TimeoutError: If there was no room in time. Nothing was written.
            StoreFullError: If the store is full and was made to say so (`when_full="reject"`).
            StoreClosedError: If the store is closed.
            ValueError: If the rows have the wrong width, or one component runs too far ahead of another.
            TypeError: If it is no array, or its elements do not fit the component's.
            IndexError: If there is no such component.
        """
        return self._write(batch, self._components.number(component_idx), mask, copy, room_for_caller(timeout), timeout)

    def append(self, item: Any, component_idx: int | str = 0, *, timeout: float | None = None) -> Future:
        """Hands over one row, `[features]`. As `extend`, which is much cheaper per row."""
        component = self._components.number(component_idx)
        rows = one_row(stage(self._ring, self._components, component, item))
        return Future(self._hand_in(component, rows, room_for_caller(timeout), timeout))

    def try_extend(self, batch: Any, component_idx: int | str = 0, *, mask: Any = None, copy: bool = True) -> Future:
        """Hands over rows if the queue has room for them.

        Raises:
            StoreFullError: If it has not.
        """
        return self._write(batch, self._components.number(component_idx), mask, copy, "need", None)

    def try_append(self, item: Any, component_idx: int | str = 0) -> Future:
        """Hands over one row if the queue has room for it.

        Raises:
            StoreFullError: If it has not.
        """
        component = self._components.number(component_idx)
        return Future(self._hand_in(component, one_row(stage(self._ring, self._components, component, item)), "need", None))


def room_for_caller(timeout: float | None) -> Room:
    """Whether the caller is to wait for room: not on a thread that runs an event loop, unless it says how long."""
    return "line" if timeout is None and on_event_loop() else "wait"


def on_event_loop() -> bool:
    """Whether this thread runs an event loop, which would stop if it waited."""
    return asyncio._get_running_loop() is not None  # noqa: SLF001
