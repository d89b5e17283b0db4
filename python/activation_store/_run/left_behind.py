"""Runs that no code can reach any more, because only a traceback keeps them."""

from __future__ import annotations

import gc
import sys
import types
import weakref
from collections.abc import Sequence
from typing import Any, Protocol


class Closable(Protocol):
    """The iterator of a run."""

    def close(self) -> None:
        """Ends the run."""


def end_left_behind(runs: Sequence[weakref.ref[Any]]) -> bool:
    """Ends the runs among these that no code can reach. Whether there were any.

    A notebook keeps the traceback of the last error, with the frames that it went through and all of their names. So the run
    of a cell that failed, or was interrupted, in a function would go on beside the run of the cell that is executed again.
    """
    ended = False
    for ref in runs:
        if _is_left_behind(ref):
            iterator: Closable | None = ref()
            if iterator is not None:
                iterator.close()
                ended = True
    return ended


def _is_left_behind(ref: weakref.ref[Any]) -> bool:
    """Whether only frames that have ended refer to it. A frame that still runs holds it, too, but is not seen as its referrer."""
    running = _running_frames()
    holders = gc.get_referrers(ref())
    # A frame whose names a debugger or a notebook has looked at holds them a second time, in a dict of its own.
    ended = [holder for holder in holders if _has_ended(holder, running) or (type(holder) is dict and any(_has_ended(each, running) for each in gc.get_referrers(holder)))]
    return 0 < len(ended) == len(holders) == _references(ref)


def _has_ended(thing: Any, running: set[int]) -> bool:
    return isinstance(thing, types.FrameType) and id(thing) not in running


def _running_frames() -> set[int]:
    found: set[int] = set()
    for frame in sys._current_frames().values():  # noqa: SLF001
        each: types.FrameType | None = frame
        while each is not None:
            found.add(id(each))
            each = each.f_back
    return found


def _references(ref: weakref.ref[Any]) -> int:
    """How many references there are to it."""
    return _count(ref) - _OVERHEAD


def _count(ref: weakref.ref[Any]) -> int:
    return sys.getrefcount(ref())


class _Held:
    """Something with one reference."""


_held = [_Held()]
_OVERHEAD = _count(weakref.ref(_held[0])) - 1
"""The references that counting itself makes."""
