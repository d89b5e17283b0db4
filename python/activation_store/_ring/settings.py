"""The settings of a ring: for type checkers, and as the native side takes them."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from .._rows.checks import count, seed_of


class RunSettings(TypedDict, total=False):
    """The settings of `RingStore` that `activations` hands on."""

    seed: int
    ready_frames: int
    queue_rows: int | None
    drop_last: bool
    when_full: Literal["wait", "reject", "drop_oldest"]
    merge: Literal["arrival", "round_robin"]
    allow_overcommit: bool


class RingSettings(RunSettings, total=False):
    """The settings of `RingStore` that do not decide what a minibatch is."""

    batch_size: int
    window: int
    dtype: object
    max_skew: int | None


def native_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as the native side takes them. None is the default of some.

    Raises:
        TypeError, ValueError: If one cannot be so.
    """
    return {name: _checked(name, value) for name, value in settings.items() if value is not None or name not in ("queue_rows", "max_skew")}


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that are not None, as the native side takes them."""
    return native_settings({name: value for name, value in settings.items() if value is not None})


def _checked(name: str, value: Any) -> Any:
    if name in ("batch_size", "window", "ready_frames", "queue_rows", "max_skew"):
        return count(name, value)
    return seed_of(value) if name == "seed" else value
