"""Which epoch of a recording comes next, and one loop over an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._rows.torch import HAS_TORCH, torch
from .loaders import Worker

_WORKERS = 1024
"""Workers that a `DataLoader` may have."""


class Epochs:
    """The number of the coming epoch. The workers of a `DataLoader` share it with the process that started them."""

    def __init__(self) -> None:
        # First the number, then for each worker the loop that it has served to its end.
        self._slots: Any = np.zeros(1, np.int64)
        if HAS_TORCH:
            self._slots = torch.zeros(1 + _WORKERS, dtype=torch.int64)
            self._slots.share_memory_()

    @property
    def coming(self) -> int:
        """The number of the epoch that the next loop serves."""
        return int(self._slots[0])

    @coming.setter
    def coming(self, epoch: int) -> None:
        self._slots[0] = epoch

    def served(self, epoch: int) -> None:
        """A loop has served all of an epoch."""
        if self.coming == epoch:
            self.coming = epoch + 1

    def served_by(self, worker: Worker, loop: int, epoch: int) -> None:
        """A worker has served its part of an epoch. The epoch is served when each worker has said so of the same loop."""
        self._slots[1 + worker.number] = loop
        if bool((self._slots[1 : 1 + worker.workers] == loop).all()):
            self.served(epoch)


@dataclass
class Place:
    """How far a loop over an epoch has come."""

    epoch: int
    served: int
    """Minibatches of this epoch that were served, with those before a resumed loop."""
    has_ended: bool = False
    """Whether the loop was told that the epoch is over."""


def loop_over(place: Place, to_skip: int, length: int, minibatches: Iterator[Any], at_end: Callable[[], None]) -> Iterator[Any]:
    """Serves one epoch, or the rest of it behind so many minibatches, and keeps the place."""
    for _ in range(to_skip):
        next(minibatches)
    for minibatch in minibatches:
        place.served += 1
        if place.served == length:  # a trainer that counts its steps may never ask for the end
            at_end()
        yield minibatch
    place.has_ended = True
    at_end()
