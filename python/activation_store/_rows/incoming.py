"""Batches on their way in.

An array becomes a `[rows, bytes of a row]` view of its own memory, which the native side copies once, a large one without the GIL. Only
where the layout allows no such view (a feature axis that is not contiguous, axes that cannot be merged) the array's own
library makes a contiguous copy first; that copy is then handed on as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from .. import _native
from .components import Spec
from .conversions import fitting
from .dtypes import SIZES, dtype_name
from .masks import mask_bytes, select
from .torch import HAS_TORCH, is_tensor, torch


class Lane(Protocol):
    """What takes rows: a lane, a recorder, a store of fixed size."""

    def component(self, component: int | str, /) -> Spec:
        """The component with that number or name."""


def incoming(batch: Any, lane: Lane, component: int | str, mask: Any = None, *, copy: bool = True) -> _native.Rows:
    """A batch's rows, to be handed to a lane.

    Args:
        batch: A numpy array or torch tensor; its last axis is the features.
        lane: Says what the component holds, if the rows must be converted.
        component: The component.
        mask: Which rows to keep.
        copy: False lets the store read the array itself, where its layout and elements allow.

    Raises:
        TypeError: If it is no array of at least one axis, or its elements cannot be stored as the component's.
        ValueError: If its rows have no features, or the mask does not fit.
        IndexError: If the lane has no such component, and must be asked.
    """
    if copy and mask is None and (plain := plain_rows(batch, lend=False)) is not None:
        return plain
    selected, mask = select(_array_of(batch, component), mask)
    rows = fitting(selected, lambda: lane.component(component))
    view = _rows_of(rows)
    keep = None if mask is None else mask_bytes(mask, view.leading)
    lend = view.is_copy or rows is not batch or not copy
    return _native.Rows(view.data, view.dtype, view.features, keep, lend=lend, array=None if lend else _resizable(rows))


def incoming_pass(batches: Mapping[int | str, Any], lane: Lane, mask: Any = None, *, copy: bool = True) -> list[tuple[int | str, _native.Rows]]:
    """The rows of a pass, by component; each as `incoming` has them.

    Raises:
        TypeError: If the pass is no mapping; else as `incoming`.
    """
    if not isinstance(batches, Mapping):
        raise TypeError(f"a pass is a mapping from component to rows, such as {{'attn': rows, 'mlp': rows}}; got {type(batches).__name__}")
    return [(component, incoming(batch, lane, component, mask, copy=copy)) for component, batch in batches.items()]


def plain_rows(batch: Any, *, lend: bool) -> _native.Rows | None:
    """The rows of the commonest batch, a torch tensor in main memory whose features touch, in a fraction of the time; or None.

    That the tensor still has this memory is checked before the rows are copied.
    """
    if type(batch) is not _TENSOR or not batch.is_cpu or batch.is_nested or batch.is_neg():
        return None
    dtype, shape = _PLAIN.get(batch.dtype), batch.shape
    if dtype is None or not 0 < len(shape) < 3 or 0 in shape:
        return None
    try:
        strides = batch.stride()
    except RuntimeError:  # a sparse tensor has none
        return None
    if strides[-1] != 1:
        return None
    rows, stride = (shape[0], strides[0]) if len(shape) == 2 else (1, shape[0])
    return _native.Rows.at(batch, batch.data_ptr(), rows, stride, dtype, shape[-1], lend=lend)


_TENSOR = torch.Tensor if HAS_TORCH else None
_PLAIN = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"} if HAS_TORCH else {}


def incoming_row(item: Any, lane: Lane, component: int | str) -> _native.Rows:
    """One row, as `append` takes it."""
    rows = incoming(item, lane, component)
    rows.require_one()
    return rows


class RowView(NamedTuple):
    """Rows of an array, seen as bytes."""

    data: np.ndarray[Any, Any]
    """`uint8`, `[rows, bytes of a row]`; the last axis is contiguous."""
    dtype: str
    features: int
    leading: tuple[int, ...]
    """The axes that became rows."""
    is_copy: bool
    """Whether nothing else refers to the memory."""


def _array_of(batch: Any, component: int | str) -> Any:
    """A batch as a numpy array or a torch tensor.

    Raises:
        TypeError: If it is neither, or its values cannot be read as rows.
    """
    if not is_tensor(batch):
        if isinstance(batch, np.ma.MaskedArray):
            raise TypeError("rows come as a plain array: a masked array's mask would be lost; pass it as mask=, True to keep a row")
        if not isinstance(batch, np.ndarray) and not hasattr(batch, "__array__"):
            raise TypeError(f"rows come as a numpy array or a torch tensor, not as {type(batch).__name__}")
        batch = np.asarray(batch)
    elif batch.is_nested:
        raise TypeError("rows come as a dense tensor; this one is nested: use torch.nested.to_padded_tensor and a mask, or extend with each part")
    elif batch.layout is not torch.strided:
        raise TypeError(f"rows come as a dense tensor; this one is {batch.layout}: use .to_dense()")
    elif batch.is_meta:
        raise TypeError("a meta tensor has no values to store")
    if not batch.shape:
        raise TypeError(f"the rows of component {component!r} are a single number, of shape (): they need an axis for the features, [..., features]")
    return batch


def _rows_of(array: Any) -> RowView:
    """An array's rows; its last axis is the features."""
    return _rows_of_tensor(array) if is_tensor(array) else _rows_of_array(array)


def _rows_of_array(array: np.ndarray[Any, Any]) -> RowView:
    dtype = dtype_name(array.dtype)
    leading, rows, features = _shape(array.shape)
    if array.size == 0:
        return RowView(np.empty((rows, features * SIZES[dtype]), np.uint8), dtype, features, leading, is_copy=True)
    flat = array if array.ndim == 2 else array.reshape(rows, features)
    is_copy = not np.may_share_memory(flat, array)
    if not flat.dtype.isnative:
        flat, is_copy = flat.astype(flat.dtype.newbyteorder("=")), True
    if flat.strides[1] != flat.itemsize:
        flat, is_copy = flat.copy(order="C"), True
    return RowView(flat.view(np.uint8), dtype, features, leading, is_copy)


def _resizable(array: Any) -> np.ndarray[Any, Any] | None:
    """The numpy array whose memory an array shows, if `resize(refcheck=False)` can free that. The memory of a tensor that numpy shows
    cannot be resized."""
    if not isinstance(array, np.ndarray):
        return None
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array if array.base is None else None


def _rows_of_tensor(tensor: torch.Tensor) -> RowView:
    dtype = dtype_name(tensor.dtype)
    leading, rows, features = _shape(tuple(tensor.shape))
    if tensor.numel() == 0:
        return RowView(np.empty((rows, features * SIZES[dtype]), np.uint8), dtype, features, leading, is_copy=True)
    tensor, is_copy = tensor.detach(), False
    if tensor.device.type != "cpu":
        tensor, is_copy = _to_host(tensor), True
    if tensor.is_neg():
        tensor, is_copy = tensor.resolve_neg(), True
    flat = tensor
    if tensor.dim() != 2:
        flat = tensor.reshape(rows, features)
        is_copy = is_copy or flat.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
    if flat.stride(1) != 1:
        flat, is_copy = flat.clone(memory_format=torch.contiguous_format), True
    return RowView(flat.view(torch.uint8).numpy(), dtype, features, leading, is_copy)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """One copy from the device, into pinned memory (which torch recycles) where it can be had."""
    if tensor.device.type == "cuda":
        try:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        except RuntimeError:
            return tensor.cpu()
        host.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(tensor.device).synchronize()
        return host
    return tensor.cpu()


def _shape(shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    leading, rows, features = tuple(shape[:-1]), math.prod(shape[:-1]), shape[-1]
    if rows and not features:
        raise ValueError(f"a batch of shape {shape} has rows of 0 features; its last axis must be the features")
    return leading, rows, features
