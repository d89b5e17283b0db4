"""The components of a store."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from ._arrays import FLOATS, Rows, dtype_name, rows_of
from ._checks import positive


class Components:
    """A store's components: `{name: (features, dtype)}` in order."""

    def __init__(self, components: dict[str, tuple[int, str]]) -> None:
        self.names = tuple(components)
        self.features = tuple(features for features, _ in components.values())
        self.dtypes = tuple(dtype for _, dtype in components.values())
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def number(self, component: int | str) -> int:
        """The number of the component with that number or name; negative numbers count from the end."""
        number = self._numbers.get(component) if isinstance(component, str) else operator.index(component)
        if number is not None and -len(self.names) <= number < len(self.names):
            return number % len(self.names)
        known = ", ".join(f'{number} ("{name}")' for number, name in enumerate(self.names))
        raise IndexError(f"there is no component {component}; this store has {known}")

    def rows_of(self, batch: Any, component: int) -> Rows:
        """A batch's rows, checked to fit the component."""
        rows = rows_of(batch)
        name, features, dtype = self.names[component], self.features[component], self.dtypes[component]
        if rows.features != features:
            raise ValueError(f'component {component} ("{name}") takes rows of {features} features, but the batch has {rows.features}')
        if rows.dtype != dtype and not (rows.dtype in FLOATS and dtype in FLOATS):
            raise TypeError(f'component {component} ("{name}") holds {dtype}, and {rows.dtype} rows cannot be converted to that')
        return rows

    def native(self) -> list[tuple[str, int, str]]:
        """As the native side takes them."""
        return list(zip(self.names, self.features, self.dtypes, strict=True))


def components_of(components: int | Mapping[str, int | tuple[int, object]], dtype: object) -> Components:
    """The components that `RingStore` is given: the features of one, or a mapping; `dtype` where one has none of its own."""
    if not isinstance(components, Mapping):
        components = {"0": components}
    default = dtype_name(dtype)
    return Components({str(name): _layout(name, value, default) for name, value in components.items()})


def _layout(name: object, value: Any, default: str) -> tuple[int, str]:
    """A component's features and dtype."""
    features, dtype = value, default
    if isinstance(value, tuple):
        if len(value) != 2:
            raise ValueError(f"component {name!r} is {value!r}; give its features, or (features, dtype)")
        features, dtype = value[0], dtype_name(value[1])
    return positive(f"the number of features of component {name!r}", features), dtype
