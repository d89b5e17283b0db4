"""Rows that were recorded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from . import _native
from ._batches import Batch
from ._checks import count, seed_of
from ._components import Component
from ._dtypes import numpy_dtype, torch_dtype
from ._torch import HAS_TORCH, IterableDataset, torch
from ._warnings import warn
from .ring_store import RingStore
from .snapshots import Source, native_source
from .tensor_store import TensorActivationStore

if TYPE_CHECKING:
    _Iterable = IterableDataset[Any]
else:
    _Iterable = IterableDataset


class Recording(_Iterable):
    """What a `Recorder` or `record` wrote to a folder. Each loop over it is an epoch of shuffled minibatches, in another order.

        >>> recording = Recording("recorded", batch_size=64, window=256, seed=1)
        >>> for epoch in range(2):
        ...     rows = sum(len(batch["mlp"]) for batch in recording)
        >>> rows == len(recording) == 500
        True

    It is a `torch.utils.data.IterableDataset` (for a `DataLoader` with `batch_size=None, num_workers=0`). Reading goes on in the
    background, ahead of the loop.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        components: Sequence[str] | None = None,
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
            components: The names of those to read; by default all. Others are not read from the disk.
            batch_size: Rows of a minibatch.
            window: Rows that a minibatch's rows are spread over. Best four shards or more; see docs/recording.md.
            seed: Decides the order of shards and rows, with the number of the epoch.
            rank: Which of `world_size` parts to serve. The parts of an epoch do not overlap and leave nothing out, and all ranks
                serve as many minibatches.
            world_size: How many parts.
            drop_last: Whether to drop the last, partial minibatch of each loop.
            allow_overcommit: Whether to use more than nine tenths of the memory available now.
            output: Minibatches as `"torch"` tensors or `"numpy"` arrays; by default torch where it is installed.
            stacked: Several components as one array, instead of a dict by name.
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
        self._folder = os.fspath(folder)
        self._chosen = None if components is None else list(components)
        self._seed, self._part = seed_of(seed), (rank, count("world_size", world_size))
        self._sizes: dict[str, Any] = {
            "batch_size": count("batch_size", batch_size), "window": count("window", window), "drop_last": drop_last,
            "allow_overcommit": allow_overcommit,
        }  # fmt: skip
        self._output, self._stacked = output, stacked
        self._epoch = 0

    def __iter__(self) -> Iterator[Batch]:
        """Serves the next epoch. The first loop serves epoch 0; see `set_epoch`."""
        epoch, self._epoch = self._epoch, self._epoch + 1
        return iter(self._ring(1, epoch, None))

    def set_epoch(self, epoch: int) -> None:
        """The next loop serves this epoch, as `DistributedSampler.set_epoch` has it."""
        self._epoch = epoch

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

    def _ring(self, epochs: int, first: int, resume: Source | None) -> RingStore[Any]:
        source: Any = {} if resume is None else native_source(resume)
        rank, world_size = self._part
        ring = self._native.replay(
            components=self._chosen, seed=self._seed, epochs=epochs, first_epoch=first, rank=rank, world_size=world_size,
            **self._sizes, **source,
        )  # fmt: skip
        return RingStore._over(ring, self._output, self._stacked)  # noqa: SLF001

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

    def __len__(self) -> int:
        """Rows of each component."""
        return len(self._native)

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
            raise IndexError(f"row index {min(wanted)} is out of range: there are {len(self)}")
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
        store = TensorActivationStore(len(self), features[names[0]], len(names), seed=seed)
        for number, name in enumerate(names):
            for first in range(0, len(self), 16_384):
                store.extend(self.get(name, range(first, min(first + 16_384, len(self)))), number)
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

    def __repr__(self) -> str:
        return f"Recording({self._folder!r}: {len(self)} rows of {dict(self.components)} in {self.shards} shards)"
