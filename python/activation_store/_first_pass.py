"""Where the rows of a thread go that does not know the ring yet: its first pass opens it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._conversions import stored_as
from ._opening import Layout, Opens
from ._pass_sinks import RingSink, kept_rows
from ._positions import Position, value_of

if TYPE_CHECKING:
    from ._torch import torch


class FirstPass:
    """Keeps the rows of the thread's first pass, opens the ring with them, and is a `RingSink` from then on."""

    def __init__(self, opening: Opens, number: int, names: list[str], start: Position | None) -> None:
        self._start = start
        self._batch = self._passes = 0
        """The index of the batch that runs, and its passes so far."""
        self._opening = opening
        self._number = number
        self._names = names
        self._ring: RingSink | None = None

    @property
    def closed(self) -> bool:
        """Whether no more rows are taken."""
        return self._opening.has_ended

    def number(self, component: int | str) -> int:
        """The component's number: its place among the names."""
        return self._names.index(str(component))

    def begin_batch(self, index: int) -> None:
        """The batch of that index runs now."""
        self._batch, self._passes = index, 0

    def note_writer(self) -> None:
        """The ring is told when it is open."""

    def stage(self, rows: torch.Tensor, component: int, mask: Any, hold: bool) -> Any:
        """Copies the rows: what follows in the forward pass may change them."""
        return kept_rows(rows, mask, hold) if self._ring is None else self._ring.stage(rows, component, mask, hold)

    def write(self, staged: list[tuple[int, Any]]) -> None:
        """Writes the rows of one pass, unless the store has them from before it was resumed."""
        self._passes += 1
        if self._start is not None and self._batch == self._start.batch and self._passes <= self._start.passes:
            return
        if self._ring is None:
            by_name = {self._names[number]: rows for number, rows in staged}
            self._ring = RingSink(self._opening.lane(self._number, layout_of(by_name)), wait=True)
            staged = [(number, self._ring.stage(rows, number, None, False)) for number, rows in staged]
        self._ring.write(staged, value_of(self._batch, self._passes))

    def close(self) -> None:
        """The run ends the lane."""


def layout_of(rows: Mapping[str, Any]) -> Layout:
    """The widths and dtypes of a pass.

    Raises:
        TypeError: If something in it is no array, or holds elements that no store holds.
    """
    return {str(name): _layout(name, array) for name, array in rows.items()}


def _layout(name: str, array: Any) -> tuple[int, str]:
    shape = getattr(array, "shape", None)
    if shape is None:
        raise TypeError(f"{name!r} is {type(array).__name__}; rows come as an array or tensor, [..., features]")
    if not shape:
        raise TypeError(f"{name!r} is a single number, of shape (): rows need an axis for the features, [..., features]")
    return int(shape[-1]), stored_as(array.dtype)
