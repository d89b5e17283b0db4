"""What a ring store counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ComponentStats:
    """The rows of one component. At every moment, `accepted == resident + served + dropped`."""

    accepted: int
    """Rows the store has taken."""
    queued: int
    """Rows handed over that the store has not taken yet."""
    resident: int
    """Rows the store holds."""
    served: int
    """Rows handed out in minibatches."""
    dropped: int
    """Rows given up: by `empty`, `abort`, `drop_last`, `when_full="drop_oldest"`, or for want of another component."""


@dataclass(frozen=True)
class Stats:
    """A consistent picture of a `RingStore`. Times are in seconds."""

    components: dict[str, ComponentStats]
    minibatches_served: int
    producer_wait: float
    """How long rows waited because the minibatches that were ready had not been taken."""
    consumer_wait: float
    """How long consumers waited for a minibatch."""
    frames_open: int
    """Minibatches being filled."""
    frames_ready: int
    """Full minibatches that nobody has taken yet."""
    frames_lent: int
    """Minibatches with consumers."""
