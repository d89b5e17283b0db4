"""The runs of models that are under way now: one for each model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._loop_run import LoopRun
    from ._run import Run

_lock = threading.RLock()  # the garbage collector may begin or end a run anywhere
_live: weakref.WeakSet[Run | LoopRun] = weakref.WeakSet()


def take_place(run: Run | LoopRun, models: Sequence[Any]) -> bool:
    """Notes a run of these models, and ends those that run one of them. Whether there were any."""
    with _lock:
        others = [other for other in _live if other.runs(models)]
        _live.add(run)
    for other in others:
        other.stop()
    return bool(others)
