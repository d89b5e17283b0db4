"""Elements that no store holds, converted to elements that the component holds where this loses no more than precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .components import Spec
from .dtypes import SIZES, dtype_name
from .torch import is_tensor, torch

_INTEGERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def stored_as(dtype: object) -> str:
    """The store's name of the elements that rows of a dtype become where nothing else is asked for; other floats keep their own name.

    Raises:
        TypeError: If such rows cannot be stored.
    """
    name = _name(dtype)
    try:
        return dtype_name(name)
    except ValueError:
        pass
    if name in _INTEGERS:
        return "i64"
    if _is_float(name):
        return name
    raise TypeError(_refusal(name))


def fitting(array: Any, component: Callable[[], Spec]) -> Any:
    """An array with elements that the native side takes for the component.

    Floats that no store holds become f32, which the store converts to the component's dtype. Integers and booleans become the integers of
    the component if every value fits. Anything else comes back as it is if the native side knows its elements.

    Raises:
        TypeError: If the elements cannot be stored as the component's; says what would work.
    """
    name = _name(array.dtype)
    if name in ("float32", "float16", "bfloat16"):
        return array
    if _is_float(name):
        of, _, dtype = component()
        if dtype in ("i64", "u32"):
            raise TypeError(f"component {of!r} holds {dtype}, and the rows are {name}: round and convert them to integers, if they are ids or positions")
        return array.to(torch.float32) if is_tensor(array) else _to_f32(array)
    if name not in _INTEGERS:
        raise TypeError(_refusal(name))
    of, _, dtype = component()
    if name == {"i64": "int64", "u32": "uint32"}.get(dtype):
        return array
    if dtype not in ("i64", "u32"):
        raise TypeError(f"component {of!r} holds {dtype}, and {name} cannot be converted to it: convert the rows to float32, if they are activations")
    return _integers(array, of, dtype)


def _to_f32(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with np.errstate(over="ignore"):  # the store counts infinite values
        return array.astype(np.float32)


def _integers(array: Any, of: str, dtype: str) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = array.detach().cpu().numpy() if is_tensor(array) else array
    target: np.dtype[Any] = np.dtype(np.int64 if dtype == "i64" else np.uint32)
    bounds = np.iinfo(target)
    if values.size:
        least, most = int(values.min()), int(values.max())
        if least < bounds.min or most > bounds.max:
            wrong = least if least < bounds.min else most
            larger = "; give the component the dtype i64" if dtype == "u32" else ""
            raise TypeError(f"component {of!r} holds {dtype}, and the rows hold {wrong}, which does not fit{larger}")
    return values.astype(target)


def _name(dtype: object) -> str:
    return str(getattr(dtype, "name", dtype)).removeprefix("torch.")


def _is_float(name: str) -> bool:
    return name in ("float64", "longdouble", "float96", "float128") or name.startswith("float8_")


def _refusal(name: str) -> str:
    if name.startswith("complex"):
        return f"rows of {name} cannot be stored: take their real and imaginary parts, or their magnitudes"
    if name.startswith(("qint", "quint")):
        return f"rows of {name} cannot be stored: use .dequantize()"
    return f"rows of {name} cannot be stored; convert them to one of {', '.join(SIZES)}"
