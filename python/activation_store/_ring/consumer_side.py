"""The consumers' side of a ring store: what gives its minibatches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Generic, cast

from .._rows.batches import Convert, batch_of
from .._rows.torch import IterableDataset
from .._rows.warnings import warn
from .consumer import Consumer
from .loaders import BatchT_co, asked_by_loader

if TYPE_CHECKING:
    from .. import _native
    from .._rows.components import Components
    from .failure import Failure
    from .parties import Parties
    from .returned import Returned


class ConsumerSide(IterableDataset[BatchT_co], Generic[BatchT_co]):
    """Gives minibatches, to loops and one by one."""

    _ring: _native.Ring
    _returned: Returned
    _failure: Failure
    _parties: Parties
    _components: Components
    _convert: Convert
    _stacked: bool
    _own: Consumer
    """The store as a consumer under `next(store)`."""
    _named = False
    """Whether a minibatch of one component is a dict, too."""

    def __iter__(self) -> Iterator[BatchT_co]:
        if self._loader_has_asked and asked_by_loader():
            self._loader_has_asked = False
            warn("a DataLoader has asked for the length of this store: that is the number of rows in it at that moment, 0 at the start, and not of "
                 "minibatches. A trainer that plans its steps by it makes too few or too many. Give the loader store.minibatches(), which has no "
                 "length: DataLoader(store.minibatches(), batch_size=None)")  # fmt: skip
        return self._consumer(is_late=self._has_served_all())

    _loader_has_asked = False
    """Whether a `DataLoader` has taken `len` of this for a number of minibatches."""

    def _has_served_all(self) -> bool:
        """Whether the store has ended, and earlier loops had all of its minibatches."""
        if not self._ring.closed:
            return False
        stats = self._ring.stats()
        return stats.minibatches_served > 0 and not any(counts.resident or counts.queued for counts in stats.components.values())

    def __next__(self) -> BatchT_co:
        return self.next()

    def next(self, timeout: float | None = None) -> BatchT_co:
        """The next minibatch.

        Raises:
            TimeoutError: If none was ready in time.
            StopIteration: If the store is closed and drained, or aborted.
            BaseException: The error that the store was closed with, once, after the last minibatch.
        """
        return cast("BatchT_co", self._own.next(timeout))

    def __aiter__(self) -> AsyncIterator[BatchT_co]:
        return self._consumer(is_late=self._has_served_all())

    async def __anext__(self) -> BatchT_co:
        return cast("BatchT_co", await self._own.__anext__())

    def _consumer(self, is_late: bool = False) -> Consumer:
        # It holds nothing of this object, so that a store which nothing else refers to closes, and the loop over it ends.
        out = partial(batch_of, components=self._components, convert=self._convert, stacked=self._stacked, named=self._named)
        return Consumer(self._ring.consumer(), self._returned, self._failure, self._parties, out, is_late)
