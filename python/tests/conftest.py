"""What several test files use."""

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from activation_store import RingStore


def drain(store: RingStore) -> np.ndarray[Any, Any]:
    """Closes the store and returns the rows it still serves, sorted by their first feature."""
    store.close()
    batches = [np.asarray(batch, dtype=np.float32) for batch in store]
    rows = np.concatenate(batches) if batches else np.empty((0, 1), np.float32)
    return rows[np.argsort(rows[:, 0], kind="stable")]


def numbered(rows: int, features: int, first: int = 0) -> np.ndarray[Any, Any]:
    """Rows that can be told apart: row r holds r, r + 1/features, ..."""
    return (np.arange(first, first + rows)[:, None] + np.arange(features)[None] / features).astype(np.float32)


def run(code: str, *, torch: bool = False, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs code in an interpreter of its own; the test fails if it does not end in time."""
    head = "import numpy as np, os, signal, sys, threading, time\n"
    if torch:
        head += "import torch\ntorch.set_num_threads(1)\n"
    else:
        head += "sys.modules['torch'] = None\n"  # it takes seconds to import
    # Ctrl-C is ignored in what a shell runs in the background.
    head += "signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom activation_store import *\n"
    command = [sys.executable, "-W", "ignore", "-c", head + textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture
def in_thread() -> Iterator[Callable[[Callable[[], Any]], threading.Thread]]:
    """Runs functions on threads; the test fails if one raises or does not end."""
    threads: list[threading.Thread] = []
    errors: list[BaseException] = []

    def start(function: Callable[[], Any]) -> threading.Thread:
        def run() -> None:
            try:
                function()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        threads.append(thread)
        thread.start()
        return thread

    yield start
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive(), "a thread did not end"
    if errors:
        raise errors[0]
