"""Minibatches as tensors or arrays over their own memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from .dtypes import numpy_dtype, torch_dtype
from .torch import HAS_TORCH, torch

if TYPE_CHECKING:
    from .. import _native
    from .components import Components

Batch: TypeAlias = Any
"""One component: an array `[batch, features]`. Several, or one that was named in a list or dict: a dict of those by name, or stacked."""


def batch_of(minibatch: _native.Minibatch, components: Components, convert: Convert, stacked: bool, named: bool = False) -> Batch:
    """A minibatch without a copy. Its memory goes back to the store when the last array over it dies.

    `named`: one component is a dict, too.
    """
    rows = minibatch.rows
    if stacked and len(components) > 1:
        stride = minibatch.stride
        assert stride is not None
        features = components[0].features
        return convert(minibatch.span(), components[0].dtype, (rows, len(components), features), (features, stride, 1))
    arrays = [
        convert(minibatch.block(number), component.dtype, (rows, component.features), None)
        for number, component in enumerate(components)
    ]
    if len(arrays) == 1 and (stacked or not named):
        return arrays[0][:, None] if stacked else arrays[0]
    return ByName((component.name, array) for component, array in zip(components, arrays, strict=True))


class ByName(dict[str, Any]):
    """A minibatch of several components: a dict that tells a trainer which takes it for a tensor what it is."""

    def __getattr__(self, name: str) -> Any:
        names = list(self)
        raise AttributeError(
            f"a minibatch of {len(names)} component{'s' if len(names) > 1 else ''} is a dict, which has no {name!r}: take one of them, such as batch[{names[0]!r}]. "
            "For a trainer that wants tensors name one module or component alone, not in a list or a dict; or use stacked=True"
            if names and not name.startswith("_")
            else f"{type(self).__name__!r} object has no attribute {name!r}",
            name=name,
            obj=self,
        )


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


class Convert(Protocol):
    """Makes an array over a block of memory, with the block's lifetime."""

    def __call__(self, block: _native.Block, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...] | None, /) -> Any: ...


def _to_tensor(block: _native.Block, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> Any:
    flat = torch.frombuffer(block, dtype=torch_dtype(dtype))
    return flat.view(shape) if strides is None else flat.as_strided(shape, strides)


def _to_array(block: Any, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> Any:
    flat = np.frombuffer(block, dtype=numpy_dtype(dtype))
    if strides is None:
        return flat.reshape(shape)
    steps = [step * flat.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(flat, shape, steps)
