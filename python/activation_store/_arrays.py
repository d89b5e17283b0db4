"""Arrays on their way in and out, as rows of bytes.

Inwards, an array becomes a `[rows, bytes of a row]` view of its own memory, which the native side copies once, without
the GIL. Only where the layout allows no such view (a feature axis that is not contiguous, axes that cannot be merged)
the array's own library makes a contiguous copy first; that copy is then handed on as it is.

Outwards, a block of a minibatch becomes a tensor or an array over the same memory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ._torch import HAS_TORCH, is_tensor, torch

if TYPE_CHECKING:
    from . import _native

FLOATS = ("f32", "f16", "bf16")

_NAMES = {
    "f32": "f32", "float32": "f32", "float": "f32",
    "f16": "f16", "float16": "f16", "half": "f16",
    "bf16": "bf16", "bfloat16": "bf16",
    "u32": "u32", "uint32": "u32",
    "i64": "i64", "int64": "i64",
}  # fmt: skip
_SIZES = {"f32": 4, "f16": 2, "bf16": 2, "u32": 4, "i64": 8}


class Rows(NamedTuple):
    """Rows of an array, seen as bytes."""

    data: np.ndarray[Any, Any]
    """`uint8`, `[rows, bytes of a row]`; the last axis is contiguous."""
    dtype: str
    features: int
    leading: tuple[int, ...]
    """The axes that became rows."""
    is_copy: bool
    """Whether the memory is nobody else's."""


def dtype_name(dtype: object) -> str:
    """The store's name of a numpy or torch dtype, or of a name like `"bfloat16"`."""
    name = dtype if isinstance(dtype, str) else str(getattr(dtype, "name", dtype)).removeprefix("torch.")
    if isinstance(dtype, type) and issubclass(dtype, np.generic):
        name = np.dtype(dtype).name
    try:
        return _NAMES[name]
    except KeyError:
        raise ValueError(f"unknown dtype {name!r}; use one of {', '.join(_SIZES)}") from None


def rows_of(array: Any) -> Rows:
    """An array's rows; its last axis is the features.

    Raises:
        TypeError: If it is no array, or holds elements that no store holds.
        ValueError: If it has no axis.
    """
    if is_tensor(array):
        return _rows_of_tensor(array)
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError("rows come as a plain array: a masked array's mask would be lost; pass it as mask=, True to keep a row")
    if isinstance(array, np.ndarray) or hasattr(array, "__array__"):
        return _rows_of_array(np.asarray(array))
    raise TypeError(f"rows come as a numpy array or a torch tensor, not as {type(array).__name__}")


def _shape(shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    if not shape:
        raise ValueError("a batch needs at least one axis, the features; got a single number")
    return tuple(shape[:-1]), math.prod(shape[:-1]), shape[-1]


def _element(dtype: object) -> str:
    try:
        return dtype_name(dtype)
    except ValueError:
        raise TypeError(f"rows of {dtype} cannot be stored; convert them to one of {', '.join(_SIZES)}") from None


def _rows_of_array(array: np.ndarray[Any, Any]) -> Rows:
    dtype = _element(array.dtype)
    leading, rows, features = _shape(array.shape)
    if array.size == 0:
        return Rows(np.empty((rows, features * _SIZES[dtype]), np.uint8), dtype, features, leading, is_copy=True)
    flat = array if array.ndim == 2 else array.reshape(rows, features)
    is_copy = not np.may_share_memory(flat, array)
    if not flat.dtype.isnative:
        flat, is_copy = flat.astype(flat.dtype.newbyteorder("=")), True
    if flat.strides[1] != flat.itemsize:
        flat, is_copy = flat.copy(order="C"), True
    return Rows(flat.view(np.uint8), dtype, features, leading, is_copy)


def _rows_of_tensor(tensor: torch.Tensor) -> Rows:
    dtype = _element(tensor.dtype)
    if tensor.layout is not torch.strided:
        raise TypeError(f"rows come as a dense tensor; this one is {tensor.layout}: use .to_dense()")
    if tensor.is_meta:
        raise TypeError("a meta tensor has no values to store")
    leading, rows, features = _shape(tuple(tensor.shape))
    if tensor.numel() == 0:
        return Rows(np.empty((rows, features * _SIZES[dtype]), np.uint8), dtype, features, leading, is_copy=True)
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
    return Rows(flat.view(torch.uint8).numpy(), dtype, features, leading, is_copy)


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


def select(array: Any, mask: Any) -> tuple[Any, Any]:
    """Applies a mask in the array's own library, where that saves something: on a device fewer bytes cross over, and of
    rows that cannot be seen as rows only the kept ones are copied."""
    if mask is None or not _is_worth_selecting(array):
        return array, mask
    keep = _checked(mask, tuple(array.shape[:-1])) != 0
    if not is_tensor(array):
        return array[keep.detach().cpu().numpy() if is_tensor(keep) else keep], None
    return array[torch.as_tensor(keep, device=array.device)], None


def _is_worth_selecting(array: Any) -> bool:
    if is_tensor(array):
        return array.device.type != "cpu" or (array.dim() > 1 and not array.is_contiguous() and (array.dim() > 2 or array.stride(-1) != 1))
    if not isinstance(array, np.ndarray) or array.ndim < 2 or array.flags.c_contiguous:
        return False
    return array.ndim > 2 or array.strides[-1] != array.itemsize


def mask_bytes(mask: Any, leading: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A mask as one byte per row: not zero keeps the row."""
    keep = _checked(mask, leading) != 0
    array: np.ndarray[Any, Any] = keep.detach().cpu().numpy() if is_tensor(keep) else keep
    return np.ascontiguousarray(array.reshape(-1)).view(np.uint8)


def _checked(mask: Any, leading: tuple[int, ...]) -> Any:
    """A mask in the shape of the rows' axes."""
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


class Convert(Protocol):
    """Makes an array over a block of memory, with the block's lifetime."""

    def __call__(self, block: _native.Block, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...] | None, /) -> Any: ...


def _to_tensor(block: _native.Block, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> Any:
    flat = torch.frombuffer(block, dtype=_TORCH[dtype])
    return flat.view(shape) if strides is None else flat.as_strided(shape, strides)


def _to_array(block: Any, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> Any:
    flat = np.frombuffer(block, dtype=numpy_dtype(dtype))
    if strides is None:
        return flat.reshape(shape)
    steps = [step * flat.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(flat, shape, steps)


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """numpy's dtype of that name; bf16 needs the package `ml_dtypes`."""
    if dtype != "bf16":
        return np.dtype(f"{dtype[0]}{_SIZES[dtype]}")
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError("numpy has no bfloat16: install ml_dtypes or torch, or use another dtype") from None
    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


_TORCH = (
    {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i64": torch.int64,
     "u32": getattr(torch, "uint32", torch.int32)}
    if HAS_TORCH
    else {}
)  # fmt: skip


def converter(output: str | None, dtypes: list[str]) -> Convert:
    """How minibatches leave: as `"torch"` tensors, `"numpy"` arrays, or (None) torch where it is installed."""
    if output is None:
        output = "torch" if HAS_TORCH else "numpy"
    if output == "torch":
        if not HAS_TORCH:
            raise ValueError('output is "torch", but torch is not installed; install it, or use "numpy"')
        return _to_tensor
    if output == "numpy":
        for dtype in dtypes:
            numpy_dtype(dtype)
        return _to_array
    raise ValueError(f'output is {output!r}; use "torch" or "numpy"')
