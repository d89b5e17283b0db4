"""The captures whose hooks are on a model now."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..capture import Capture

_lock = threading.RLock()  # the garbage collector may end a run, with its capture, anywhere
_live: weakref.WeakKeyDictionary[Capture, threading.Thread] = weakref.WeakKeyDictionary()
"""With the threads that entered them."""


def add(capture: Capture) -> None:
    """Notes a capture that is entered on this thread.

    Raises:
        ValueError: If another thread is capturing the same model, or anything captures the same model into the same store.
    """
    here = threading.current_thread()
    with _lock:
        for other, thread in list(_live.items()):
            if other._model is not capture._model or (other.own_thread is not None and capture.own_thread is not None):  # noqa: SLF001
                continue  # what captures one thread's passes alone gets no other's
            is_of_run = other.own_thread is not None or capture.own_thread is not None
            if thread is not here or is_of_run or other._store is capture._store:  # noqa: SLF001
                raise ValueError(
                    f"this model already has a live capture, which would get these passes, too: {other!r}, entered on thread "
                    f"{thread.name!r}. End that one first: close its store, and let its `with` block end"
                )
        _live[capture] = here


def remove(capture: Capture) -> None:
    """Forgets a capture."""
    with _lock:
        _live.pop(capture, None)
