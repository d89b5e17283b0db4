"""Warns of rows whose values overflow in the component's dtype, or are not finite."""

from __future__ import annotations

from collections.abc import Iterable

from .warnings import warn


class OddValues:
    """What a store has said of the values of its rows: each kind once for each component."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()

    def look(self, counts: Iterable[tuple[str, int, int]]) -> None:
        """Warns of what is new: the names of components, their rows that overflowed, and their rows that are not finite."""
        for name, overflowed, not_finite in counts:
            if overflowed and self._is_new(name, "overflowed"):
                warn(
                    f"component {name!r}: {overflowed} rows so far have a value that is too large for the component's dtype and became infinite. "
                    'Use dtype="bf16" or "f32", or scale the rows. They are kept; all such rows are counted'
                )
            if not_finite and self._is_new(name, "not_finite"):
                warn(f"component {name!r}: {not_finite} rows so far arrived with NaN or infinite values. They are kept; all such rows are counted")

    def _is_new(self, name: str, kind: str) -> bool:
        if (name, kind) in self._said:
            return False
        self._said.add((name, kind))
        return True
