"""Opens the ring from the widths and dtypes of the first pass, and hands over each pass once the model has returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import _native
from .._hooks.sinks import PassRejected, RingSink, kept_rows
from .._rows.conversions import stored_as
from ..errors import StoreClosedError
from .opening import Layout, Opens
from .positions import Position, value_of

if TYPE_CHECKING:
    from .._rows.torch import torch


class FirstPass:
    """Keeps the rows of a batch's passes until the model has returned, and hands them over then. The first pass opens the ring.

    So the model holds no lock of the user's while a pass waits for room. A batch runs the captured modules once, as a rule:
    then one pass is kept. If its forward pass runs them several times (`generate` does), the rows of all of them are kept.
    """

    def __init__(self, opening: Opens, number: int, names: list[str], start: Position | None) -> None:
        self._start = start
        self._batch = self._passes = 0
        """The index of the batch that runs, and its passes so far."""
        self._opening = opening
        self._number = number
        self._names = names
        self._ring: RingSink | None = None
        self._kept: list[list[tuple[int, Any]]] = []
        """The passes of the batch that runs."""
        self._places = list(range(len(names)))
        """The number of each name in the store. A store that goes on from a snapshot may have them in another order."""

    @property
    def closed(self) -> bool:
        """Whether no more rows are taken."""
        return self._opening.has_ended or (self._ring is not None and self._ring.closed)

    def number(self, component: int | str) -> int:
        """The component's number: its place among the names."""
        return self._names.index(str(component))

    def begin_batch(self, index: int) -> None:
        """The batch of that index runs now."""
        self._batch, self._passes = index, 0
        self._kept.clear()

    def note_writer(self) -> None:
        """The ring is told when it is open."""

    def stage(self, rows: torch.Tensor, component: int, mask: Any, hold: bool) -> Any:
        """Copies the rows: what follows in the forward pass may change them."""
        return kept_rows(rows, mask, hold=True) if self._ring is None else self._ring.stage(rows, self._places[component], mask, hold)

    def write(self, staged: list[tuple[int, Any]]) -> None:
        """Keeps the rows of one pass until the model has returned."""
        self._kept.append(staged)

    def hand_over(self) -> bool:
        """Hands the kept passes over, in order, and waits for room. False if no more rows are taken."""
        kept, self._kept = self._kept, []
        if self._opening.one_pass_a_batch and len(kept) > 1:
            raise ValueError(f"batch {self._batch} ran the model {len(kept)} times: each batch must run it once, so that a recording can be resumed")
        for staged in kept:
            try:
                self._hand_over(staged)
            except PassRejected:
                pass  # the store rejects: nothing of this pass is stored
            except StoreClosedError:
                return False
        return True

    def _hand_over(self, staged: list[tuple[int, Any]]) -> None:
        """Hands one pass over, unless the store has its rows from before it was resumed."""
        self._passes += 1
        if self._start is not None and self._batch == self._start.batch and self._passes <= self._start.passes:
            return
        if self._ring is None:
            by_name = {self._names[number]: rows for number, rows in staged}
            self._ring = RingSink(self._opening.lane(self._number, layout_of(by_name)), wait=True)
            self._places = [self._ring.number(name) for name in self._names]
        ring = self._ring
        # The first batch's rows were kept as tensors, because no ring was open.
        rows_of_pass = [
            (place, rows if isinstance(rows, _native.Rows) else ring.stage(rows, place, None, False))
            for place, rows in ((self._places[number], rows) for number, rows in staged)
        ]
        ring.write(rows_of_pass, value_of(self._batch, self._passes))

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
