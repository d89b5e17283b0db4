"""Rows per second in and out from Python, against the crate alone, two torch copies, and what others do.

    pip install --no-deps -r benchmarks/requirements.txt
    python benchmarks/pipeline.py [--quick] [--features 768] [--window 262144] [--batch 4096] [--feeds 4096 32768]

Every kind is fed batches of several sizes, for what a buffer costs may depend on it; minibatches are of one size. All in one
run and interleaved, so that the ratios hold where the rates do not: each ratio is computed from the medians in its table. What other
programs did meanwhile is shown. Copying in takes a core of its own, which the crate alone does not need. Prints the tables of
docs/python.md, and writes `target/python_pipeline.json`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from peers import PEERS

from activation_store import RingStore

ROOT = Path(__file__).resolve().parents[2]


def ours(args: argparse.Namespace, feed: int, *, copy: bool = True) -> float:
    """A thread extends the store, this one drains it; both all the time."""
    store = RingStore(args.features, batch_size=args.batch, window=args.window)
    sources = sources_of(feed, args)
    stop = threading.Event()

    def capture() -> None:
        number = 0
        while not stop.is_set():
            store.extend(sources[number % 8], copy=copy)
            number += 1
        store.close()

    thread = threading.Thread(target=capture)
    thread.start()
    rate = drain(store, args)
    stop.set()
    for _ in store:
        pass
    thread.join()
    return rate


def drain(minibatches: Iterator[torch.Tensor], args: argparse.Namespace) -> float:
    """Rows per second, after as many minibatches as fill the window."""
    for _ in range(args.window // args.batch):
        next(minibatches)
    rows, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < args.seconds:
        rows += len(next(minibatches))
    return rows / elapsed


def peer(name: str, args: argparse.Namespace, feed: int) -> float:
    """Capture and training take turns. Counted over whole rounds of filling and serving, as far as the time goes."""
    sources = sources_of(feed, args)
    number = 0

    def source() -> torch.Tensor:
        nonlocal number
        number += 1
        return sources[number % 8]

    minibatches = PEERS[name](source, args.window, args.batch)
    next(minibatches)
    start_in, rows, start = number, 0, time.perf_counter()
    while True:
        rows += len(next(minibatches))
        elapsed = time.perf_counter() - start
        # At least one refill must be in it.
        if elapsed > args.seconds and number > start_in:
            return min(rows, (number - start_in) * feed) / elapsed


def two_copies(args: argparse.Namespace, feed: int) -> float:
    """A torch copy in and a torch copy out: the least that a buffer made of tensors does."""
    sources = sources_of(feed, args)
    ring, out = torch.zeros(args.window, args.features), torch.zeros(feed, args.features)
    blocks, number, start = args.window // feed, 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < args.seconds:
        at, behind = number % blocks, (number + 1) % blocks
        ring[at * feed : (at + 1) * feed].copy_(sources[number % 8])
        out.copy_(ring[behind * feed : (behind + 1) * feed])
        number += 1
    return number * feed / elapsed


def crate_alone(args: argparse.Namespace, feed: int, seconds: float | None = None) -> float:
    """The crate, without Python."""
    command = ["cargo", "run", "-q", "--release", "-p", "crate_alone", "--"]
    numbers = [str(max(1, round(seconds or args.seconds))), str(args.window), str(feed), str(args.batch), str(args.features)]
    return float(subprocess.run([*command, *numbers], cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def sources_of(feed: int, args: argparse.Namespace) -> list[torch.Tensor]:
    """Batches that are handed over in turn."""
    return [torch.randn(feed, args.features) for _ in range(8)]


def busy() -> float:
    """Seconds that all programs have kept the CPUs busy; 0 where that cannot be told."""
    try:
        times = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except OSError:
        return 0.0
    return (sum(times) - times[3] - times[4]) / os.sysconf("SC_CLK_TCK")


def own() -> float:
    """Seconds of it that are this program's."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def disturbed(measure: Callable[[], float]) -> tuple[float, float]:
    """What it measures, and how many CPUs other programs used meanwhile."""
    before, mine, start = busy(), own(), time.perf_counter()
    rate = measure()
    others = (busy() - before - (own() - mine)) / (time.perf_counter() - start)
    return rate, max(0.0, others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--window", type=int, default=262_144)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--feeds", type=int, nargs="+", default=[4096, 32_768], help="rows of a batch that is handed over")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = 2, 1
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)

    crate_alone(args, args.feeds[0], 1)  # builds it
    kinds: dict[str, Callable[[int], float]] = {
        "the crate alone": lambda feed: crate_alone(args, feed),
        "from Python": lambda feed: ours(args, feed),
        "from Python, `copy=False`": lambda feed: ours(args, feed, copy=False),
        "two torch copies": lambda feed: two_copies(args, feed),
        **{name: functools.partial(peer, name, args) for name in PEERS},
    }
    rates: dict[int, dict[str, list[float]]] = {feed: {name: [] for name in kinds} for feed in args.feeds}
    others: dict[int, dict[str, list[float]]] = {feed: {name: [] for name in kinds} for feed in args.feeds}
    for _ in range(args.rounds):
        for feed in args.feeds:
            for name, measure in kinds.items():
                rate, other = disturbed(lambda: measure(feed))  # noqa: B023
                rates[feed][name].append(rate)
                others[feed][name].append(other)
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)

    def ratio(name: str, feed: int) -> float:
        return statistics.median(rates[feed]["from Python"]) / statistics.median(rates[feed][name])

    threads = f"torch uses {args.threads} threads; {args.rounds} rounds"
    print(f"d = {args.features}, f32, window {args.window:,}, minibatches of {args.batch:,}; {threads}; medians, least to most\n")
    for feed in args.feeds:
        print(f"| fed {feed:,} rows at a time | rows/s (least to most) | from Python is | CPUs that others used |")
        print("|---|---|---|---|")
        for name, values in rates[feed].items():
            spread = f"{thousands(statistics.median(values))} ({thousands(min(values))} to {thousands(max(values))})"
            factor = "" if name == "from Python" else f"{ratio(name, feed):.2f} x"
            print(f"| {name} | {spread} | {factor} | {max(others[feed][name]):.1f} |")
        print()
    for name, least in [("the crate alone", 0.7), ("two torch copies", 1.0), *((name, 5.0) for name in PEERS)]:
        lowest = min(ratio(name, feed) for feed in args.feeds)
        print(f"{'reached' if lowest >= least else 'missed '}  at least {least} x {name}, whatever the feed: {lowest:.2f} x")
    report = {"settings": vars(args), "rows_per_s": rates, "cpus_others_used": others}
    report["from_python_is"] = {feed: {name: ratio(name, feed) for name in kinds} for feed in args.feeds}
    path = ROOT / "target" / "python_pipeline.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1))


def thousands(rows: float) -> str:
    """With three digits that count."""
    return f"{rows / 1e6:.2f} M" if rows >= 1e6 else f"{rows / 1e3:.3g} k"


if __name__ == "__main__":
    main()
