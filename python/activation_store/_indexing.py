"""Rows at an index, as an array."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from ._components import Components
from ._torch import HAS_TORCH, torch

Fetch = Callable[[list[int]], bytearray]
"""Gives the rows with these numbers, `[row, component, feature]` as `float32`, one after the other."""


def get(fetch_rows: Fetch, length: int, components: Components, index: Any) -> Any:
    """What `tensor[index]` gives for a `[row, component, feature]` tensor, fetching only the rows it touches."""
    if isinstance(index, list) and index:
        index = np.asarray(index)  # torch takes some lists for tuples, and warns
    first, rest = (index[0], index[1:]) if isinstance(index, tuple) and index else (index, ())
    if isinstance(first, slice):
        rows = list(range(*first.indices(length)))
        return fetch(fetch_rows, rows, components)[(slice(None), *rest)]
    if first is not None and first is not Ellipsis and not isinstance(first, (bool, np.bool_)):
        try:
            row = operator.index(first)
        except TypeError:
            pass
        else:
            if not -length <= row < length:
                raise IndexError(f"row index {row} is out of range: there are {length}")
            return fetch(fetch_rows, [row % length], components)[(0, *rest)]
    return fetch(fetch_rows, list(range(length)), components)[index]


def fetch(fetch_rows: Fetch, rows: list[int], components: Components) -> Any:
    """Rows as `[row, component, feature]`, a tensor where torch is installed."""
    if len({component.features for component in components}) > 1:
        raise ValueError("components differ in width, so rows cannot be stacked; drain minibatches instead")
    shape = len(rows), len(components), components[0].features
    if not rows:
        return torch.empty(shape) if HAS_TORCH else np.empty(shape, np.float32)
    values = fetch_rows(rows)
    return torch.frombuffer(values, dtype=torch.float32).view(shape) if HAS_TORCH else np.frombuffer(values, np.float32).reshape(shape)
