"""The pipeline: hooks extend the store while the training loop drains shuffled minibatches."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from . import _native
from ._arrays import converter, dtype_name
from ._batches import Batch, batch_of
from ._torch import IterableDataset
from ._watch import watcher
from .base_store import ActivationStore, Components, Writer, get, positive, seed_of

if TYPE_CHECKING:
    _Iterable = IterableDataset[Any]
else:
    _Iterable = IterableDataset

Output = Literal["torch", "numpy"]

_SLICE = 0.05
"""Seconds that a thread waits for a minibatch before it looks for one that a cancelled task has given back."""


@dataclass(frozen=True)
class ComponentStats:
    """The rows of one component. At every moment, `accepted == resident + served + dropped`."""

    accepted: int
    """Rows the store has taken."""
    queued: int
    """Rows handed over that the store has not taken yet."""
    resident: int
    """Rows the store holds."""
    served: int
    """Rows handed out in minibatches."""
    dropped: int
    """Rows given up: by `empty`, `abort`, `drop_last`, `when_full="drop_oldest"`, or for want of another component."""


@dataclass(frozen=True)
class Stats:
    """A consistent picture of a `RingStore`. Times are in seconds."""

    components: dict[str, ComponentStats]
    minibatches_served: int
    producer_wait: float
    """How long rows waited because the minibatches that were ready had not been taken."""
    consumer_wait: float
    """How long consumers waited for a minibatch."""
    frames_open: int
    """Minibatches being filled."""
    frames_ready: int
    """Full minibatches that nobody has taken yet."""
    frames_lent: int
    """Minibatches with consumers."""


_Came = Callable[["_native.Minibatch | None", "BaseException | None"], None]


def _layout(name: object, value: Any, default: str) -> tuple[int, str]:
    """A component's features and dtype."""
    features, dtype = value, default
    if isinstance(value, tuple):
        if len(value) != 2:
            raise ValueError(f"component {name!r} is {value!r}; give its features, or (features, dtype)")
        features, dtype = value[0], dtype_name(value[1])
    return positive(f"the number of features of component {name!r}", features), dtype


class RingStore(Writer, ActivationStore, _Iterable):
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

    It is its own iterator (so `next(store)` works, and a loop that is broken off can be taken up again), an async
    iterator, and a `torch.utils.data.IterableDataset` (for a `DataLoader` with `batch_size=None, num_workers=0`).
    Several threads and tasks may share it: each minibatch goes to one of them. A minibatch owns its memory, which goes
    back to the store when the last tensor over it dies; keeping it costs no more than that memory.
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
        output: Output | None = None,
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
            max_skew: Rows that one component may run ahead of another. Default: the window.
            merge: How the rows of several producers become one sequence: by `"arrival"`, or `"round_robin"` where runs
                must repeat bit for bit.
            output: Minibatches as `"torch"` tensors or `"numpy"` arrays; by default torch where it is installed.
            stacked: Several components as one `[batch, component, feature]` array, instead of a dict by name.

        Raises:
            ValueError: If it cannot be so; says what would work.
        """
        if not isinstance(components, Mapping):
            components = {"0": components}
        default = dtype_name(dtype)
        self._components = Components({str(name): _layout(name, value, default) for name, value in components.items()})
        layouts = set(zip(self._components.features, self._components.dtypes, strict=True))
        if stacked and len(layouts) > 1:
            raise ValueError(f"components of {len(layouts)} different widths or dtypes cannot be stacked; use stacked=False")
        self._convert = converter(output, list(self._components.dtypes))
        self._stacked = stacked
        self._batch_size = positive("batch_size", batch_size)
        self._ring = _native.Ring(
            self._components.native(),
            batch_size=self._batch_size,
            window=positive("window", window),
            ready_frames=positive("ready_frames", ready_frames),
            queue_rows=None if queue_rows is None else positive("queue_rows", queue_rows),
            max_skew=None if max_skew is None else positive("max_skew", max_skew),
            seed=seed_of(seed),
            drop_last=drop_last,
            when_full=when_full,
            merge=merge,
        )
        self._to = self._ring
        # Minibatches that came for an awaiting task that had been cancelled, and the tasks that wait for one.
        self._returned: deque[_native.Minibatch] = deque()
        self._waiting: deque[_Came] = deque()
        self._lock = threading.Lock()

    def producer(self) -> Producer:
        """Opens a lane of its own, for one model replica or one thread of capture.

        On one lane, row r of every component belongs to the same token, so replicas that write at once each need one.

        Raises:
            StoreClosedError: If the store is closed.
        """
        return Producer(self)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self._out(self._take(None))

    def next(self, timeout: float | None = None) -> Batch:
        """The next minibatch.

        Raises:
            TimeoutError: If none was ready in time.
            StopIteration: If the store is closed and drained.
        """
        return self._out(self._take(timeout))

    def _take(self, timeout: float | None) -> _native.Minibatch:
        end = None if timeout is None else time.monotonic() + timeout
        left = timeout
        while True:
            if self._returned:
                with contextlib.suppress(IndexError):
                    return self._returned.popleft()
            try:
                minibatch = self._ring.next(_SLICE if left is None else min(left, _SLICE))
            except TimeoutError:
                if end is not None:
                    left = max(0.0, end - time.monotonic())
                    if left == 0:
                        raise TimeoutError(f"no minibatch was ready within {timeout} s") from None
            else:
                if minibatch is not None:
                    return minibatch
                if not self._returned:
                    raise StopIteration

    def _out(self, minibatch: _native.Minibatch) -> Batch:
        return batch_of(minibatch, self._components, self._convert, self._stacked)

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        try:
            return self._out(self._take(0))
        except TimeoutError:
            pass
        except StopIteration:
            raise StopAsyncIteration from None
        minibatch = await self._arrival()
        if minibatch is None:
            raise StopAsyncIteration
        return self._out(minibatch)

    async def _arrival(self) -> _native.Minibatch | None:
        """Awaits the next minibatch; cancelling it loses none."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[_native.Minibatch | None] = loop.create_future()

        def hand_over(minibatch: _native.Minibatch | None, error: BaseException | None) -> None:
            if arrived.done():
                self._give_back(minibatch)
            elif error is not None:
                arrived.set_exception(error)
            else:
                arrived.set_result(minibatch)

        def came(minibatch: _native.Minibatch | None, error: BaseException | None) -> None:
            try:
                loop.call_soon_threadsafe(hand_over, minibatch, error)
            except RuntimeError:  # the loop has been closed
                self._give_back(minibatch)

        task = watcher().watch_next(self._ring, came)
        self._waiting.append(came)
        self._hand_on()
        try:
            return await arrived
        except asyncio.CancelledError:
            if not arrived.cancelled() and arrived.exception() is None:
                self._give_back(arrived.result())
            raise
        finally:
            watcher().forget(task)
            with contextlib.suppress(ValueError):
                self._waiting.remove(came)

    def _give_back(self, minibatch: _native.Minibatch | None) -> None:
        if minibatch is not None:
            self._returned.append(minibatch)
            self._hand_on()

    def _hand_on(self) -> None:
        """Gives minibatches that have come back to tasks that wait for one."""
        while True:
            with self._lock:
                if not (self._returned and self._waiting):
                    return
                try:
                    minibatch = self._returned.popleft()
                except IndexError:  # a thread has taken it
                    return
                try:
                    came = self._waiting.popleft()
                except IndexError:  # it waits no longer
                    self._returned.appendleft(minibatch)
                    return
            came(minibatch, None)

    def flush(self, timeout: float | None = None) -> None:
        """Waits until everything handed over before is in the ring.

        Raises:
            TimeoutError: If it was not in time.
        """
        self._ring.flush(timeout)

    def close(self) -> None:
        """Takes no more rows; iterating gives what is left, then ends. Returns at once."""
        self._ring.close()

    def abort(self) -> None:
        """Takes no more rows and discards those there are; iterating ends."""
        self._returned.clear()
        self._ring.abort()

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
    def component_names(self) -> tuple[str, ...]:
        """The components' names, in order."""
        return self._components.names

    @property
    def n_components(self) -> int:
        """How many components."""
        return len(self._components.names)

    @property
    def current_activations_stored_per_component(self) -> list[int]:
        """Rows in the store of each component."""
        return self._ring.stored()

    def stats(self) -> Stats:
        """Counts, all taken at the same moment."""
        counts = self._ring.stats()
        components = {name: ComponentStats(**values) for name, values in counts.pop("components").items()}
        return Stats(components=components, **counts)

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
        components = ", ".join(
            f"{name}: {features} {dtype}" for name, features, dtype in self._components.native()
        )
        return f"RingStore({{{components}}}, batch_size={self._batch_size})"


class Producer(Writer):
    """A lane of its own into a `RingStore`; see `RingStore.producer`. Closing it, or letting go of it, ends the lane."""

    def __init__(self, store: RingStore) -> None:
        self._components = store._components  # noqa: SLF001
        self._ring = store._ring  # noqa: SLF001
        self._to = self._lane = self._ring.lane()

    def close(self) -> None:
        """Ends the lane: it takes no more rows."""
        self._lane.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a Producer cannot be pickled: its store belongs to this process")
