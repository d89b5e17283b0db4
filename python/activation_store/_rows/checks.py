"""Checks of numbers that the native side could not even take."""

from __future__ import annotations

import operator

import numpy as np


def count(what: str, value: object) -> int:
    """A number of things, at least one. Floats will do where they are whole, such as `3e4`."""
    number = _whole(what, value)
    if number < 1:
        raise ValueError(f"{what} is {value!r}; it must be at least 1")
    if number >= 2**63:
        raise ValueError(f"{what} is {value!r}; it must be less than 2**63")
    return number


def seed_of(seed: object) -> int:
    """A seed of the native side's."""
    number = _whole("seed", seed)
    if not 0 <= number < 2**64:
        raise ValueError(f"seed is {seed!r}; it must be at least 0 and less than 2**64")
    return number


def _whole(what: str, value: object) -> int:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what} is {value!r}; it must be a whole number") from None
