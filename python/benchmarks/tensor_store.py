"""Rows out of a filled store, and the cost of one call, against torch on a tensor of the same rows.

    python benchmarks/tensor_store.py [--quick] [--features 768] [--rows 65536 262144]

The store and torch take turns, and each ratio is the median of the rounds' own ratios. Prints the tables of docs/python.md.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch

from activation_store import RingStore, TensorActivationStore

PICKED = 1024
"""Rows of an index."""
BATCH = 4096
"""Rows of a slice, and of a batch of the DataLoader."""


PIECE = 20
"""Calls that are timed together."""


def seconds(work: Callable[[], Any], times: int) -> float:
    """Seconds of a call: the median over pieces of a few, which are short enough to lie between two interruptions."""
    pieces = []
    for _ in range(times // PIECE):
        start = time.perf_counter()
        for _ in range(PIECE):
            work()
        pieces.append((time.perf_counter() - start) / PIECE)
    return statistics.median(pieces)


def in_turns(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> tuple[float, float, float]:
    """Medians of both, and of the rounds' own ratios. One round more comes first, and is not counted."""
    pairs = [(ours(), theirs()) for _ in range(rounds + 1)][1:]
    return (
        statistics.median(our for our, _ in pairs),
        statistics.median(their for _, their in pairs),
        statistics.median(our / their for our, their in pairs),
    )


def verdict(ratio: float, least: float | None = None, most: float | None = None) -> str:
    if least is not None:
        return f"at least {least}, {'reached' if ratio >= least else 'missed'}"
    return f"at most {most}, {'reached' if ratio <= (most or 0) else 'missed'}"


def filled(rows: int, features: int) -> tuple[TensorActivationStore, torch.Tensor]:
    """A store and a tensor of the same rows."""
    tensor = torch.randn(rows, 1, features)
    store = TensorActivationStore(rows, features, 1, seed=1)
    store.extend(tensor[:, 0])
    return store, tensor


def indices(args: argparse.Namespace) -> None:
    """`store[indices]` against `tensor[indices]`."""
    print(f"| `store[indices]`, {PICKED:,} random rows of {args.features} | rows in the store | store, ms | torch, ms | store / torch | wanted |")
    print("|---|---|---|---|---|---|")
    for rows in args.rows:
        store, tensor = filled(rows, args.features)
        picked = torch.randint(rows, (64, PICKED))
        for name, kinds in {
            "a tensor": list(picked),
            "a list": [row.tolist() for row in picked],
            "a numpy array": [row.numpy() for row in picked],
        }.items():

            def run(source: Any, kinds: list[Any] = kinds) -> float:
                start = time.perf_counter()
                for kind in kinds:
                    source[kind]
                return (time.perf_counter() - start) / len(kinds)

            ours, theirs, ratio = in_turns(partial(run, store), partial(run, tensor), args.rounds)
            print(f"| {name} | {rows:,} | {ours * 1e3:.2f} | {theirs * 1e3:.2f} | {ratio:.2f} | {verdict(ratio, most=3)} |")
        del store, tensor
    print()


def epochs(args: argparse.Namespace) -> None:
    """Every row once in shuffled order, against `tensor[torch.randperm(rows)]`."""
    rows = args.rows[0]
    store, tensor = filled(rows, args.features)

    def drain(batches: Iterable[Any]) -> float:
        start = time.perf_counter()
        for _ in batches:
            pass
        return rows / (time.perf_counter() - start)

    def permuted() -> float:
        start = time.perf_counter()
        tensor[torch.randperm(rows)]
        return rows / (time.perf_counter() - start)

    def shuffled(batches: Callable[[], Iterable[Any]]) -> float:
        store.shuffle()
        return drain(batches())

    print(f"| every row of {rows:,} x {args.features} once, shuffled | store, rows/s | `x[randperm]`, rows/s | store / torch | wanted |")
    print("|---|---|---|---|---|")
    for name, batches, least in (
        (f"`store.batches({BATCH})`", lambda: store.batches(BATCH), None),
        (f"`store[a : a + {BATCH}]`", lambda: (store[at : at + BATCH] for at in range(0, rows, BATCH)), 1.0),
        (f"`DataLoader(store, batch_size={BATCH})`", lambda: torch.utils.data.DataLoader(store, batch_size=BATCH), 0.5),
        ("`store[row]`", lambda: (store[row] for row in range(rows)), 0.2),
    ):
        ours, theirs, ratio = in_turns(lambda: shuffled(batches), permuted, args.rounds)  # noqa: B023
        wanted = "" if least is None else verdict(ratio, least=least)
        print(f"| {name} | {ours:,.0f} | {theirs:,.0f} | {ratio:.2f} | {wanted} |")
    print()


def calls(args: argparse.Namespace) -> None:
    """One small write against the assignment of the same rows to a slice of a tensor."""
    times = 2000
    print(f"| one call, rows of {args.features} | store, us | torch, us | store / torch | wanted |")
    print("|---|---|---|---|---|")
    tensor = torch.zeros(8 * times, args.features)
    some, one = torch.randn(8, args.features), torch.randn(args.features)
    for name, rows, most in (("extend of 8 rows", some, 1.5), ("append", one, 4.0)):
        count = 8 if rows is some else 1

        def assigned(rows: torch.Tensor = rows, count: int = count) -> float:
            at = 0

            def assign() -> None:
                nonlocal at
                tensor[at : at + count] = rows
                at += count

            return seconds(assign, times)

        def written(store: Any, rows: torch.Tensor = rows, count: int = count) -> float:
            write = store.extend if count > 1 else store.append
            return seconds(lambda: write(rows, 0), times)

        def into_tensor_store() -> float:
            kept.empty()  # noqa: B023
            return written(kept)  # noqa: B023

        def into_ring() -> float:
            # What one round writes, the time between two rounds takes out, so that memory is not new and no call waits.
            with contextlib.suppress(TimeoutError):
                while True:
                    ring.next(timeout=0)  # noqa: B023
            taken = written(ring)  # noqa: B023
            ring.flush()  # noqa: B023
            return taken

        # Half the window fills before the first minibatch is ready; then there is a minibatch for each 1,024 rows.
        ring = RingStore(args.features, batch_size=1024, window=16 * times, queue_rows=16 * times, ready_frames=32)
        written(ring)
        into_ring()
        kept = TensorActivationStore(8 * times, args.features, 1)
        for kind, ours_of in (("TensorActivationStore", into_tensor_store), ("RingStore", into_ring)):
            ours, theirs, ratio = in_turns(ours_of, assigned, args.rounds)
            print(f"| {kind}: {name} | {ours * 1e6:.1f} | {theirs * 1e6:.1f} | {ratio:.2f} | {verdict(ratio, most=most)} |")
        ring.abort()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--rows", type=int, nargs="+", default=[65_536, 1_048_576], help="of the stores")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.rounds = args.rows[:1], 3
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"torch uses {args.threads} threads; {args.rounds} rounds\n")
    np.random.seed(0)
    for table in (indices, epochs, calls):
        table(args)


if __name__ == "__main__":
    main()
