"""What every store can do."""

from __future__ import annotations

import asyncio
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future as ConcurrentFuture
from typing import TYPE_CHECKING, Any, Literal, Protocol, final

import numpy as np

from . import _native
from ._arrays import FLOATS, Rows, mask_bytes, rows_of, select
from ._torch import HAS_TORCH, Dataset, torch
from .errors import StoreFullError
from .future import Future

if TYPE_CHECKING:
    _Dataset = Dataset[Any]
else:
    _Dataset = Dataset


class ActivationStore(_Dataset, ABC):
    """A store of activations: rows of one or more components. A `torch.utils.data.Dataset` where torch is installed.

    Subclass it for a store of your own:

        >>> class ListStore(ActivationStore):
        ...     def __init__(self):
        ...         self._rows = []
        ...     def append(self, item, component_idx=0):
        ...         self._rows.append(item)
        ...     def extend(self, batch, component_idx=0):
        ...         self._rows.extend(batch)
        ...     def empty(self):
        ...         self._rows.clear()
        ...     @property
        ...     def n_components(self):
        ...         return 1
        ...     @property
        ...     def current_activations_stored_per_component(self):
        ...         return [len(self._rows)]
        ...     def __getitem__(self, index):
        ...         return self._rows[index]
        ...     def __len__(self):
        ...         return len(self._rows)
        >>> store = ListStore()
        >>> store.fill_with_test_data(batch_size=8)
        >>> len(store)
        8
    """

    @abstractmethod
    def append(self, item: Any, component_idx: Any) -> ConcurrentFuture[Any] | None:
        """Adds one row, `[features]`, of a component."""

    @abstractmethod
    def extend(self, batch: Any, component_idx: Any) -> ConcurrentFuture[Any] | None:
        """Adds a batch of rows, `[rows, features]`, of a component."""

    @abstractmethod
    def empty(self) -> None:
        """Discards all rows."""

    @property
    @abstractmethod
    def n_components(self) -> int:
        """How many components."""

    @property
    @abstractmethod
    def current_activations_stored_per_component(self) -> list[int]:
        """Rows stored of each component."""

    @abstractmethod
    def __len__(self) -> int:
        """Rows stored of every component."""

    @abstractmethod
    def __getitem__(self, index: Any) -> Any:
        """The values at an index: row; row and component; row, component and feature; slices."""

    def shuffle(self) -> None:
        """Puts the rows in a random order, where the store has an order. Does nothing by default."""

    @final
    def fill_with_test_data(
        self, n_batches: int = 1, batch_size: int = 16, n_components: int = 1, input_features: int = 256
    ) -> None:
        """Extends the store with uniform `[0, 1)` rows, for tests.

        Args:
            n_batches: Batches for each component.
            batch_size: Rows of a batch.
            n_components: Components to write to, from the first.
            input_features: Features of a row.
        """
        n_batches = positive("n_batches", n_batches)
        shape = positive("batch_size", batch_size), positive("input_features", input_features)
        for _ in range(n_batches):
            for component in range(positive("n_components", n_components)):
                batch = torch.rand(shape) if HAS_TORCH else np.random.default_rng().random(shape, dtype=np.float32)
                self.extend(batch, component)


def positive(what: str, value: Any) -> int:
    """Checks a size."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} is {value!r}; it must be a whole number") from None
    if number < 1:
        raise ValueError(f"{what} is {number}; it must be at least 1")
    if number >= 2**63:
        raise ValueError(f"{what} is {number}; it must be less than 2**63")
    return number


def seed_of(seed: Any) -> int:
    """Checks a seed."""
    try:
        return operator.index(seed) % 2**64
    except TypeError:
        raise TypeError(f"seed is {seed!r}; it must be a whole number") from None


class Stages(Protocol):
    """A native store, as far as staging goes."""

    def stage(self, rows: Any, dtype: str, features: int, mask: Any = None) -> _native.Rows: ...


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


def ready(components: Components, component: int, batch: Any, mask: Any, copy: bool) -> _native.Rows | tuple[Any, str, int, Any]:
    """A batch's rows: ready where nothing need be copied, else what the native side has to copy."""
    selected, mask = select(batch, mask)
    rows = components.rows_of(selected, component)
    keep = None if mask is None else mask_bytes(mask, rows.leading)
    if keep is None and (rows.is_copy or selected is not batch or not copy):
        lent = _native.lend(rows.data, rows.dtype, rows.features)
        if lent is not None:
            return lent
    return rows.data, rows.dtype, rows.features, keep


def stage(
    store: Stages, components: Components, component: int, batch: Any, mask: Any = None, copy: bool = True
) -> _native.Rows:
    """A batch's rows, ready to be handed in; afterwards the caller may change its array, unless `copy` is False."""
    rows = ready(components, component, batch, mask, copy)
    return store.stage(*rows) if isinstance(rows, tuple) else rows


def one_row(rows: _native.Rows) -> _native.Rows:
    """Checks that `append` was given one row."""
    if len(rows) != 1:
        raise ValueError(f"append takes one row, but got {len(rows)}; use extend for a batch")
    return rows


Room = Literal["wait", "need", "line"]


def on_event_loop() -> bool:
    """Whether this thread runs an event loop, which would stop if it waited."""
    return asyncio._get_running_loop() is not None  # noqa: SLF001


def room_for_caller(timeout: float | None) -> Room:
    """Whether the caller is to wait for room: not on a thread that runs an event loop, unless it says how long."""
    return "line" if timeout is None and on_event_loop() else "wait"


class Writer:
    """The writing half of the ring store and of its lanes."""

    _components: Components
    _ring: _native.Ring
    _to: _native.Ring | _native.Lane

    def _hand_in(self, component: int, rows: _native.Rows, room: Room, timeout: float | None) -> _native.WriteOutcome:
        return self._to.extend(component, rows, room, timeout)

    def _write(self, batch: Any, component: int, mask: Any, copy: bool, room: Room, timeout: float | None) -> Future:
        rows = ready(self._components, component, batch, mask, copy)
        if isinstance(rows, tuple):
            return Future(self._to.write(component, *rows, room, timeout))
        return Future(self._to.extend(component, rows, room, timeout))

    def extend(
        self,
        batch: Any,
        component_idx: int | str = 0,
        *,
        mask: Any = None,
        copy: bool = True,
        timeout: float | None = None,
    ) -> Future:
        """Hands over rows of a component; the background writer puts them into the ring.

        Copies the rows once, without the GIL, into memory of the store's own; the caller may change or free its array as
        soon as this returns. While the store's queue is full it waits for room, unless it is called without a timeout on a
        thread that runs an event loop (a cell of a Jupyter notebook is one): there it returns at once, and awaiting the
        future is what slows the caller down. Ctrl-C while a large batch is being copied may leave a part of it written.

        Args:
            batch: A numpy array or torch tensor of f32, f16 or bf16, any layout, on any device. The last axis is the
                features; the axes before it become rows.
            component_idx: The component, by number or name.
            mask: One boolean per row (the shape of the axes before the features, or flat), or one for several rows (the
                shape of the first axes): True keeps the row, as in an attention mask.
            copy: False hands the array's own memory over, where its layout allows, without a copy: leave it unchanged
                until the future is done, and those of the same rows of all other components.
            timeout: Seconds to wait for room.

        Returns:
            The future of the rows' arrival in the ring. It need not be kept.

        Raises:
            TimeoutError: If there was no room in time. Nothing was written.
            StoreFullError: If the store is full and was made to say so (`when_full="reject"`).
            StoreClosedError: If the store is closed.
            ValueError: If the rows have the wrong width, or one component runs too far ahead of another.
            TypeError: If it is no array, or its elements do not fit the component's.
            IndexError: If there is no such component.
        """
        return self._write(batch, self._components.number(component_idx), mask, copy, room_for_caller(timeout), timeout)

    def append(self, item: Any, component_idx: int | str = 0, *, timeout: float | None = None) -> Future:
        """Hands over one row, `[features]`. As `extend`, which is much cheaper per row."""
        component = self._components.number(component_idx)
        rows = one_row(stage(self._ring, self._components, component, item))
        return Future(self._hand_in(component, rows, room_for_caller(timeout), timeout))

    def try_extend(self, batch: Any, component_idx: int | str = 0, *, mask: Any = None, copy: bool = True) -> Future:
        """Hands over rows if the queue has room for them.

        Raises:
            StoreFullError: If it has not.
        """
        return self._write(batch, self._components.number(component_idx), mask, copy, "need", None)

    def try_append(self, item: Any, component_idx: int | str = 0) -> Future:
        """Hands over one row if the queue has room for it.

        Raises:
            StoreFullError: If it has not.
        """
        component = self._components.number(component_idx)
        return Future(self._hand_in(component, one_row(stage(self._ring, self._components, component, item)), "need", None))


Fetch = Callable[[list[int]], bytearray]


def fetch(fetch_rows: Fetch, rows: list[int], components: Components) -> Any:
    """Rows as `[row, component, feature]`, a tensor where torch is installed."""
    if len(set(components.features)) > 1:
        raise ValueError("components differ in width, so rows cannot be stacked; drain minibatches instead")
    shape = len(rows), len(components.names), components.features[0]
    if not rows:
        return torch.empty(shape) if HAS_TORCH else np.empty(shape, np.float32)
    values = fetch_rows(rows)
    return torch.frombuffer(values, dtype=torch.float32).view(shape) if HAS_TORCH else np.frombuffer(values, np.float32).reshape(shape)


def get(fetch_rows: Fetch, length: int, components: Components, index: Any) -> Any:
    """What `tensor[index]` gives for a `[row, component, feature]` tensor, fetching only the rows it touches."""
    if isinstance(index, list) and index:
        index = np.asarray(index)  # torch takes some lists for tuples, and warns
    first, rest = (index[0], index[1:]) if isinstance(index, tuple) and index else (index, ())
    if isinstance(first, slice):
        rows = list(range(*first.indices(length)))
        return fetch(fetch_rows, rows, components)[(slice(None), *rest)]
    if first is not None and first is not Ellipsis and not isinstance(first, (bool, np.bool_)):
        try:
            row = operator.index(first)
        except TypeError:
            pass
        else:
            if not -length <= row < length:
                raise IndexError(f"row index {row} is out of range: there are {length}")
            return fetch(fetch_rows, [row % length], components)[(0, *rest)]
    return fetch(fetch_rows, list(range(length)), components)[index]


__all__ = ["ActivationStore", "StoreFullError"]
