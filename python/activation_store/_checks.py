"""Checks of arguments."""

from __future__ import annotations

import operator
from typing import Any


def positive(what: str, value: Any) -> int:
    """Checks a size."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} is {value!r}; it must be a whole number") from None
    if number < 1:
        raise ValueError(f"{what} is {number}; it must be at least 1")
    if number >= 2**63:
        raise ValueError(f"{what} is {number}; it must be less than 2**63")
    return number


def seed_of(seed: Any) -> int:
    """Checks a seed."""
    try:
        return operator.index(seed) % 2**64
    except TypeError:
        raise TypeError(f"seed is {seed!r}; it must be a whole number") from None
