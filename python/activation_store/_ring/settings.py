"""The settings of a ring, for type checkers."""

from __future__ import annotations

from typing import Literal, TypedDict


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
