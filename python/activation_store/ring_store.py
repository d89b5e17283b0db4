"""The pipeline: hooks extend the store while the training loop drains shuffled minibatches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from . import _native
from ._batches import Batch, batch_of, converter
from ._checks import count, seed_of
from ._components import components_of
from ._consumer import Consumer
from ._failure import Failure
from ._indexing import get
from ._parties import Parties
from ._producer_side import ProducerSide
from ._returned import Returned
from ._torch import IterableDataset
from .base_store import ActivationStore
from .producer import Producer

if TYPE_CHECKING:
    _Iterable = IterableDataset[Any]
else:
    _Iterable = IterableDataset


class RingStore(ProducerSide, ActivationStore, _Iterable):
    """A bounded store that is filled and drained at the same time.

    One thread (or several) extends it, usually from a model's hooks; another iterates over it. A background writer
    deals the rows to the minibatches of a ring, so that a minibatch's rows come from all over the last `window` rows.

        >>> import threading, torch
        >>> store = RingStore(16, batch_size=32, window=256)
        >>> def capture():
        ...     for _ in range(20):
        ...         store.extend(torch.randn(50, 16))
        ...     store.close()
        >>> threading.Thread(target=capture).start()
        >>> sum(len(batch) for batch in store)
        1000

    Every loop over it (`iter(store)`, `async for`) is a consumer of its own, and so is the store itself under `next(store)`:
    each minibatch goes to one of them, on any thread or task. A loop that is broken off can be taken up again by another.
    It is also a `torch.utils.data.IterableDataset` (for a `DataLoader` with `batch_size=None, num_workers=0`). A minibatch
    owns its memory, which goes back to the store when the last tensor over it dies; keeping it costs no more than that
    memory.

    A loop ends when the store is closed and drained, or aborted. If it was closed with an error (`close(error=...)`), the loop
    raises that after the last minibatch. A loop that begins after an abort raises `RuntimeError`.
    """

    def __init__(
        self,
        components: int | Mapping[str, int | tuple[int, object]],
        *,
        batch_size: int = 4096,
        window: int = 262_144,
        dtype: object = "f32",
        seed: int = 0,
        ready_frames: int = 2,
        queue_rows: int | None = None,
        drop_last: bool = False,
        when_full: Literal["wait", "reject", "drop_oldest"] = "wait",
        max_skew: int | None = None,
        merge: Literal["arrival", "round_robin"] = "arrival",
        allow_overcommit: bool = False,
        output: Literal["torch", "numpy"] | None = None,
        stacked: bool = False,
    ) -> None:
        """Obtains the memory and starts the writer.

        Args:
            components: Features of a row; for several components a dict from name to features, or to
                `(features, dtype)` for one with a dtype of its own (such as token ids, `(1, "i64")`).
            batch_size: Rows of a minibatch.
            window: Rows that a minibatch's rows are spread over. The ring takes the memory of that many.
            dtype: Element type the rows are kept in: f32, f16 or bf16, as a name or a numpy or torch dtype. Rows of
                another of these are converted on the way in.
            seed: The same seed and rows give the same minibatches, bit for bit.
            ready_frames: Full minibatches that may wait for a consumer.
            queue_rows: Rows of each component that may wait for the writer before `extend` waits. Default: two
                minibatches.
            drop_last: Whether to drop the last, partial minibatch.
            when_full: What happens when the consumer lags: `"wait"`, `"reject"` (`StoreFullError`) or `"drop_oldest"`.
            max_skew: Rows that one component may run ahead of another on one lane; one batch always may. Default: `queue_rows`.
            merge: How the rows of several producers become one sequence: by `"arrival"`, or `"round_robin"` where runs
                must repeat bit for bit.
            allow_overcommit: Whether to build a store that needs more than nine tenths of the memory available now.
            output: Minibatches as `"torch"` tensors or `"numpy"` arrays; by default torch where it is installed.
            stacked: Several components as one `[batch, component, feature]` array, instead of a dict by name.

        Raises:
            ValueError: If it cannot be so; says what would work.
        """
        self._components = components_of(components, dtype)
        layouts = {(component.features, component.dtype) for component in self._components}
        if stacked and len(layouts) > 1:
            raise ValueError(f"components of {len(layouts)} different widths or dtypes cannot be stacked; use stacked=False")
        self._convert = converter(output, [component.dtype for component in self._components])
        self._stacked = stacked
        self._batch_size = count("batch_size", batch_size)
        self._ring = _native.Ring(
            self._components,
            batch_size=self._batch_size,
            window=count("window", window),
            ready_frames=count("ready_frames", ready_frames),
            queue_rows=None if queue_rows is None else count("queue_rows", queue_rows),
            max_skew=None if max_skew is None else count("max_skew", max_skew),
            seed=seed_of(seed),
            drop_last=drop_last,
            when_full=when_full,
            merge=merge,
            allow_overcommit=allow_overcommit,
        )
        self._lane = self._ring.own_lane()
        self._returned, self._failure, self._parties = Returned(), Failure(), Parties()
        self._own = self._consumer()

    def producer(self) -> Producer:
        """Opens a lane of its own, for one model replica or one thread of capture.

        On one lane, row r of every component belongs to the same token, so replicas that write at once each need one.

        Raises:
            StoreClosedError: If the store is closed.
        """
        return Producer(self._ring.open_lane(), self._parties)

    def __iter__(self) -> Iterator[Batch]:
        return self._consumer()

    def __next__(self) -> Batch:
        return self.next()

    def next(self, timeout: float | None = None) -> Batch:
        """The next minibatch.

        Raises:
            TimeoutError: If none was ready in time.
            StopIteration: If the store is closed and drained, or aborted.
            BaseException: The error that the store was closed with, once, after the last minibatch.
        """
        return self._own.next(timeout)

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self._consumer()

    async def __anext__(self) -> Batch:
        return await self._own.__anext__()

    def _consumer(self) -> Consumer:
        # It holds nothing of this object, so that a store which nothing else refers to closes, and the loop over it ends.
        out = partial(batch_of, components=self._components, convert=self._convert, stacked=self._stacked)
        return Consumer(self._ring.consumer(), self._returned, self._failure, self._parties, out)

    def flush(self, timeout: float | None = None) -> None:
        """Waits until everything handed over before is in the ring.

        Raises:
            TimeoutError: If it was not in time.
            ValueError: If rows were dropped since the last flush because the same rows of another component never came; once
                for each lane that lost rows.
        """
        self._ring.flush(timeout, self._parties.flush_waits())

    def close(self, error: BaseException | None = None) -> None:
        """Takes no more rows; iterating gives what is left, then ends. Returns at once.

        A call that waits for room gets `StoreClosedError`.

        Args:
            error: Raised in every loop over the store, once, after the last minibatch: the same object, with its own
                traceback. So what went wrong in the capture reaches the training loop. The first error stays; `abort`
                discards it.

        Raises:
            TypeError: If `error` is no exception.
        """
        if error is None:
            self._ring.close()
        else:
            self._failure.note(error)
            self._ring.close(type(error).__name__)

    def abort(self) -> None:
        """Takes no more rows and discards those there are; loops end. A loop that begins afterwards raises `RuntimeError`."""
        self._ring.abort()
        self._returned.clear()

    def empty(self) -> None:
        """Discards everything handed over so far, and goes on."""
        self._returned.clear()
        self._ring.empty()

    @property
    def closed(self) -> bool:
        """Whether the store takes no more rows."""
        return self._ring.closed

    @property
    def batch_size(self) -> int:
        """Rows of a minibatch."""
        return self._batch_size

    @property
    def window(self) -> int:
        """Rows that a minibatch's rows are spread over, in whole minibatches."""
        return self._ring.window

    @property
    def component_names(self) -> tuple[str, ...]:
        """The components' names, in order."""
        return tuple(component.name for component in self._components)

    @property
    def n_components(self) -> int:
        """How many components."""
        return len(self._components)

    @property
    def current_activations_stored_per_component(self) -> list[int]:
        """Rows in the store of each component."""
        return self._ring.stored()

    def stats(self) -> _native.Stats:
        """Counts, all taken at the same moment."""
        return self._ring.stats()

    def __len__(self) -> int:
        """Rows in the ring now, while iterating gives minibatches."""
        return len(self._ring)

    def __bool__(self) -> bool:
        """True, also while it is empty."""
        return True

    def __sizeof__(self) -> int:
        return self._ring.nbytes

    def __getitem__(self, index: Any) -> Any:
        """Values of rows in the ring, as `f32`: for looking at; rows move as others come and go."""
        return get(self._ring.rows, len(self), self._components, index)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the store, or after an exception aborts it."""
        if kind is None:
            self.close()
        else:
            self.abort()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a RingStore cannot be pickled: its memory and its background writer belong to this process; "
            "capture and drain in one process (DataLoader: num_workers=0)"
        )

    def __repr__(self) -> str:
        components = {component.name: component[1:] for component in self._components}
        return f"RingStore({components}, batch_size={self._batch_size}, window={self.window})"
