"""Element types: the store's names for the dtypes of numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from .torch import HAS_TORCH, torch

SIZES = {"f32": 4, "f16": 2, "bf16": 2, "u32": 4, "i64": 8}
"""Bytes of an element, by the store's name of its type."""

_NAMES = {
    "f32": "f32", "float32": "f32", "float": "f32",
    "f16": "f16", "float16": "f16", "half": "f16",
    "bf16": "bf16", "bfloat16": "bf16",
    "u32": "u32", "uint32": "u32",
    "i64": "i64", "int64": "i64",
}  # fmt: skip


def dtype_name(dtype: object) -> str:
    """The store's name of a numpy or torch dtype, or of a name like `"bfloat16"`."""
    name = dtype if isinstance(dtype, str) else str(getattr(dtype, "name", dtype)).removeprefix("torch.")
    if isinstance(dtype, type) and issubclass(dtype, np.generic):
        name = np.dtype(dtype).name
    try:
        return _NAMES[name]
    except KeyError:
        raise ValueError(f"unknown dtype {name!r}; use one of {', '.join(SIZES)}") from None


def numpy_dtype(name: str) -> np.dtype[Any]:
    """numpy's dtype of that name; bf16 needs the package `ml_dtypes`."""
    if name != "bf16":
        return np.dtype(f"{name[0]}{SIZES[name]}")
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError("numpy has no bfloat16: install ml_dtypes or torch, or use another dtype") from None
    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of that name."""
    return _TORCH[name]


_TORCH = (
    {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i64": torch.int64,
     "u32": getattr(torch, "uint32", torch.int32)}
    if HAS_TORCH
    else {}
)  # fmt: skip
