"""Rows at an index, as an array."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from .components import Components
from .torch import HAS_TORCH, is_tensor, torch

Gather = Callable[[Any, Any], None]
"""Copies the rows with the numbers of the first array, `int64`, to the second, `[row, component, feature]` of `float32`.

Numbers below zero count from the end.
"""


def get(gather: Gather, length: int, components: Components, index: Any) -> Any:
    """What `tensor[index]` gives for a `[row, component, feature]` tensor, fetching only the rows it touches."""
    first, rest = (index[0], index[1:]) if isinstance(index, tuple) and index else (index, ())
    if isinstance(first, str | bytes):
        names = ", ".join(f"{number} ({component.name!r})" for number, component in enumerate(components))
        raise TypeError(
            f"the index {first!r} is no number of a row; [rows, component] gives a component's rows, by its number: {names}"
        )
    if isinstance(first, slice):
        rows = fetch(gather, np.arange(*first.indices(length)), components)
        return rows[(slice(None), *rest)] if rest else rows
    numbers = _numbers(first, length)
    if numbers is None:
        # torch takes some lists for tuples, and warns.
        everything = fetch(gather, np.arange(length), components)
        return everything[np.asarray(index) if isinstance(index, list) else index]
    rows = fetch(gather, numbers.reshape(-1), components)
    if numbers.ndim == 0:
        return rows[(0, *rest)]
    if rest:
        return rows[(np.arange(numbers.size).reshape(numbers.shape), *rest)]
    return rows if numbers.ndim == 1 else rows.reshape((*numbers.shape, *rows.shape[1:]))


def fetch(gather: Gather, numbers: Any, components: Components) -> Any:
    """Rows as `[row, component, feature]`, a tensor where torch is installed."""
    features = components[0].features
    if len(components) > 1 and any(component.features != features for component in components):
        raise ValueError("components differ in width, so rows cannot be stacked; drain minibatches instead")
    rows = np.empty((len(numbers), len(components), features), np.float32)
    if len(numbers):
        gather(numbers, rows)
    return torch.from_numpy(rows) if HAS_TORCH else rows


def _numbers(first: Any, length: int) -> Any:
    """The row numbers that the first part of an index names, as `int64`; None where it names rows in another way."""
    if is_tensor(first):
        first = first.detach().cpu().numpy() if first.dtype in _INDEX_DTYPES else None
    elif isinstance(first, list | range):
        first = np.asarray(first) if len(first) else np.empty(0, np.int64)
    elif first is not None and not isinstance(first, bool | np.ndarray | np.bool_):
        try:
            return np.asarray(operator.index(first))
        except TypeError:
            return None
    if not isinstance(first, np.ndarray):
        return None
    if first.dtype == np.bool_:
        return np.flatnonzero(first) if first.shape == (length,) else None
    # torch takes bytes for a mask.
    return np.asarray(first, np.int64) if first.dtype in (np.int64, np.int32) else None


_INDEX_DTYPES = (torch.int64, torch.int32, torch.bool) if HAS_TORCH else ()
