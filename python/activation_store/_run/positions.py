"""Where each replica of a resumed run goes on."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from .. import _native
from ..snapshots import ResumeAt, Source, native_source

_VALUE = struct.Struct("<QQ")
"""What a pass carries: the index of its batch, and how many passes of that batch there have been with it."""


class Position(NamedTuple):
    """Where a replica starts."""

    batch: int
    """The index of its first batch."""
    passes: int
    """How many passes of that batch the store has already."""


def lane_name(replica: int) -> str:
    """The name of a replica's lane."""
    return f"replica {replica}"


def value_of(batch: int, passes: int) -> bytes:
    """What a pass carries."""
    return _VALUE.pack(batch, passes)


def first_positions(replicas: int) -> list[Position | None]:
    """Where the replicas of a new run start."""
    return [Position(replica, 0) for replica in range(replicas)]


def resumed_positions(source: Source, replicas: int) -> list[Position | None]:
    """Where the replicas of a resumed run start. None for a replica that had ended.

    Raises:
        ValueError: If the snapshot cannot be used, or is of a run with another number of replicas.
    """
    places = _native.resume_points(**native_source(source))
    by_name = {place.name: place for place in (ResumeAt(*place) for place in places)}
    names = {lane_name(replica) for replica in range(replicas)}
    unknown = [name for name in by_name if name not in names]
    if unknown:
        raise ValueError(f"the snapshot has {_names(unknown)}, and this run has {replicas} replicas: give as many models as before")
    return [_position(by_name.get(lane_name(replica)), replica) for replica in range(replicas)]


def _position(place: ResumeAt | None, replica: int) -> Position | None:
    if place is None:
        return None
    if place.value is None:
        return Position(replica, 0)
    return Position(*_VALUE.unpack(place.value))


def _names(names: Sequence[str | None]) -> str:
    return ", ".join("the store's own lane" if name is None else f"a lane {name!r}" for name in names)
