"""The store that is filled, shuffled and indexed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import _native
from ._rows.batches import Batch, batch_of, converter
from ._rows.checks import count, seed_of
from ._rows.components import Component
from ._rows.incoming import incoming, plain_rows
from ._rows.indexing import fetch, get
from ._rows.odd_values import OddValues
from ._rows.torch import HAS_TORCH, is_tensor, torch
from .base_store import ActivationStore
from .future import Future, Written


class TensorActivationStore(ActivationStore):
    """Room for a fixed number of rows. Fill it, shuffle it, index it or iterate over it, as often as wanted.

        >>> import torch
        >>> store = TensorActivationStore(max_items=1000, n_neurons=100, n_components=2)
        >>> for component_idx in range(2):
        ...     _ = store.extend(torch.randn(10, 100), component_idx)
        >>> len(store), store[3].shape, store[3, 1].shape
        (10, torch.Size([2, 100]), torch.Size([100]))
        >>> store.shuffle()
        >>> loader = torch.utils.data.DataLoader(store, batch_size=4)
        >>> next(iter(loader)).shape
        torch.Size([4, 2, 100])

    Rows are kept as `float32` in main memory. A write is in the store when the call returns; what indexing gives is a
    copy.
    """

    def __init__(
        self,
        max_items: int,
        n_neurons: int,
        n_components: int,
        device: Any = None,
        *,
        seed: int | None = None,
    ) -> None:
        """Makes an empty store.

        Args:
            max_items: Rows of each component that it has room for.
            n_neurons: Features of a row.
            n_components: Components.
            device: Where the rows go when they are got; they are kept in main memory.
            seed: Of the shuffling. By default drawn here from torch's global generator (without torch, from the module
                `random`), so that every store has another, and `torch.manual_seed` before makes its shuffles repeat.

        Raises:
            ValueError: If it cannot be so; says what would work.
        """
        self.max_items = self._max_items = count("max_items", max_items)
        self._device = None if device is None or str(device) == "cpu" else device
        if self._device is not None:
            if not HAS_TORCH:
                raise ValueError(f"device is {device!r}, but torch is not installed; leave device out")
            try:
                torch.empty(0, device=self._device)
            except Exception as error:
                raise ValueError(f"device is {device!r}, which cannot be used: {error}") from error
        names = map(str, range(count("n_components", n_components)))
        features = count("n_neurons", n_neurons)
        self._components = tuple(Component(name, features, "f32") for name in names)
        if seed is None:
            seed = int(torch.randint(2**63 - 1, ())) if HAS_TORCH else random.getrandbits(63)
        self._values = OddValues()
        self._native = _native.Tensor(self._components, self.max_items, seed_of(seed))

    @property
    def n_components(self) -> int:
        """How many components."""
        return len(self._components)

    @property
    def current_activations_stored_per_component(self) -> list[int]:
        """Rows stored of each component."""
        return self._native.stored()

    def __len__(self) -> int:
        return len(self._native)

    def __sizeof__(self) -> int:
        return self.max_items * self.n_components * self._components[0].features * 4

    def __getitem__(self, index: Any) -> Any:
        return self._out(get(self._native.rows, len(self), self._components, index))

    def __getitems__(self, indices: list[int]) -> Any:
        """Many rows at once, for `torch.utils.data.DataLoader`."""
        rows = np.asarray(indices, np.int64) if len(indices) else np.empty(0, np.int64)
        return list(self._out(fetch(self._native.rows, rows, self._components)))

    def append(self, item: Any, component_idx: int = 0) -> Future:
        """Adds one row, `[features]`.

        Raises:
            StoreFullError: If there is no room.
        """
        rows = self._incoming(item, component_idx, None)
        rows.require_one()
        return self._write(rows, component_idx)

    def extend(self, batch: Any, component_idx: int = 0, *, mask: Any = None) -> Future:
        """Adds rows, `[..., features]`; copies them once, before it returns.

        Args:
            batch: A numpy array or torch tensor; elements other than f32, f16 and bf16 are converted to f32 first.
            component_idx: The component.
            mask: One boolean per row: True keeps the row.

        Returns:
            A future that is done.

        Raises:
            StoreFullError: If there is no room for all of them. Nothing was written.
        """
        return self._write(self._incoming(batch, component_idx, mask), component_idx)

    def _incoming(self, batch: Any, component: int, mask: Any) -> _native.Rows:
        # The rows are in the store before the call returns, so their memory can be lent.
        if mask is None and (plain := plain_rows(batch, lend=True)) is not None:
            return plain
        # The original assigned to a tensor, which converts anything.
        if is_tensor(batch):
            if batch.dtype not in (torch.float32, torch.float16, torch.bfloat16) and not (batch.is_complex() or batch.is_quantized or batch.is_meta):
                batch = batch.to(torch.float32)
        elif isinstance(batch, np.ndarray) and batch.dtype.kind in "biufe" and batch.dtype not in (np.float32, np.float16):
            with np.errstate(over="ignore"):  # the store counts infinite values
                batch = batch.astype(np.float32)
        return incoming(batch, self._native, component, mask, copy=False)

    def _write(self, rows: _native.Rows, component: int) -> Future:
        written = Written(*self._native.extend(component, rows))
        self._values.look(self._native.odd_values())
        return Future.resolved(written)

    def empty(self) -> None:
        """Discards all rows."""
        self._native.empty()

    def shuffle(self) -> None:
        """Puts the rows in a random order; much cheaper than `DataLoader(shuffle=True)`."""
        self._native.shuffle()

    def batches(self, batch_size: int, *, output: str | None = None, stacked: bool = True) -> Iterator[Any]:
        """One epoch of shuffled minibatches over what the store holds now, the last partial one included.

        Args:
            batch_size: Rows of a minibatch.
            output: `"torch"` or `"numpy"`; by default torch where it is installed.
            stacked: Several components as one `[batch, component, feature]`, instead of a dict by name.
        """
        convert = converter(output, ["f32"])
        epoch = self._native.epoch(count("batch_size", batch_size))
        return (self._out(batch_of(minibatch, self._components, convert, stacked)) for minibatch in iter(epoch.next, None))

    def _out(self, batch: Batch) -> Any:
        return batch if self._device is None else batch.to(self._device)

    def __reduce__(self) -> Any:
        raise TypeError(
            "a TensorActivationStore cannot be pickled: its memory and its background writer belong to this process; "
            "use it in one process (DataLoader: num_workers=0), or save store[:]"
        )

    def __repr__(self) -> str:
        return f"TensorActivationStore({len(self)} of {self.max_items} rows, {self.n_components} components of {self._components[0].features})"
