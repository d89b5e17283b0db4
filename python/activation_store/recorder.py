"""Writes rows to disk, alone or beside a ring."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from . import _native
from ._native import IfFull
from ._ring.parties import Parties
from ._rows.checks import count
from ._rows.components import components_of
from ._rows.incoming import incoming_pass
from ._rows.odd_values import OddValues
from ._rows.warnings import warn
from .future import Future

if TYPE_CHECKING:
    from .producer import Producer
    from .ring_store import RingStore


class Safe(NamedTuple):
    """What of a lane is on disk, in whole shards.

    Attributes:
        passes: How many passes. Go on with the next one.
        rows: How many rows of each component.
    """

    passes: int
    rows: int


class Recorder:
    """Writes passes to a folder, as shards: safetensors files, one for each component, that other programs can read, too.

        >>> import torch
        >>> with Recorder("recording", {"attn": 8, "mlp": 8}, metadata={"model": "tiny"}) as recorder:
        ...     for _ in range(5):
        ...         _ = recorder.extend_pass({"attn": torch.randn(100, 8), "mlp": torch.randn(100, 8)})
        >>> Recording("recording").rows
        500

    A shard is complete, checksummed and synced, or it is not taken for one. After a crash, `Recorder(..., resume=True)` goes on behind
    the last whole shard, and `resumed` says how many passes it has. Give it to `capture` in place of a store, or see `record`.

    Leaving the `with` block finishes the lane: from then on a shard that is missing at its end is found. If an error leaves the block, the
    passes before it are written, and the lane is not finished: resume it. So is a recorder that is dropped, or that the end of the program
    finds open; a warning says so if its last passes cannot be written.

    Each recorder writes one lane. Several (threads, processes, ranks) write to one folder if each has a lane of its own. It keeps 1 MiB
    for each component in memory, and at most four passes.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        components: int | Mapping[str, int | tuple[int, object]],
        *,
        dtype: object = "f32",
        lane: str = "lane",
        shard_rows: int = 16_384,
        metadata: Mapping[str, str] | None = None,
        resume: bool = False,
        sync: Literal["each_shard", "at_flush"] = "each_shard",
    ) -> None:
        """Begins a lane in a folder, which is made if it is missing, or goes on with one.

        Args:
            folder: Where the shards go.
            components: As `RingStore` takes them.
            dtype: Element type of the components that have none of their own.
            lane: The lane's name: letters, digits, `-` and `_`.
            shard_rows: Rows after which a shard is written, at the end of the pass.
            metadata: What describes the rows (model, hook names, data set, tokeniser, context length); text.
            resume: Whether to go on with a lane that may have shards.
            sync: When the disk has to have the rows: `"each_shard"` as soon as a shard is written, `"at_flush"` at `flush` and `close`. A crash
                of the machine loses what is not synced.

        Raises:
            ValueError: If a setting cannot be so; if the lane has shards and `resume` is False; if a shard is damaged or has other
                components.
            OSError: If the folder cannot be written.
        """
        self._components = components_of(components, dtype)
        metadata = {str(key): str(value) for key, value in (metadata or {}).items()}
        if sync not in ("each_shard", "at_flush"):
            raise ValueError(f"sync is {sync!r}; it must be 'each_shard' or 'at_flush'")
        rows = count("shard_rows", shard_rows)
        self._lane = _native.Recorder(os.fspath(folder), list(self._components), lane, rows, metadata, resume, sync == "each_shard")
        self._parties, self._values = Parties(), OddValues()
        # Called when the last reference to this goes, and at exit.
        weakref.finalize(self, _close_left_open, self._lane, self._values, os.getpid())

    @property
    def resumed(self) -> Safe:
        """What was safe when this recorder began: do not send so many passes again."""
        return Safe(*self._lane.resumed)

    @property
    def passes(self) -> int:
        """Passes that were handed over, with those before this recorder began. `flush` says how many are safe."""
        return self._lane.passes

    @property
    def component_names(self) -> tuple[str, ...]:
        """The components' names, in order."""
        return tuple(component.name for component in self._components)

    @property
    def n_components(self) -> int:
        """How many components."""
        return len(self._components)

    @property
    def closed(self) -> bool:
        """Whether it was closed. If the disk has failed it is not closed: the next call raises the error."""
        return self._lane.closed

    def extend_pass(self, batches: Mapping[int | str, Any], *, mask: Any = None, copy: bool = True, value: bytes | None = None) -> Future:
        """Hands over the rows of all components that one forward pass gave. Waits while two passes wait for the disk.

        After an error, or Ctrl-C while it waits, nothing of the pass is recorded. Several threads may call it.

        Args:
            batches: As `RingStore.extend_pass` takes them.
            mask: Which rows to keep, of every component.
            copy: False hands the arrays' own memory over; leave them unchanged until the future is done.
            value: Not recorded.

        Returns:
            A future of the rows' arrival in the recorder's memory. They are safe after `flush`.

        Raises:
            ValueError: If a component is missing, is given twice, or has another number of rows.
            StoreClosedError: If the recorder is closed.
            OSError: If the disk has failed: the first error. The recorder takes nothing after it.
            TypeError, IndexError: As `RingStore.extend_pass`.
        """
        rows = incoming_pass(batches, self._lane, mask, copy=copy)
        return Future(self._lane.extend_pass(rows, IfFull.WAIT, None, None, value))

    def flush(self) -> Safe:
        """Writes what was recorded as a shard, even a small one, and waits until the disk has it. After Ctrl-C the disk goes on.

        Raises:
            OSError: The first error of the disk. The recorder takes nothing after it: resume the lane.
            StoreClosedError: If the recorder is closed.
        """
        try:
            return Safe(*self._lane.flush())
        finally:
            self._values.look(self._lane.odd_values())

    def close(self, *, finished: bool = True) -> None:
        """Writes what was recorded, and ends. Does nothing the second time, but waits if Ctrl-C ended the first call.

        Args:
            finished: Whether the lane is finished. False if there should be more passes, but no more come now: resume the lane to go on.

        Raises:
            OSError: As `flush`.
        """
        _close(self._lane, self._values, finished)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes it. After an exception, what was recorded before is kept, and the lane is not finished."""
        self.close(finished=kind is None)

    def __reduce__(self) -> Any:
        raise TypeError("a Recorder cannot be pickled: its thread belongs to this process. Make one in each process, each with a lane of its own")

    def __repr__(self) -> str:
        components = {component.name: component[1:] for component in self._components}
        return f"Recorder({components}, resumed={self.resumed})"


def _close(lane: _native.Recorder, values: OddValues, finished: bool) -> None:
    try:
        lane.close(finished)
    finally:
        values.look(lane.odd_values())


def _close_left_open(lane: _native.Recorder, values: OddValues, process: int) -> None:
    """Keeps what is recorded. The native side would do so, too, but not at the end of the program, and without a word of an error."""
    if os.getpid() != process or lane.closed:
        return  # a forked child has no such thread
    try:
        _close(lane, values, finished=False)
    except Exception as error:  # noqa: BLE001
        warn(f"a recorder was dropped, or the program ended, before it was closed, and its last passes could not be written: {error}")


class Tee:
    """Hands one capture to a store and to a recorder, which share its memory: train and record at the same time.

        >>> import torch
        >>> store, recorder = RingStore({"a": 8}, batch_size=16, window=64), Recorder("both", {"a": 8})
        >>> with recorder, store:
        ...     _ = Tee(store, recorder).extend_pass({"a": torch.randn(40, 8)})
        >>> sum(len(batch) for batch in store), Recording("both").rows
        (40, 40)

    Give it to `capture` in place of a store. If the store or the recorder cannot take a pass, neither takes it. When the store or the
    recorder is closed, the capture stops. If the disk has failed, the next pass is refused with the error, as `flush` and `close` raise it.
    To go on without recording, give `capture` the store alone.

    Several threads may use one Tee. Their passes have the same order in the store's lane and in the recording.
    """

    def __init__(self, store: RingStore[Any] | Producer, recorder: Recorder) -> None:
        """Both need the same components.

        Raises:
            ValueError: If they have others.
        """
        self._lane = _native.TeeLane(store._lane, recorder._lane)  # noqa: SLF001
        self._recorder = recorder  # which ends when nothing refers to it
        self._parties = store._parties  # noqa: SLF001
        self.component_names = recorder.component_names
        """The components' names, in order."""

    @property
    def n_components(self) -> int:
        """How many components."""
        return len(self.component_names)

    @property
    def closed(self) -> bool:
        """Whether the store or the recorder takes no more passes."""
        return self._lane.closed

    def extend_pass(self, batches: Mapping[int | str, Any], *, mask: Any = None, copy: bool = True, timeout: float | None = None) -> Future:
        """Hands over the rows of all components that one forward pass gave. Waits for room as `RingStore.extend_pass` does, and while
        two passes wait for the disk.

        Returns:
            A future that is done when the ring and the recorder both have the pass. If the disk fails after that, `flush` and `close` of the
            recorder raise.

        Raises:
            ValueError, TypeError, IndexError, TimeoutError, StoreFullError: As `RingStore.extend_pass`.
            StoreClosedError: If the store or the recorder is closed, or is closed while this waits.
            OSError: If the recorder's disk has failed, or fails while this waits.

            After each of them, and after Ctrl-C, neither the store nor the recorder has the pass.
        """
        rows = incoming_pass(batches, self._lane, mask, copy=copy)
        return Future(self._lane.extend_pass(rows, IfFull.WAIT, timeout, self._parties.writer_waits("`extend_pass`")))
