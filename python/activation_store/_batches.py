"""Minibatches as tensors or arrays over their own memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from . import _native
    from ._arrays import Convert
    from ._components import Components

Batch: TypeAlias = Any
"""One component: an array `[batch, features]`. Several: a dict of those by name, or stacked."""


def batch_of(minibatch: _native.Minibatch, components: Components, convert: Convert, stacked: bool) -> Batch:
    """A minibatch without a copy. Its memory goes back to the store when the last array over it dies."""
    rows, features, dtypes = minibatch.rows, components.features, components.dtypes
    if stacked and len(features) > 1:
        stride = minibatch.stride
        assert stride is not None
        shape = rows, len(features), features[0]
        return convert(minibatch.span(), dtypes[0], shape, (features[0], stride, 1))
    arrays = [convert(minibatch.block(number), dtypes[number], (rows, width), None) for number, width in enumerate(features)]
    if len(arrays) == 1:
        return arrays[0][:, None] if stacked else arrays[0]
    return dict(zip(components.names, arrays, strict=True))
