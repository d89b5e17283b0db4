"""Masks: which rows of a batch to keep."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .torch import is_tensor, torch


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
    """A mask in the shape of the axes that become rows.

    Raises:
        TypeError: If it holds no booleans or integers.
        ValueError: If it does not fit these axes, or fits them in two ways.
    """
    if not is_tensor(mask):
        mask = np.asarray(mask)
    name = str(mask.dtype).removeprefix("torch.")
    if not name.startswith(("bool", "int", "uint")):
        raise TypeError(f"the mask holds {name}; use booleans (or 0 and 1), True to keep a row")
    if is_tensor(mask) and mask.is_meta:
        raise TypeError("the mask is a meta tensor, which has no values")
    shape = tuple(mask.shape)
    mask = mask.reshape(_aligned(shape, leading))
    return mask.expand(leading) if is_tensor(mask) else np.broadcast_to(mask, leading)


def _aligned(shape: tuple[int, ...], leading: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which a mask of this shape goes with the axes that become rows: each axis has as many values, or one."""
    if shape == leading or (1 < len(shape) == len(leading) and all(n in (1, rows) for n, rows in zip(shape, leading, strict=True))):
        return shape
    is_flat = math.prod(shape) == math.prod(leading)
    if is_flat and 1 in (len(shape), len(leading)):
        return leading  # one value for each row, in order
    if shape and shape == leading[: len(shape)]:
        others = [axis for axis in range(1, len(leading)) if leading[axis] == shape[0]]
        if len(shape) == 1 and others and shape != (1,):
            raise ValueError(_ambiguous(shape[0], leading, others[0]))
        return shape + (1,) * (len(leading) - len(shape))
    raise ValueError(f"the mask has shape {shape}, but the rows have {leading}: one value per row, True to keep it{_hint(shape, leading)}")


def _ambiguous(n: int, leading: tuple[int, ...], axis: int) -> str:
    """Names both readings of a mask with one axis."""
    first, other = ("mask[" + ", ".join(":" if at == place else "None" for at in range(len(leading))) + "]" for place in (0, axis))
    return (
        f"the mask has shape ({n},), and the rows have {leading}, so it can be read in two ways. For one value per entry of the first axis (a "
        f"sequence, as a rule), give {first}; for one value per entry of axis {axis} (a position, as a rule), give {other}"
    )


def _hint(shape: tuple[int, ...], leading: tuple[int, ...]) -> str:
    """What would probably work."""
    if len(shape) == 2 and shape[::-1] == leading[:2]:
        return ". Its axes are the other way round: if the rows are so meant, give mask.T"
    if len(shape) == 1 and len(leading) > 1 and shape[0] in leading[1:]:
        place = leading.index(shape[0], 1)
        return ". For the same values along the other axes, give mask[" + ", ".join(":" if at == place else "None" for at in range(len(leading))) + "]"
    return ""
