"""The pipeline: hooks extend the store while the training loop drains shuffled minibatches."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Self, Unpack, overload

import numpy as np

from . import _native
from ._ring.consumer_side import ConsumerSide
from ._ring.failure import Failure
from ._ring.loaders import BatchT_co, Minibatches, asked_by_loader
from ._ring.parties import Parties
from ._ring.returned import Returned
from ._ring.settings import RingSettings, given, native_settings
from ._rows.batches import converter
from ._rows.components import Component, Components, components_of
from ._rows.indexing import get
from ._rows.torch import IterableDataset, torch
from .base_store import ActivationStore
from .errors import StoreClosedError
from .producer import Producer, ProducerSide
from .snapshots import ResumeAt, Source, native_source, snapshot_of, state_of


class RingStore(ProducerSide, ActivationStore, ConsumerSide[BatchT_co], Generic[BatchT_co]):
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
    To a `DataLoader` give `store.minibatches()`, with `batch_size=None, num_workers=0`. A minibatch owns its memory, which goes back to the store when the last tensor over it dies; keeping it costs no more than that
    memory.

    A loop ends when the store is closed and drained, or aborted. If it was closed with an error (`close(error=...)`), the loop
    raises that after the last minibatch. A loop that begins after an abort raises `RuntimeError`. A loop that serves nothing, because all was
    served before or `drop_last` drops all rows, warns.
    """

    @overload
    def __init__(
        self: RingStore[torch.Tensor],
        components: int,
        *,
        output: Literal["torch"] | None = ...,
        stacked: bool = ...,
        **settings: Unpack[RingSettings],
    ) -> None: ...

    @overload
    def __init__(
        self: RingStore[torch.Tensor],
        components: Mapping[str, int | tuple[int, object]],
        *,
        output: Literal["torch"] | None = ...,
        stacked: Literal[True],
        **settings: Unpack[RingSettings],
    ) -> None: ...

    @overload
    def __init__(
        self: RingStore[np.ndarray[Any, Any]],
        components: int,
        *,
        output: Literal["numpy"],
        stacked: bool = ...,
        **settings: Unpack[RingSettings],
    ) -> None: ...

    @overload
    def __init__(
        self: RingStore[np.ndarray[Any, Any]],
        components: Mapping[str, int | tuple[int, object]],
        *,
        output: Literal["numpy"],
        stacked: Literal[True],
        **settings: Unpack[RingSettings],
    ) -> None: ...

    @overload
    def __init__(
        self: RingStore[Any],
        components: int | Mapping[str, int | tuple[int, object]],
        *,
        output: Literal["torch", "numpy"] | None = ...,
        stacked: bool = ...,
        **settings: Unpack[RingSettings],
    ) -> None: ...

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
                `(features, dtype)` for one with a dtype of its own (such as token ids, `(1, "i64")`). A minibatch of one component is a
                tensor, also if it has a name.
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
        wanted = components_of(components, dtype)
        self._check_output(wanted, output, stacked)
        settings = native_settings({
            "batch_size": batch_size, "window": window, "ready_frames": ready_frames, "queue_rows": queue_rows, "max_skew": max_skew,
            "seed": seed, "drop_last": drop_last, "when_full": when_full, "merge": merge, "allow_overcommit": allow_overcommit,
        })  # fmt: skip
        self._open(_native.Ring(wanted, settings), output, stacked)

    @classmethod
    def resume(
        cls,
        source: Source,
        *,
        components: int | Mapping[str, int | tuple[int, object]] | None = None,
        batch_size: int | None = None,
        window: int | None = None,
        dtype: object = "f32",
        seed: int | None = None,
        ready_frames: int | None = None,
        queue_rows: int | None = None,
        drop_last: bool | None = None,
        when_full: Literal["wait", "reject", "drop_oldest"] | None = None,
        max_skew: int | None = None,
        merge: Literal["arrival", "round_robin"] | None = None,
        allow_overcommit: bool = False,
        output: Literal["torch", "numpy"] | None = None,
        stacked: bool = False,
    ) -> RingStore[Any]:
        """A store that goes on where another stood: it serves the minibatches that would have been served next.

        Open its lanes again (by name, or in the same order), and send each lane's rows from where `resume_at` says:

            >>> store = RingStore.resume("checkpoints")
            >>> [at] = store.resume_at
            >>> for batch in batches[at.passes:]:
            ...     _ = store.extend_pass(run(batch))

        Args:
            source: The folder that `snapshot` was given, of which the newest snapshot is taken; one snapshot's folder; or
                what `state_dict` returned.
            components: The components. This and the settings below come from the snapshot. If you give one, it must be the same as
                in the snapshot; only `ready_frames`, `queue_rows` and `allow_overcommit` may differ. (`dtype` is for `components`.)
            batch_size: Rows of a minibatch.
            window: Rows that a minibatch's rows are spread over.
            dtype: Element type of the components that have none of their own.
            seed: The seed.
            ready_frames: Full minibatches that may wait for a consumer.
            queue_rows: Rows of each component and lane that may wait for the writer.
            drop_last: Whether to drop the last, partial minibatch.
            when_full: What happens when the consumer lags.
            max_skew: Rows that one component may run ahead of another on one lane.
            merge: How the rows of several producers become one sequence.
            allow_overcommit: Whether to build a store that needs more than nine tenths of the memory available now.
            output: Minibatches as `"torch"` tensors or `"numpy"` arrays.
            stacked: Several components as one array.

        Raises:
            FileNotFoundError: If there is no snapshot.
            ValueError: If it is damaged (the message names the one before it), of another version, or does not match; or if the store
                cannot be so here.
            OSError: If it cannot be read.
        """
        settings = given({
            "batch_size": batch_size, "window": window, "ready_frames": ready_frames, "queue_rows": queue_rows,
            "max_skew": max_skew, "seed": seed, "drop_last": drop_last, "when_full": when_full, "merge": merge,
            "allow_overcommit": allow_overcommit,
        })  # fmt: skip
        wanted = () if components is None else components_of(components, dtype)
        return cls._over(_native.Ring(wanted, settings, **native_source(source)), output, stacked)

    @classmethod
    def _over(cls, ring: _native.Ring, output: Literal["torch", "numpy"] | None, stacked: bool, named: bool = False) -> RingStore[Any]:
        """A store over a native one."""
        store = cls.__new__(cls)
        store._named = named
        store._open(ring, output, stacked)
        return store

    def _open(self, ring: _native.Ring, output: Literal["torch", "numpy"] | None, stacked: bool) -> None:
        components = tuple(Component(*component) for component in ring.components)
        self._check_output(components, output, stacked)
        self._components = components
        self._output: Literal["torch", "numpy"] | None = output
        self._convert = converter(output, [component.dtype for component in components])
        self._stacked = stacked
        self._batch_size = ring.batch_size
        self._ring = ring
        self._lane = ring.own_lane()
        self._returned, self._failure, self._parties = Returned(), Failure(), Parties()
        self._own = self._consumer()

    @staticmethod
    def _check_output(components: Components, output: Literal["torch", "numpy"] | None, stacked: bool) -> None:
        layouts = {(component.features, component.dtype) for component in components}
        if stacked and len(layouts) > 1:
            raise ValueError(f"components of {len(layouts)} different widths or dtypes cannot be stacked; use stacked=False")
        converter(output, [component.dtype for component in components])

    def producer(self, name: str | None = None) -> Producer:
        """Opens a lane of its own, for one model replica or one thread of capture.

        On one lane, row r of every component belongs to the same token, so replicas that write at once each need one.

        Args:
            name: A resumed store knows the lane by this name. Without a name, it knows the lane by the order of opening.

        Raises:
            StoreClosedError: If the store is closed.
            ValueError: If a lane of that name is open.
        """
        return Producer(self._ring.open_lane(name), self._parties)

    # Snapshots.

    def snapshot(
        self, folder: str | os.PathLike[str], *, form: Literal["light", "full"] = "light", timeout: float | None = None
    ) -> Path:
        """Saves the state between the minibatches taken so far and the next ones, in `folder/snapshot-K`.

        `RingStore.resume` goes on from it. Save your own checkpoint for K first; `Snapshots(folder).prune(2)` removes old
        ones. K counts the minibatches that all loops over the store have taken. So call this where you take minibatches, while a
        prefetcher or another loop holds none.

        Waits until the snapshot is whole and on disk. The pipeline runs on meanwhile.

        Args:
            folder: Where the snapshots go.
            form: `"light"`: what was dealt, some bytes for each batch in the window; the rows of about one window must be sent
                again. `"full"`: the rows, too, as many bytes as the ring holds.
            timeout: Seconds to wait. The snapshot is written all the same.

        Raises:
            OSError: If it cannot be written; earlier snapshots stay.
            ValueError: If the store drops rows when it is full (`when_full="drop_oldest"`, or for a light snapshot `"reject"`); if the
                newest whole snapshot in the folder is of another run; or if it is of this run and of a later minibatch than this store has
                saved itself.
            RuntimeError: If the store was aborted; if a minibatch that a cancelled task has returned waits to be served; or, for a full
                one, if another is being written, or the store was resumed and rows are still sent again.
            TimeoutError: If it is not on disk in time.
        """
        if form not in ("light", "full"):
            raise ValueError(f'form is {form!r}; use "light" or "full"')
        self._check_returned()
        return Path(self._ring.snapshot(os.fspath(folder), form == "full").wait(timeout))

    def state_dict(self) -> dict[str, Any]:
        """A light snapshot as a dict, for a checkpoint of your own, as torchdata's `StatefulDataLoader` has it.

        Raises:
            ValueError, RuntimeError: As `snapshot`.
        """
        self._check_returned()
        return state_of(self._ring.state())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from the `state_dict` of another store. Call it before you write to this store or take a minibatch.

        See `resume`. Both stores must have the same settings, except `ready_frames` and `queue_rows`.

        Raises:
            ValueError: If it is no such state, or does not match this store.
            RuntimeError: If rows were written or minibatches taken.
        """
        stats = self.stats()
        if stats.minibatches_served or any(counts.accepted or counts.queued for counts in stats.components.values()):
            raise RuntimeError("rows have been written to this store: call load_state_dict before the first, or use RingStore.resume(state)")
        settings = {"batch_size": self._batch_size, "window": self.window, "allow_overcommit": False}
        ring = _native.Ring(self._components, settings, snapshot=snapshot_of(state))
        self._ring.abort()
        self._open(ring, self._output, self._stacked)

    @property
    def resume_at(self) -> list[ResumeAt]:
        """Where each lane of a resumed store goes on, in the order of opening; empty for another store."""
        return [ResumeAt(*place) for place in self._ring.resume_at]

    def resume_point(self, name: str | None = None) -> ResumeAt | None:
        """Where one lane of a resumed store goes on. None if the lane is new: send its rows from the first row.

        `resume_at` has neither lanes that have ended nor lanes that are new. This method tells one from the other. It says what the
        snapshot has, also after you open the lane. In a store that was not resumed, every lane is new.

        Args:
            name: The lane's name; without one, the store's own lane.

        Raises:
            StoreClosedError: If the lane had ended and none of its rows are needed. A write to it would raise this, too.
        """
        ended, place = self._ring.resume_point(name)
        if ended:
            lane = "the store's own lane" if name is None else f"lane {name!r}"
            raise StoreClosedError(f"{lane} had ended before the snapshot, and none of its rows are needed: send nothing on it")
        return None if place is None else ResumeAt(*place)

    def _check_returned(self) -> None:
        if self._returned:
            raise RuntimeError(
                f"{len(self._returned)} minibatches that cancelled tasks have returned wait to be served, and would be lost: take them first"
            )

    def minibatches(self) -> IterableDataset[BatchT_co]:
        """The minibatches, as a `torch.utils.data.IterableDataset` that has no length, for a `DataLoader` or a trainer:

            >>> loader = torch.utils.data.DataLoader(store.minibatches(), batch_size=None)

        `len(store)` is the number of rows in the store now. A trainer that takes it for the number of minibatches trains nothing.
        """
        return Minibatches(self)

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
    def config(self) -> dict[str, Any]:
        """All settings, for the record of a run: those that were given, and what the others came to be. JSON can hold it."""
        config: dict[str, Any] = json.loads(self._ring.settings)
        return {**config, "output": self._output, "stacked": self._stacked}

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
        """Rows in the ring now, while iterating gives minibatches: see `minibatches`."""
        self._loader_has_asked = asked_by_loader() or self._loader_has_asked
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


def check_settings(*, output: Literal["torch", "numpy"] | None, stacked: bool, allow_overcommit: bool = False, **settings: Any) -> None:
    """Checks settings of a `RingStore` whose components are not known yet. Takes no memory for it.

    Raises:
        TypeError, ValueError: If one cannot be so.
    """
    components = components_of(1, "f32")
    RingStore._check_output(components, output, stacked)
    _native.Ring.check(components, native_settings({**settings, "allow_overcommit": allow_overcommit}))
