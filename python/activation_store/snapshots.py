"""Snapshots: the state of a store between two minibatches."""

from __future__ import annotations

import builtins
import os
from pathlib import Path
from typing import Any, NamedTuple

from . import _native


class ResumeAt(NamedTuple):
    """Where a lane of a resumed store goes on."""

    name: str | None
    """The lane's name, if it has one."""
    number: int
    """0 for the store's own lane, then in the order in which lanes were opened."""
    passes: int
    """Passes that need not be sent again: start with the one behind them."""
    row: int
    """Rows that need not be sent again, of each component. On a lane that writes passes, the first row of a pass."""
    value: bytes | None
    """The `value` of the last pass that need not be sent."""
    ends_at: int | None
    """The lane had ended before this row: it takes rows up to here, and ends. None if it was open."""


class Snapshots:
    """The snapshots in a folder, where `RingStore.snapshot` puts them.

    A checkpoint of a training run is a pair: your own file for minibatch k, written first, and the snapshot for k. Keep
    the last two pairs, for the newest snapshot may have been damaged after it was written:

        >>> for k in Snapshots("checkpoints").prune(2):
        ...     Path(f"checkpoints/trainer-{k}.pt").unlink()
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = os.fspath(folder)

    def list(self) -> list[tuple[int, Path]]:
        """Those that are complete, oldest first: k, the minibatches taken, and the snapshot's folder.

        Raises:
            OSError: If the folder cannot be listed.
        """
        return [(k, Path(path)) for k, path in _native.list_snapshots(self._folder)]

    def resume_at(self) -> builtins.list[ResumeAt]:
        """Where the lanes go on if the newest is resumed.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it cannot be used; names the one before it.
        """
        return [ResumeAt(*place) for place in _native.resume_points(self._folder)]

    def prune(self, keep: int) -> builtins.list[int]:
        """Removes all but the newest `keep`. Returns the k of those removed.

        Raises:
            OSError: If one cannot be removed.
        """
        return _native.prune_snapshots(self._folder, keep)


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
