"""What every store can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future as ConcurrentFuture
from typing import Any, final

import numpy as np

from ._rows.checks import count
from ._rows.torch import HAS_TORCH, Dataset, torch
from .errors import StoreFullError


class ActivationStore(Dataset[Any], ABC):
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
        n_batches = count("n_batches", n_batches)
        shape = count("batch_size", batch_size), count("input_features", input_features)
        for _ in range(n_batches):
            for component in range(count("n_components", n_components)):
                batch = torch.rand(shape) if HAS_TORCH else np.random.default_rng().random(shape, dtype=np.float32)
                self.extend(batch, component)


__all__ = ["ActivationStore", "StoreFullError"]
