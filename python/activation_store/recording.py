"""Reads a recording: epochs of minibatches, single rows, all rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Self

import numpy as np

from . import _native
from ._ring.epochs import Epochs, Place, loop_over
from ._ring.loaders import Worker, worker
from ._rows.batches import Batch
from ._rows.checks import count, seed_of
from ._rows.components import Component
from ._rows.dtypes import numpy_dtype, torch_dtype
from ._rows.torch import HAS_TORCH, IterableDataset, torch
from ._rows.warnings import warn
from .ring_store import RingStore
from .snapshots import Source, native_source
from .tensor_store import TensorActivationStore


def by_name(modules: object) -> dict[str, str]:
    """What the metadata of a recording says of how its modules were named: in a list or mapping, or (nothing) by a path alone."""
    return {} if modules is None or isinstance(modules, str) else {"by_name": "true"}


class Recording(IterableDataset[Any]):
    """What a `Recorder` or `record` wrote to a folder. Each loop over it is an epoch of shuffled minibatches, in another order.

        >>> recording = Recording("recorded", batch_size=64, window=256, seed=1)
        >>> for epoch in range(2):
        ...     rows = sum(len(batch["mlp"]) for batch in recording)
        >>> rows, recording.rows, len(recording)
        (500, 500, 8)

    It is a `torch.utils.data.IterableDataset`, for a `DataLoader` with `batch_size=None`. Its length is the number of minibatches in an
    epoch. The workers of a `DataLoader` share the minibatches: each has a ring of its own, of `window` rows. Reading goes on in the
    background, ahead of the loop.

    An epoch counts once all of its minibatches were served. If you leave a loop earlier, the next loop serves the same epoch from its
    start; `set_epoch` changes that.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        components: str | Sequence[str] | None = None,
        batch_size: int = 4096,
        window: int = 262_144,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        allow_overcommit: bool = False,
        output: Literal["torch", "numpy"] | None = None,
        stacked: bool = False,
        salvage: bool = False,
    ) -> None:
        """Opens it. Reads what its shards say, not their rows.

        Args:
            folder: The folder.
            components: Which components to read; by default all. Others are not read from the disk. A name alone gives tensors, a list of
                names gives dicts of tensors by name, also if it has one name. By default one component gives tensors, unless `record` was
                given a list or a mapping of modules.
            batch_size: Rows of a minibatch.
            window: Rows that a minibatch's rows are spread over. Best four shards or more; see docs/recording.md.
            seed: Decides the order of shards and rows, with the number of the epoch.
            rank: Which of `world_size` parts to serve. The parts of an epoch do not overlap and leave nothing out, and all ranks
                serve as many minibatches.
            world_size: How many parts.
            drop_last: Whether to drop the last, partial minibatch of each epoch.
            allow_overcommit: Whether to use more than nine tenths of the memory available now.
            output: Minibatches as `"torch"` tensors or `"numpy"` arrays; by default torch where it is installed.
            stacked: The components as one array, instead of a dict by name.
            salvage: Whether to leave out shards that are damaged or missing, with a warning for each. Reads every file first. Rows are
                then numbered without those that are left out.

        Raises:
            FileNotFoundError: If there is no whole shard.
            ValueError: If a shard is damaged or missing, or has other components.
            OSError: If it cannot be read.
        """
        self._native = _native.Recording(os.fspath(folder), salvage)
        for what in self._native.lost:
            warn(f"left out: {what}")
        self._folder, self._salvage = os.fspath(folder), salvage
        self._chosen = None if components is None else [components] if isinstance(components, str) else list(components)
        self._named = self.metadata.get("by_name") == "true" if components is None else not isinstance(components, str)
        self._batch_size = count("batch_size", batch_size)
        self._seed, self._part = seed_of(seed), (rank, count("world_size", world_size))
        self._sizes: dict[str, Any] = {
            "batch_size": self._batch_size, "window": count("window", window), "drop_last": drop_last,
            "allow_overcommit": allow_overcommit,
        }  # fmt: skip
        self._output, self._stacked = output, stacked
        self._epochs = Epochs()
        self._place: Place | None = None
        """Where the last loop is, or a loaded state."""
        self._is_loaded = False
        self._loops = 0

    def __iter__(self) -> Iterator[Batch]:
        """Serves the coming epoch: 0 at first, then the one behind the last that was served; see `set_epoch`.

        In a worker of a `DataLoader` serves the worker's part of it. Together, the workers serve as many minibatches as one process does.
        """
        here = worker()
        self._loops += 1
        if self._place is None or not self._is_loaded:
            self._place = Place(self._epochs.coming, 0)
        self._is_loaded, place = False, self._place
        if here is None:
            length, part = len(self), None
            at_end = partial(self._epochs.served, place.epoch)
        else:
            length, part = self._part_of(here)
            at_end = partial(self._epochs.served_by, here, here.seed + self._loops, place.epoch)
        if place.served > length:
            raise ValueError(f"the state is of minibatch {place.served}, and an epoch has {length} here; load the state of this recording and worker")
        # If nothing is left of the epoch, there is nothing to read. (Of an epoch without minibatches, the ring says what is wrong.)
        is_over = place.served == length and (place.served > 0 or part is not None)
        minibatches: Iterator[Batch] = iter(()) if is_over else iter(self._ring(1, place.epoch, None, part))
        return loop_over(place, 0 if is_over else place.served, length, minibatches, at_end)

    def minibatches(self) -> Self:
        """This recording itself, for code that gives the `minibatches()` of any store to a `DataLoader`. It has a length."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The next loop serves this epoch from its start, as `DistributedSampler.set_epoch` has it.

        Also reaches the workers that a `DataLoader` has started.
        """
        self._epochs.coming = epoch
        self._place, self._is_loaded = None, False

    def state_dict(self) -> dict[str, Any]:
        """Where the last loop is, in an epoch or behind it, as torchdata's `StatefulDataLoader` has it. JSON can hold it.

        It counts minibatches, so a loop that goes on from it reads the rows of the epoch again. For a place that is found at once, use
        `replay` and its `snapshot`.
        """
        place = self._place
        if place is None or (place.has_ended and worker() is None):
            place = Place(self._epochs.coming, 0)
        return {**self._settings(), "epoch": place.epoch, "minibatches": place.served}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next loop goes on where `state_dict` was called: it serves the rest of that epoch, bit for bit.

        Raises:
            ValueError: If it is no such state; if it is of other rows, or of other settings.
        """
        try:
            place = Place(int(state["epoch"]), int(state["minibatches"]))
        except (KeyError, TypeError, ValueError):
            raise ValueError("this is not the state of a Recording; give what state_dict() returned") from None
        for name, value in self._settings().items():
            if state.get(name) != value:
                raise ValueError(f"the state has {name}={state.get(name)!r}, and this recording {name}={value!r}; open the recording as it was")
        self._epochs.coming, self._place, self._is_loaded = place.epoch, place, True

    def _settings(self) -> dict[str, Any]:
        """What decides the minibatches of an epoch."""
        rank, world_size = self._part
        here = worker()
        return {
            "rows": self.rows, "components": self._chosen, "batch_size": self._batch_size, "window": self._sizes["window"], "seed": self._seed,
            "drop_last": self._sizes["drop_last"], "rank": rank, "world_size": world_size,
            "worker": None if here is None else [here.number, here.workers],
        }  # fmt: skip

    def _part_of(self, here: Worker) -> tuple[int, tuple[int, int] | None]:
        """How many minibatches a worker serves, and which rows of this rank's part of an epoch it reads; None for all.

        The workers divide the full minibatches. The last worker also has what is behind them, which may differ from rank to rank.
        """
        if here.workers == 1:
            return len(self), None
        full = self.rows // self._part[1] // self._batch_size
        first, end = (full * number // here.workers for number in (here.number, here.number + 1))
        if here.number == here.workers - 1:
            return len(self) - first, (first * self._batch_size, 2**63)
        return end - first, (first * self._batch_size, end * self._batch_size)

    def replay(self, epochs: int = 1, *, resume: Source | None = None) -> RingStore[Any]:
        """A store that serves some epochs, one after the other, without a break between them. It has `snapshot` and `stats`.

        Args:
            epochs: How often each row is served.
            resume: Go on from a snapshot of such a store: the folder that `snapshot` was given, or what `state_dict` returned.

        Raises:
            ValueError: If the settings cannot be so; if the snapshot is of a replay of another recording, or with other settings.
            OSError: If the snapshot cannot be read.
        """
        return self._ring(count("epochs", epochs), 0, resume)

    def _ring(self, epochs: int, first: int, resume: Source | None, part: tuple[int, int] | None = None) -> RingStore[Any]:
        source: Any = {} if resume is None else native_source(resume)
        rank, world_size = self._part
        ring = self._native.replay(
            components=self._chosen, seed=self._seed, epochs=epochs, first_epoch=first, rank=rank, world_size=world_size, part=part,
            settings=self._sizes, **source,
        )  # fmt: skip
        return RingStore._over(ring, self._output, self._stacked, self._named)  # noqa: SLF001

    @property
    def components(self) -> Mapping[str, tuple[int, str]]:
        """Features and dtype of each component, by name."""
        return {name: (features, dtype) for name, features, dtype in self._native.components}

    @property
    def lanes(self) -> Mapping[str, int]:
        """Rows of each lane, by name."""
        return self._native.lanes

    @property
    def shards(self) -> int:
        """How many shards."""
        return self._native.shards

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the recorders were told of the rows."""
        return self._native.metadata

    @property
    def rows(self) -> int:
        """Rows of each component. `get` numbers them."""
        return len(self._native)

    def __len__(self) -> int:
        """Minibatches of this rank in the coming epoch, and in every other: all ranks serve as many in each."""
        rows, world_size = self.rows, self._part[1]
        if self._sizes["drop_last"]:
            return rows // world_size // self._batch_size
        return -(-rows // (world_size * self._batch_size))

    def __bool__(self) -> bool:
        """True, also if `drop_last` leaves no minibatch."""
        return True

    def get(self, component: int | str, rows: Any) -> Any:
        """Rows of a component, `[rows, features]`, in its own dtype and in the order asked for. Reads only those.

        Rows are numbered over the lanes in the order of their names. Compares no checksum: `verify` does.

        Args:
            component: Its number or name.
            rows: A list, array or tensor of row numbers.

        Raises:
            IndexError: If there is no such row or component.
            OSError: If a file cannot be read.
        """
        wanted = [int(row) for row in np.asarray(rows).reshape(-1)]
        if any(row < 0 for row in wanted):
            raise IndexError(f"row index {min(wanted)} is out of range: there are {self.rows}")
        found = Component(*self._native.components[self._number(component)])
        values = self._native.rows(component, wanted)
        shape = len(wanted), found.features
        if self._output != "numpy" and HAS_TORCH:
            return torch.frombuffer(values, dtype=torch_dtype(found.dtype)).view(shape) if wanted else torch.empty(shape, dtype=torch_dtype(found.dtype))
        return np.frombuffer(values, dtype=numpy_dtype(found.dtype)).reshape(shape)

    def load(self, *, seed: int | None = None) -> TensorActivationStore:
        """Reads all rows into memory, as `float32`, to shuffle and index. Row n of the store is row n of the recording.

        Needs components of equally many features; choose some with `components`. Compares no checksum: `verify` does.

        Args:
            seed: Of the store's shuffling; see `TensorActivationStore`.

        Raises:
            ValueError: If components have other numbers of features.
            OSError: If a file cannot be read.
        """
        names = self._chosen or list(self.components)
        features = {name: self.components[name][0] for name in names}
        if len(set(features.values())) > 1:
            raise ValueError(f"components of one store have equally many features, and these have {features}; choose with Recording(..., components=[...])")
        store = TensorActivationStore(self.rows, features[names[0]], len(names), seed=seed)
        for number, name in enumerate(names):
            for first in range(0, self.rows, 16_384):
                store.extend(self.get(name, range(first, min(first + 16_384, self.rows))), number)
        return store

    def _number(self, component: int | str) -> int:
        names = [name for name, *_ in self._native.components]
        if isinstance(component, str) and component in names:
            return names.index(component)
        if not isinstance(component, str) and -len(names) <= component < len(names):
            return component % len(names)
        raise IndexError(f"there is no component {component!r}; this recording has {', '.join(map(repr, names))}")

    def verify(self, progress: Callable[[int, int], object] | None = None) -> None:
        """Reads every file and compares its checksum.

        Args:
            progress: Called with the number of shards done and of all, after each.

        Raises:
            ValueError: If a file is damaged; names the first.
            OSError: If it cannot be read.
        """
        self._native.verify(progress)

    def __getstate__(self) -> dict[str, Any]:
        # A process that is spawned opens the folder again.
        return {**vars(self), "_native": (self.rows, dict(self.lanes), self.shards)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._native = _native.Recording(self._folder, self._salvage)
        if state["_native"] != (found := (self.rows, dict(self.lanes), self.shards)):
            raise ValueError(f"{self._folder}: the recording has changed since it was opened, from {state['_native'][0]} to {found[0]} rows; open it again")

    def __repr__(self) -> str:
        return f"Recording({self._folder!r}: {self.rows} rows of {dict(self.components)} in {self.shards} shards)"
