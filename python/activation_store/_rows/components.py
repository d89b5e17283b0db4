"""The components of a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from .checks import count
from .dtypes import dtype_name

Spec: TypeAlias = tuple[str, int, str]
"""A component as the native side names it: name, features, dtype."""


class Component(NamedTuple):
    """A component as the native side takes it."""

    name: str
    features: int
    dtype: str


Components: TypeAlias = tuple[Component, ...]


def components_of(components: int | Mapping[str, int | tuple[int, object]], dtype: object) -> Components:
    """The components that `RingStore` is given: the features of one, or a mapping; `dtype` where one has none of its own."""
    if not isinstance(components, Mapping):
        components = {"0": components}
    default = dtype_name(dtype)
    return tuple(_component(name, value, default) for name, value in components.items())


def _component(name: object, value: Any, default: str) -> Component:
    features, dtype = value, default
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise ValueError(f"component {name!r} is {value!r}; give its features, or (features, dtype)")
        features, dtype = value[0], dtype_name(value[1])
    return Component(str(name), count(f"the number of features of component {name!r}", features), dtype)
