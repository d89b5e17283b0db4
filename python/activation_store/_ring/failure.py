"""The error that a store was closed with."""

from __future__ import annotations

import threading
from types import TracebackType


class Failure:
    """Keeps the first error that a store is closed with, and its traceback, for every loop to raise.

    Kept here, where the garbage collector sees it: the error's traceback may lead back to the store.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None

    def note(self, error: BaseException) -> None:
        """Keeps an error, if it is the first.

        Raises:
            TypeError: If it is no exception.
        """
        if not isinstance(error, BaseException):
            raise TypeError(f"error is {error!r}; it must be an exception, such as the one that `except Exception as error` gives")
        if isinstance(error, StopIteration | StopAsyncIteration):
            error = _as_error(error)
        with self._lock:
            if self._error is None:
                self._error, self._traceback = error, error.__traceback__

    def error(self) -> BaseException:
        """The error, with its own traceback and no other loop's."""
        error = self._error
        assert error is not None
        return error.with_traceback(self._traceback)


def _as_error(end: StopIteration | StopAsyncIteration) -> RuntimeError:
    """What is raised for the end of an iterator, which would end the loop as if all were well."""
    error = RuntimeError(f"{type(end).__name__} was raised where no iterator ends")
    error.__cause__ = end
    return error.with_traceback(end.__traceback__)
