"""Holds the forward passes of a run while the caller needs the model, or its memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Gate:
    """Lets forward passes through, and none while it is held."""

    def __init__(self) -> None:
        # Its lock may be taken twice by one thread: the garbage collector may end a run anywhere.
        self._changed = threading.Condition()
        self._waiting = self._under_way = 0
        self._owed = 0
        """Passes that waited when it was let go. They are let through before it is held again, so that they do run."""
        self._holders: list[int] = []
        """The threads that hold it."""
        self._has_ended = False

    @contextlib.contextmanager
    def passing(self) -> Iterator[bool]:
        """A forward pass is under way while the context lasts, unless this gives False: then the run has ended.

        Raises:
            RuntimeError: If this thread holds the gate: it would wait for itself.
        """
        with self._changed:
            self.check()
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._holders or self._has_ended)
            finally:
                self._waiting -= 1
                self._owed = max(0, self._owed - 1)
            may_run = not self._has_ended
            self._under_way += may_run
        try:
            yield may_run
        finally:
            with self._changed:
                self._under_way -= may_run
                self._changed.notify_all()

    def check(self) -> None:
        """Checks that this thread may run a pass.

        Raises:
            RuntimeError: If it holds the gate: it would wait for itself.
        """
        with self._changed:
            if threading.get_ident() in self._holders and not self._has_ended:
                raise RuntimeError("this thread holds the run with `paused()`, so a forward pass here would wait for ever; leave the block first")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No forward pass is under way while the context lasts. Waits for those that are."""
        here = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: not self._owed or self._holders or self._has_ended)
            self._holders.append(here)
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._under_way)
            yield
        finally:
            with self._changed:
                self._holders.remove(here)
                if not self._holders:
                    self._owed = self._waiting
                self._changed.notify_all()

    def end(self) -> None:
        """Lets no more passes through, and none wait."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()
