"""The ring of a run, opened with the first pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .._hooks.pass_mask import nothing_kept
from .._ring.failure import Failure
from .._rows.dtypes import SIZES
from ..errors import StoreClosedError
from ..ring_store import RingStore
from .positions import lane_name

if TYPE_CHECKING:
    from .. import _native
    from .._ring.consumer import Consumer
    from ..producer import Producer

Layout: TypeAlias = "Mapping[str, tuple[int, str]]"
"""The width and the dtype of every component, by name."""


class Opens(Protocol):
    """What is opened with the first pass."""

    @property
    def has_ended(self) -> bool:
        """Whether no more passes are taken."""

    @property
    def one_pass_a_batch(self) -> bool:
        """Whether a batch that runs the model more than once is refused."""

    def lane(self, number: int, layout: Layout, /) -> Any:
        """Where the passes of a replica go. The first call opens it."""


class Opening:
    """Opens the ring when the first pass tells the widths and dtypes, and ends it, also if no pass ever came."""

    def __init__(
        self, build: Callable[[Layout], RingStore[Any]], lanes: int, *, waits: bool = True, named: bool = False, mask: object = None
    ) -> None:
        self._build = build
        self._n_lanes = lanes
        self._waits = waits
        """Whether a pass waits for room on its lane."""
        self._named, self._mask = named, mask
        # The garbage collector may end a run on a thread that holds the lock.
        self._lock = threading.RLock()
        self._store: RingStore[Any] | None = None
        self._lanes: list[Producer] = []
        self._consumer: Consumer | None = None
        self._failure = Failure()
        self._is_to_raise = self._has_ended = False
        self._last_stats: _native.Stats | None = None
        self.decided: Future[None] = Future()
        """Done when the ring is open, or will never be. Nothing cancels it."""
        self.decided.set_running_or_notify_cancel()  # so that a cancelled task cannot

    one_pass_a_batch = False

    @property
    def has_ended(self) -> bool:
        """Whether no more passes are taken."""
        return self._has_ended

    def resume(self, store: RingStore[Any]) -> None:
        """Takes a store that goes on from a snapshot: its layout is known before the first pass."""
        with self._lock:
            self._open(store)

    def _open(self, store: RingStore[Any]) -> None:
        self._store, store._named = store, self._named  # noqa: SLF001
        store._parties.expect_reader()  # noqa: SLF001
        # One that has served everything is closed.
        self._lanes = [] if store.closed else [store.producer(lane_name(number)) for number in range(self._n_lanes)]
        for lane in self._lanes:
            lane._waits = self._waits  # noqa: SLF001
        self._consumer = store._consumer()  # noqa: SLF001
        if self._has_ended:  # by the garbage collector, meanwhile
            store.abort()
        self._decide()

    @property
    def store(self) -> RingStore[Any]:
        """The ring.

        Raises:
            RuntimeError: If there is none yet, or not any more.
        """
        store = self._store
        if store is None:
            raise RuntimeError("there is no store: the first forward pass has not ended, or the run has")
        return store

    def lane(self, number: int, layout: Layout) -> Producer:
        """A replica's lane. The first call opens the ring and the lanes of all replicas, so that their order repeats.

        Raises:
            StoreClosedError: If the run has ended.
        """
        with self._lock:
            if self._has_ended:
                raise StoreClosedError("the run has ended, so its store takes no more rows")
            if self._store is None:
                self._open(self._build(layout))
            elif (found := set(self._store.component_names)) != set(layout):
                raise ValueError(f"the rows are of {sorted(layout)}, and the store, from a snapshot or the first pass, has {sorted(found)}: give the same modules and names")
            return self._lanes[number]

    def end_lane(self, number: int) -> None:
        """Ends a replica's lane, so that the others need not wait for its turn."""
        with self._lock:
            if self._lanes:
                self._lanes[number].close()

    def nothing_kept(self, batches: int) -> ValueError | None:
        """What is wrong if the model has run so many batches and no row came of them."""
        stats = self.stats()
        if not batches or (stats is not None and any(counts.accepted or counts.queued for counts in stats.components.values())):
            return None
        return nothing_kept(batches, self._mask)

    def end(self, error: BaseException | None = None) -> None:
        """Takes no more passes; what was captured is served, then the error is raised."""
        with self._lock:
            if self._store is not None:
                self._store.close(error)
            elif error is not None and not self._has_ended:
                self._failure.note(error)
                self._is_to_raise = True
            self._has_ended = True
            self._decide()

    def abort(self) -> None:
        """Takes no more passes and discards those there are."""
        with self._lock:
            self._has_ended, self._is_to_raise = True, False
            if self._store is not None:
                self._store.abort()
            self._decide()

    def release(self) -> None:
        """Lets go of the ring's memory."""
        with self._lock:
            self._last_stats = self.stats()
            self._store = self._consumer = None
            self._lanes = []

    def consumer(self) -> Consumer | None:
        """What serves the minibatches, once it is decided; None if there are none.

        Raises:
            BaseException: The error that ended the run before its first pass, once.
        """
        with self._lock:
            if self._is_to_raise:
                self._is_to_raise = False
                raise self._failure.error()
            return self._consumer

    def stats(self) -> _native.Stats | None:
        """The ring's counts, the last ones if it is gone; None before the first pass."""
        with self._lock:
            return self._last_stats if self._store is None else self._store.stats()

    @property
    def window(self) -> int:
        """Rows of the ring; 0 while it is not open."""
        store = self._store
        return 0 if store is None else store.window

    def _decide(self) -> None:
        if not self.decided.done():
            self.decided.set_result(None)


def builder(dtype: object, settings: Mapping[str, Any]) -> Callable[[Layout], RingStore[Any]]:
    """What builds the ring. `dtype`, if there is one, goes for all components of floats."""

    def build(layout: Layout) -> RingStore[Any]:
        return RingStore(with_dtype(layout, dtype), **settings)

    return build


def with_dtype(layout: Layout, dtype: object) -> dict[str, tuple[int, object]]:
    """The layout with `dtype`, if there is one, for all components of floats.

    Raises:
        TypeError: If there is none, and no store holds the floats of a component.
    """
    for name, (_, found) in layout.items():
        if dtype is None and found not in SIZES:
            raise TypeError(f'rows of {found} cannot be stored as they are ({name!r} has them): give dtype="f32", or another of {", ".join(SIZES)}')
    return {
        name: (features, found if dtype is None or found in ("u32", "i64") else dtype) for name, (features, found) in layout.items()
    }
