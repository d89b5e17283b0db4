"""Stores and recordings under a `torch.utils.data.DataLoader`: its workers, and what it takes a length for."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from .._rows.torch import HAS_TORCH, IterableDataset, torch

BatchT_co = TypeVar("BatchT_co", covariant=True)


class Worker(NamedTuple):
    """A worker process of a `DataLoader`, seen from inside."""

    number: int
    workers: int
    """How many workers the loader has."""
    seed: int
    """A number that all workers of one loader share."""


def worker() -> Worker | None:
    """The worker that this process is; None in any other process."""
    info = torch.utils.data.get_worker_info() if HAS_TORCH else None
    return None if info is None else Worker(info.id, info.num_workers, info.seed - info.id)


def refuse_worker(what: str) -> None:
    """Refuses what only the process that made it can serve.

    Raises:
        RuntimeError: In a worker.
    """
    if worker() is not None:
        raise RuntimeError(f"{what} belongs to the process that made it, and a DataLoader's worker cannot serve it: use num_workers=0")


def asked_by_loader() -> bool:
    """Whether a `DataLoader`, or what is built on it, called the caller of this."""
    name = str(sys._getframe(2).f_globals.get("__name__", ""))  # noqa: SLF001
    return name.startswith(("torch.utils.data.", "torchdata."))


class Source(Protocol[BatchT_co]):
    """A ring."""

    def __iter__(self) -> Iterator[BatchT_co]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


class Minibatches(IterableDataset[BatchT_co]):
    """The minibatches of a ring as a `torch.utils.data.IterableDataset` that has no length."""

    def __init__(self, store: Source[BatchT_co]) -> None:
        self._store = store

    def __iter__(self) -> Iterator[BatchT_co]:
        return iter(self._store)

    def state_dict(self) -> dict[str, Any]:
        """As `RingStore.state_dict`."""
        return self._store.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `RingStore.load_state_dict`."""
        self._store.load_state_dict(state)
