"""Batches on their way to the native side."""

from __future__ import annotations

from typing import Any, Protocol

from . import _native
from ._arrays import mask_bytes, select
from ._components import Components


def stage(
    store: Stages, components: Components, component: int, batch: Any, mask: Any = None, copy: bool = True
) -> _native.Rows:
    """A batch's rows, ready to be handed in; afterwards the caller may change its array, unless `copy` is False."""
    rows = ready(components, component, batch, mask, copy)
    return store.stage(*rows) if isinstance(rows, tuple) else rows


def one_row(rows: _native.Rows) -> _native.Rows:
    """Checks that `append` was given one row."""
    if len(rows) != 1:
        raise ValueError(f"append takes one row, but got {len(rows)}; use extend for a batch")
    return rows


def ready(components: Components, component: int, batch: Any, mask: Any, copy: bool) -> _native.Rows | tuple[Any, str, int, Any]:
    """A batch's rows: ready where nothing need be copied, else what the native side has to copy."""
    selected, mask = select(batch, mask)
    rows = components.rows_of(selected, component)
    keep = None if mask is None else mask_bytes(mask, rows.leading)
    if keep is None and (rows.is_copy or selected is not batch or not copy):
        lent = _native.lend(rows.data, rows.dtype, rows.features)
        if lent is not None:
            return lent
    return rows.data, rows.dtype, rows.features, keep


class Stages(Protocol):
    """A native store, as far as staging goes."""

    def stage(self, rows: Any, dtype: str, features: int, mask: Any = None) -> _native.Rows: ...
