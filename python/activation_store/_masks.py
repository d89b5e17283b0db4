"""Masks: which rows of a batch to keep."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._torch import is_tensor, torch


def mask_bytes(mask: Any, leading: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A mask as one byte per row: not zero keeps the row. `leading` are the axes that become rows."""
    keep = _in_shape(mask, leading) != 0
    array: np.ndarray[Any, Any] = keep.detach().cpu().numpy() if is_tensor(keep) else keep
    return np.ascontiguousarray(array.reshape(-1)).view(np.uint8)


def select(array: Any, mask: Any) -> tuple[Any, Any]:
    """Applies a mask in the array's own library, where that saves something: on a device fewer bytes cross over, and of
    rows that cannot be seen as rows only the kept ones are copied."""
    if mask is None or not _is_worth_selecting(array):
        return array, mask
    keep = _in_shape(mask, tuple(array.shape[:-1])) != 0
    if not is_tensor(array):
        return array[keep.detach().cpu().numpy() if is_tensor(keep) else keep], None
    return array[torch.as_tensor(keep, device=array.device)], None


def _is_worth_selecting(array: Any) -> bool:
    if is_tensor(array):
        return array.device.type != "cpu" or (array.dim() > 1 and not array.is_contiguous() and (array.dim() > 2 or array.stride(-1) != 1))
    if not isinstance(array, np.ndarray) or array.ndim < 2 or array.flags.c_contiguous:
        return False
    return array.ndim > 2 or array.strides[-1] != array.itemsize


def _in_shape(mask: Any, leading: tuple[int, ...]) -> Any:
    """A mask in the shape of the axes that become rows."""
    if not is_tensor(mask):
        mask = np.asarray(mask)
    name = str(mask.dtype).removeprefix("torch.")
    if not name.startswith(("bool", "int", "uint")):
        raise TypeError(f"the mask holds {name}; use booleans (or 0 and 1), True to keep a row")
    if is_tensor(mask) and mask.is_meta:
        raise TypeError("the mask is a meta tensor, which has no values")
    shape = tuple(mask.shape)
    if shape == (math.prod(leading),):
        return mask.reshape(leading)
    if shape != leading[: len(shape)] or not shape and leading:
        raise ValueError(f"the mask has shape {shape}, but the rows have {leading}: one value per row, True to keep it")
    mask = mask.reshape(shape + (1,) * (len(leading) - len(shape)))
    return mask.expand(leading) if is_tensor(mask) else np.broadcast_to(mask, leading)
