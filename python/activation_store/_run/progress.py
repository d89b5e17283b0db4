"""One line that shows how a run gets on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .. import _native
    from .opening import Opening

_INTERVAL = 0.2
"""Seconds between two looks at the counts."""


def line_of(batches: Iterable[Any]) -> Any:
    """A line of tqdm that counts passes, one for each batch.

    Raises:
        ImportError: If tqdm is not installed.
    """
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise ImportError("progress=True needs tqdm; install it, or use progress=False") from None
    try:
        total = len(batches)  # type: ignore[arg-type]
    except TypeError:
        total = None
    return tqdm(total=total, unit="pass", dynamic_ncols=True)


class Progress:
    """A line of tqdm: passes, rows per second, how full the ring is, and who waits for whom."""

    def __init__(self, batches: Iterable[Any], *, in_turns: bool = False) -> None:
        self._line = line_of(batches)
        self._in_turns = in_turns
        self._lock = threading.RLock()  # the garbage collector may end a run anywhere
        self._seen: _native.Stats | None = None
        self._seen_at = time.monotonic()

    def passed(self, opening: Opening) -> None:
        """Counts a forward pass."""
        with self._lock:
            self._look(opening)
            self._line.update()

    def close(self, opening: Opening) -> None:
        """Leaves the line as it is at the end."""
        with self._lock:
            self._look(opening, interval=0)
            self._line.close()

    def _look(self, opening: Opening, interval: float = _INTERVAL) -> None:
        now = time.monotonic()
        if now - self._seen_at < interval:
            return
        stats, window = opening.stats(), opening.window
        if stats is not None and window:
            self._line.set_postfix_str(describe(self._seen, stats, now - self._seen_at, window, in_turns=self._in_turns), refresh=False)
        self._seen, self._seen_at = stats, now


class NoProgress:
    """Shows nothing."""

    def passed(self, opening: Opening) -> None:
        """Shows nothing."""

    def close(self, opening: Opening) -> None:
        """Has nothing to close."""


def describe(before: _native.Stats | None, now: _native.Stats, seconds: float, window: int, *, in_turns: bool = False) -> str:
    """What happened between two looks: rows per second, how full the ring is, and who waits for whom, unless they take turns."""
    rows = _first(now).accepted - (0 if before is None else _first(before).accepted)
    model = now.waited_for_consumers - (0.0 if before is None else before.waited_for_consumers)
    trainer = now.waited_for_producers - (0.0 if before is None else before.waited_for_producers)
    waits = ", the model and the loop take turns" if in_turns else "" if model == trainer else ", the model waits for the trainer" if model > trainer else ", the trainer waits for the model"
    return f"{_short(rows / max(seconds, 1e-9))} rows/s, ring {_first(now).resident / window:.0%} full{waits}"


def _first(stats: _native.Stats) -> _native.ComponentStats:
    return next(iter(stats.components.values()))


def _short(number: float) -> str:
    for size, unit in ((1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"
