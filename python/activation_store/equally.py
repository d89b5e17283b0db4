"""One number of minibatches on all ranks of a data-parallel training."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from ._rows.checks import count
from ._rows.torch import HAS_TORCH, torch
from ._rows.warnings import warn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")

_SLICE = 0.05
"""Seconds of a wait between two looks for Ctrl-C."""
_TEXT = 512
"""Bytes of what a rank that leaves says of its reason."""
_GRACE = 10.0
"""Seconds that a rank which leaves waits for the others to hear its reason."""


def equally(
    batches: Iterable[T], group: ProcessGroup | None = None, *, timeout: float = 300.0, at_once: int = 1
) -> Equally[T]:
    """Serves minibatches on each rank of a group until one rank has no more. Then the loops of all ranks end.

    Ranks that capture texts of their own get different numbers of rows, and a rank that makes a step more than the others waits for ever
    in its `all_reduce`. So before each minibatch the ranks agree that each of them has one::

        for batch in equally(batches):
            train(batch)

    A rank that still has rows when another has none says so in a warning; `left_over` counts the minibatches that it holds. If
    `batches` has a `close` of its own, as a run of `activations` and a generator have, the end of the loop calls it.

    If a rank leaves the loop early, by `break` or by an error, the others raise `RuntimeError` at their next minibatch, which names the rank.
    To tell them the text of an error that the body of the loop raises, use `with equally(batches) as equal:` and loop over `equal`. An error
    that `batches` raises they are told anyway. A rank that is killed ends the others with an error, too. A rank that waits in a collective
    of your own, not here, waits as long as that collective does.

    Args:
        batches: Anything that gives minibatches: a run of `activations`, a `RingStore`, a `Recording`, a generator.
        group: The ranks. Default: all. If they use NCCL, the ranks agree over a group of their own on the CPU (gloo).
        timeout: Seconds to wait for the others: for their slowest minibatch, with their training step.
        at_once: How many minibatches to agree on at once. More cost less, but each rank holds so many. A snapshot of the run counts them as
            taken, so leave it at 1 if you take snapshots.

    Raises:
        RuntimeError: If torch.distributed is not initialised. All ranks of the group must call this.

    torch's own `Join` is for something else: it lets ranks that have run out answer the collectives of DDP, while the others go on. So it
    knows no other collectives, and not why a rank has ended.
    """
    return Equally(batches, group, timeout, count("at_once", at_once))


class Equally(Generic[T]):
    """What `equally` returns: an iterator over minibatches."""

    def __init__(self, batches: Iterable[T], group: ProcessGroup | None, timeout: float, at_once: int) -> None:
        self._source = _Source(batches)
        self._agreed: deque[T] = deque()
        self._at_once = at_once
        self._ranks = _Ranks(group, timeout)
        # Called when the last reference to this goes, and at exit.
        self._leave = weakref.finalize(self, _leave, self._source, self._ranks)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if not self._agreed and not self._ranks.have_ended:
            self._agree()
        if not self._agreed:
            raise StopIteration
        self._ranks.served += 1
        return self._agreed.popleft()

    @property
    def minibatches(self) -> int:
        """Minibatches that were served so far, the same number on all ranks that are not in the middle of a step."""
        return self._ranks.served

    @property
    def left_over(self) -> int:
        """Minibatches that this rank had taken when another had no more: they were not served."""
        return self._source.left_over

    def close(self, error: BaseException | None = None) -> None:
        """Ends the loop here. The others are told, with the error if there is one, unless all have ended."""
        self._ranks.reason = None if error is None else _text(error)
        self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(error)

    def _agree(self) -> None:
        """Takes minibatches as far as all ranks have them.

        Raises:
            RuntimeError: If another rank has left, or died.
            TimeoutError: If the others do not answer in time.
            BaseException: What `batches` raises.
        """
        try:
            taken = self._source.take(self._at_once)
            common, first = self._ranks.fewest(len(taken))
        except BaseException as error:
            self.close(error)
            raise
        self._agreed.extend(taken[:common])
        if common < self._at_once:
            self._ranks.have_ended = True
            self._source.left_over = len(taken) - common
            if (rest := self._source.rest()) is not None:
                warn(f"rank {first} has no more minibatches, so all ranks end after {self._ranks.served + common}. This rank leaves out {rest}")
            self._source.close()


class _Source(Generic[T]):
    """Where the minibatches of this rank come from."""

    def __init__(self, batches: Iterable[T]) -> None:
        self._batches: Iterable[T] | None = batches
        self._iterator: Iterator[T] | None = iter(batches)
        self.left_over = 0

    def take(self, most: int) -> list[T]:
        """Takes minibatches, fewer at the end."""
        taken: list[T] = []
        while len(taken) < most and self._iterator is not None:
            try:
                taken.append(next(self._iterator))
            except StopIteration:
                self._iterator = None
        return taken

    def rest(self) -> str | None:
        """What this rank has that is not served; None if it has nothing."""
        count = getattr(self._batches, "stats", None)
        stats = None if count is None else count()
        rows = max((counts.resident + counts.queued for counts in stats.components.values()), default=0) if stats is not None else 0
        if not self.left_over and not rows:
            return None
        goes_on = "" if self._iterator is None else ", and what its source would still have given"
        return f"{self.left_over} minibatches that it had taken" + (f", {rows} rows that its store holds" if rows else "") + goes_on

    def close(self) -> None:
        """Ends a run or a generator. What has loops of its own, such as a store, stays as it is."""
        batches, self._batches, self._iterator = self._batches, None, None
        if isinstance(batches, Iterator) and hasattr(batches, "close") and iter(batches) is batches:
            batches.close()


class _Ranks:
    """What the ranks tell each other, each time with one number: how many minibatches a rank has, and its own number.

    A rank that leaves sends a negative number, and then its reason. As the others send their next number, they hear it.
    """

    def __init__(self, group: ProcessGroup | None, timeout: float) -> None:
        if not HAS_TORCH or not torch.distributed.is_available() or not torch.distributed.is_initialized():
            raise RuntimeError("equally needs torch.distributed: call torch.distributed.init_process_group on each rank before it")
        self._names = torch.distributed.get_process_group_ranks(group or torch.distributed.group.WORLD)
        self._rank, self._world = torch.distributed.get_rank(group), len(self._names)
        self._timeout = timeout
        self._key = (group or torch.distributed.group.WORLD, timeout)
        self._group = self._own_group(group) if self._world > 1 else None
        self._number = torch.zeros(1, dtype=torch.int64)
        self.have_ended = False
        self.served = 0
        self.reason: str | None = None

    def fewest(self, here: int) -> tuple[int, int]:
        """How many minibatches every rank has, if this rank has so many, and the first rank that has no more."""
        if self._group is None:
            return here, self._names[0]
        self._number[0] = here * self._world + self._rank
        self._wait(self._reduce(self._number, torch.distributed.ReduceOp.MIN))
        found = int(self._number)
        if found >= 0:
            return found // self._world, self._names[found % self._world]
        reasons = torch.zeros(self._world, _TEXT, dtype=torch.uint8)
        self._wait(self._reduce(reasons, torch.distributed.ReduceOp.MAX))
        self.forget()
        left = found + self._world
        raise RuntimeError(f"rank {self._names[left]} left the loop {bytes(reasons[left].tolist()).rstrip(bytes(1)).decode(errors='ignore')}")

    def leave(self) -> None:
        """Tells the others that this rank leaves, and waits a little until they have heard it."""
        if self.have_ended or self._group is None:
            return
        reason = f"after {self.served} minibatches" + (", by `break` or an error" if self.reason is None else f": {self.reason}")
        reasons = torch.zeros(self._world, _TEXT, dtype=torch.uint8)
        text = reason.encode()[:_TEXT]
        reasons[self._rank, : len(text)] = torch.tensor(list(text), dtype=torch.uint8)
        self._number[0] = self._rank - self._world
        self._timeout = min(self._timeout, _GRACE)
        with contextlib.suppress(Exception):  # the others have died, or do not answer
            works = [self._reduce(self._number, torch.distributed.ReduceOp.MIN), self._reduce(reasons, torch.distributed.ReduceOp.MAX)]
            for work in works:
                self._wait(work)
        self.forget()

    def forget(self) -> None:
        """The group cannot be used again: the ranks have not all come to one end."""
        self.have_ended = True
        _groups.pop(self._key, None)

    def _own_group(self, group: ProcessGroup | None) -> Any:
        """A group on the CPU, which nothing else sends to. Made once, and used by later loops."""
        if self._key not in _groups:
            # Its own time-out is longer, so that this one's error says what was waited for.
            limit = timedelta(seconds=self._timeout + 30)
            _groups[self._key] = torch.distributed.new_group(self._names, limit, "gloo", use_local_synchronization=group is not None)
        return _groups[self._key]

    def _reduce(self, tensor: torch.Tensor, how: Any) -> Any:
        return torch.distributed.all_reduce(tensor, how, self._group, async_op=True)

    def _wait(self, work: Any) -> None:
        end = time.monotonic() + self._timeout
        while True:
            try:
                work.wait(timedelta(seconds=_SLICE))
            except RuntimeError as error:
                if work.is_completed():
                    self.forget()
                    others = [name for number, name in enumerate(self._names) if number != self._rank]
                    which = f"rank {others[0]}" if len(others) == 1 else f"one of the ranks {', '.join(map(str, others))}"
                    raise RuntimeError(f"{which} has died, or cannot be reached, after {self.served} minibatches here ({error})") from error
                if time.monotonic() > end:
                    self.forget()
                    raise TimeoutError(
                        f"the other ranks have not come to minibatch {self.served + 1} within {self._timeout:g} s. One of them may hang; "
                        "if its model or its step takes longer, raise timeout"
                    ) from None
            else:
                return


_groups: dict[tuple[Any, float], Any] = {}
"""The groups on the CPU, by the group of the ranks and the time-out."""


def _leave(source: _Source[Any], ranks: _Ranks) -> None:
    """This rank's loop is over: tells the others if theirs are not."""
    ranks.leave()
    source.close()


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
