"""Warnings that point at the user's code."""

from __future__ import annotations

import contextlib
import sys
import warnings

_PACKAGE = __name__.partition(".")[0]


def warn(message: str) -> None:
    """Warns, at the nearest caller outside this package; never raises, also where warnings are errors."""
    with contextlib.suppress(Warning):
        warnings.warn(message, RuntimeWarning, stacklevel=_outside() + 1)


def _outside() -> int:
    """How many frames above the caller of this the nearest one outside this package is."""
    level, frame = 0, sys._getframe(1)  # noqa: SLF001
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    return level
