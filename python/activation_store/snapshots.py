"""Snapshots: the state of a store between two minibatches."""

from __future__ import annotations

import builtins
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypedDict

from . import _native
from ._rows.warnings import warn


class ResumeAt(NamedTuple):
    """Where a lane of a resumed store goes on.

    Attributes:
        name: The lane's name, if it has one.
        number: 0 for the store's own lane, then in the order in which lanes were opened.
        passes: How many passes you need not send again. Start with the next one. Passes without rows count, too, except those that come
            directly before the next pass with rows: send these again.
        row: How many rows of each component you need not send again. On a lane that writes passes, a pass starts there.
        value: The `value` of the last pass that you need not send again.
        ends_at: The lane had ended before this row: it takes rows up to here, and ends. None if it was open.
    """

    name: str | None
    number: int
    passes: int
    row: int
    value: bytes | None
    ends_at: int | None


_said: set[str] = set()
"""The folders that a warning has named."""


class Snapshots:
    """The snapshots in a folder, where `RingStore.snapshot` puts them.

    A checkpoint of a training run is a pair: your own file for minibatch k, written first, and the snapshot for k. Keep
    the last two pairs, for the newest snapshot may have been damaged after it was written:

        >>> for k in Snapshots("checkpoints").prune(2):
        ...     Path(f"checkpoints/trainer-{k}.pt").unlink()

    Give each run a folder of its own: `RingStore.snapshot` refuses the folder of another run, because `prune` would remove the wrong
    snapshots.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = os.fspath(folder)

    def list(self) -> list[tuple[int, Path]]:
        """Lists all whole snapshots, oldest first: k, the minibatches taken, and the snapshot's folder.

        A snapshot is whole if its state is as it was written, and its files have their lengths. Rows are not read. A folder that does
        not exist has none. A warning names each other folder `snapshot-K`, once, and says why it is not counted.

        Raises:
            OSError: If the folder cannot be listed, or the system cannot read a snapshot.
        """
        whole = [(k, Path(path)) for k, path in _native.list_snapshots(self._folder)]
        self._say_what_is_not_whole()
        return whole

    def not_whole(self) -> builtins.list[tuple[Path, str]]:
        """Lists the folders `snapshot-K` that hold no whole snapshot, and what is wrong with each.

        For example, a copy was interrupted.

        Raises:
            OSError: As `list`.
        """
        return [(Path(path), reason) for path, reason in _native.snapshots_not_whole(self._folder)]

    def resume_at(self) -> builtins.list[ResumeAt]:
        """Where the lanes go on if the newest is resumed.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it cannot be used; names the one before it.
        """
        return [ResumeAt(*place) for place in _native.resume_points(self._folder)]

    def prune(self, keep: int) -> builtins.list[int]:
        """Removes all but the newest `keep` whole snapshots. Returns the k of each snapshot that it has removed.

        A folder `snapshot-K` that holds no whole snapshot is not counted, and stays. A warning names it, once.

        Also removes snapshots that another process has not finished: it was killed. So only one process may save into a
        folder at a time.

        Raises:
            OSError: If the folder cannot be listed, or one cannot be removed. Older ones may have been removed by then.
        """
        removed = _native.prune_snapshots(self._folder, keep)
        self._say_what_is_not_whole()
        return removed

    def _say_what_is_not_whole(self) -> None:
        for path, reason in self.not_whole():
            entry = str(path.absolute())
            if entry not in _said:
                _said.add(entry)
                warn(f"{str(path)!r} has the name of a snapshot and is not counted as one: {reason}")


Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]
"""Where a store goes on from: a folder with snapshots, one snapshot's folder, or what `state_dict` returned."""


class NativeSource(TypedDict):
    """A `Source` as the native side takes it: one of the two."""

    folder: str | None
    snapshot: bytes | None


def native_source(source: Source) -> NativeSource:
    """A `Source` for the native side.

    Raises:
        ValueError: If it is a mapping, but no such state.
    """
    if isinstance(source, Mapping):
        return {"folder": None, "snapshot": snapshot_of(source)}
    return {"folder": os.fspath(source), "snapshot": None}


def state_of(snapshot: bytes) -> dict[str, Any]:
    """A light snapshot as a state dict: text, which any checkpoint format holds."""
    return {"activation_store_snapshot": snapshot.decode()}


def snapshot_of(state: Any) -> bytes:
    """The opposite of `state_of`.

    Raises:
        ValueError: If it is no such state.
    """
    try:
        return bytes(state["activation_store_snapshot"].encode())
    except (KeyError, TypeError, AttributeError):
        raise ValueError("this is not the state of a store; give what state_dict() returned") from None
