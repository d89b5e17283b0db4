"""The one background thread that watches for what Python awaits without blocking. Started when first needed."""

from __future__ import annotations

import atexit
import os
import threading

from .. import _native

_lock = threading.Lock()
_running: tuple[_native.Watcher, threading.Thread] | None = None


def watcher() -> _native.Watcher:
    """The running watcher."""
    global _running
    if _running is None:
        with _lock:
            if _running is None:
                native = _native.Watcher()
                thread = threading.Thread(target=native.run, name="activation-store-watcher", daemon=True)
                thread.start()
                _running = native, thread
    return _running[0]


@atexit.register
def _stop() -> None:
    """Before the interpreter goes down, the thread must be out of native code."""
    if _running is not None:
        native, thread = _running
        native.stop()
        thread.join(timeout=1)


def _forget() -> None:
    """A forked child has no such thread."""
    global _lock, _running
    _lock = threading.Lock()
    _running = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
