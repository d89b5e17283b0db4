"""The threads that write to a ring and those that take from it: a wait that nothing can end says what is missing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

from .._rows.odd_values import OddValues
from .._rows.warnings import warn

AFTER = 10.0
"""Seconds after which a wait looks for what is missing."""

Notice: TypeAlias = tuple[float, Callable[[], None]]
"""What a native wait calls, time and again after so many seconds."""


class Parties:
    """The threads that have written to a ring and those that have asked it for minibatches."""

    def __init__(self) -> None:
        self._writers, self._readers = _Threads(), _Threads()
        self._expects_reader = self._has_said = self._has_said_nothing = False
        self.values = OddValues()
        self._notices: dict[str, Notice] = {}
        self.note_writer = self._writers.note
        self.note_reader = self._readers.note

    def expect_reader(self) -> None:
        """A consumer is there, although it may not have asked yet."""
        self._expects_reader = True

    def writer_waits(self, what: str) -> Notice:
        """The notice of a call of this name that waits for room on this thread."""
        self._writers.note()
        notice = self._notices.get(what)
        if notice is None:
            notice = self._notices[what] = (AFTER, lambda: self._say(what, self._missing_reader()))
        return notice

    def flush_waits(self) -> Notice:
        """The notice of a flush that waits on this thread."""
        return AFTER, lambda: self._say("`flush`", self._missing_reader())

    def note_end(self, only_dropped: int) -> None:
        """A loop over the ring has ended. Says, once, if no loop had any row because `drop_last` has dropped so many."""
        if only_dropped and not self._has_said_nothing:
            self._has_said_nothing = True
            warn(f"a loop over the store serves nothing: the store had {only_dropped} rows, fewer than a minibatch has, and drop_last=True drops them. "
                 "Use a smaller batch_size, or drop_last=False")  # fmt: skip

    def look_for_writer(self, what: str, is_task: bool = False, missing_lane: str | None = None) -> None:
        """Says what is missing where a loop over the ring waits for minibatches on this thread, or in a task of it.

        In a ring that is closed no loop waits for long. `missing_lane` is what the native consumer says of a lane that a resumed ring
        waits for, and comes before what the threads tell.
        """
        self._say(what, missing_lane or self._missing_writer(is_task))

    def _missing_reader(self) -> str | None:
        if not self._readers.known:
            if self._expects_reader:
                return None
            return (
                "no consumer has ever asked for a minibatch, so the store is full and stays full. Fill and iterate at the same time, "
                "on two threads"
            )
        if self._readers.any_left():
            return None
        return (
            "no consumer is left: the threads that asked for minibatches have ended, or are this one, which waits. "
            "Iterate on another thread, or close the store"
        )

    def _missing_writer(self, is_task: bool) -> str | None:
        if not self._writers.known:
            return "nothing has ever been written to the store. Write on another thread, or close the store"
        if self._writers.any_left(and_this=is_task):
            return None
        return (
            "no producer is left and the store is not closed: the threads that wrote have ended, or are this one, which waits. "
            "Call close() after the last row"
        )

    def _say(self, what: str, missing: str | None) -> None:
        """Warns, once for each store."""
        if missing is not None and not self._has_said:
            self._has_said = True
            warn(f"{what} has waited {AFTER:g} s: {missing}")


class _Threads:
    """Threads that have done something."""

    def __init__(self) -> None:
        self._here = threading.local()
        self._threads: list[threading.Thread] = []

    def note(self) -> None:
        """This thread does it."""
        if not hasattr(self._here, "is_noted"):
            self._here.is_noted = True
            self._threads = [thread for thread in self._threads if thread.is_alive()] + [threading.current_thread()]

    @property
    def known(self) -> bool:
        """Whether any thread has ever done it."""
        return bool(self._threads)

    def any_left(self, and_this: bool = False) -> bool:
        """Whether a thread that did it is alive, other than this one unless it counts too."""
        here = None if and_this else threading.current_thread()
        return any(thread is not here and thread.is_alive() for thread in self._threads)
