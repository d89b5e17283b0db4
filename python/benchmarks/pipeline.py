"""Rows per second in and out from Python, against the crate alone, two torch copies, and what others do.

    python benchmarks/pipeline.py [--quick] [--features 768] [--window 262144] [--batch 4096]

All in one run and interleaved, so that the ratios hold where the rates do not. What other programs did meanwhile is
shown, and rounds that they disturbed are left out of the ratios where there are others: copying in takes a core of its own,
which the crate alone does not need. Writes `target/python_pipeline.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peers import PEERS

from activation_store import RingStore

QUIET = 0.2
"""A measurement is disturbed where other programs use more CPUs than this."""

ROOT = Path(__file__).resolve().parents[2]


def ours(args: argparse.Namespace, seconds: float, *, copy: bool = True) -> float:
    """A thread extends the store, this one drains it; both all the time."""
    store = RingStore(args.features, batch_size=args.batch, window=args.window)
    sources = [torch.randn(args.batch, args.features) for _ in range(8)]
    stop = threading.Event()

    def capture() -> None:
        number = 0
        while not stop.is_set():
            store.extend(sources[number % 8], copy=copy)
            number += 1
        store.close()

    thread = threading.Thread(target=capture)
    thread.start()
    rate = drain(store, args, seconds)
    stop.set()
    for _ in store:
        pass
    thread.join()
    return rate


def drain(minibatches, args: argparse.Namespace, seconds: float) -> float:
    """Rows per second, after as many minibatches as fill the window."""
    for _ in range(args.window // args.batch):
        next(minibatches)
    rows, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        rows += len(next(minibatches))
    return rows / elapsed


def peer(name: str, args: argparse.Namespace, seconds: float) -> float:
    """Capture and training take turns. Counted over whole rounds of filling and serving, as far as the time goes."""
    sources = [torch.randn(args.batch, args.features) for _ in range(8)]
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
        if elapsed > seconds and number > start_in:
            return min(rows, (number - start_in) * args.batch) / elapsed


def two_copies(args: argparse.Namespace, seconds: float) -> float:
    """A torch copy in and a torch copy out: the least that a buffer made of tensors does."""
    sources = [torch.randn(args.batch, args.features) for _ in range(8)]
    ring, out = torch.zeros(args.window, args.features), torch.zeros(args.batch, args.features)
    blocks, number, start = args.window // args.batch, 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        at, behind = number % blocks, (number + 1) % blocks
        ring[at * args.batch : (at + 1) * args.batch].copy_(sources[number % 8])
        out.copy_(ring[behind * args.batch : (behind + 1) * args.batch])
        number += 1
    return number * args.batch / elapsed


def crate_alone(args: argparse.Namespace, seconds: float) -> float:
    """The crate, without Python."""
    command = ["cargo", "run", "-q", "--release", "-p", "crate_alone", "--"]
    numbers = [str(max(1, round(seconds))), str(args.window), str(args.batch), str(args.features)]
    return float(subprocess.run([*command, *numbers], cwd=ROOT, check=True, capture_output=True, text=True).stdout)


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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = 2, 1
    torch.set_num_threads(args.threads)

    crate_alone(args, 1)  # builds it
    measures = {
        "crate alone": lambda: crate_alone(args, args.seconds),
        "from Python": lambda: ours(args, args.seconds),
        "from Python, copy=False": lambda: ours(args, args.seconds, copy=False),
        "two torch copies": lambda: two_copies(args, args.seconds),
        **{name: lambda name=name: peer(name, args, args.seconds) for name in PEERS},
    }
    rates: dict[str, list[float]] = {name: [] for name in measures}
    others: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(args.rounds):
        for name, measure in measures.items():
            rate, other = disturbed(measure)
            rates[name].append(rate)
            others[name].append(other)
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)

    def ratio(name: str) -> float:
        """The median of the rounds' own ratios."""
        rounds = range(args.rounds)
        quiet = [number for number in rounds if others["from Python"][number] < QUIET and others[name][number] < QUIET]
        return statistics.median(rates["from Python"][number] / rates[name][number] for number in quiet or rounds)

    print(f"d = {args.features}, f32, window {args.window:,}, batches of {args.batch:,}; torch uses {args.threads} threads; {args.rounds} rounds")
    print(f"{'':34}{'rows/s':>12}{'lowest':>12}{'highest':>12}   from Python is    CPUs others used")
    for name, values in rates.items():
        print(
            f"{name:34}{statistics.median(values):12,.0f}{min(values):12,.0f}{max(values):12,.0f}   {ratio(name):.2f} x"
            f"{'':12}{' '.join(f'{other:.1f}' for other in others[name])}"
        )
    best = min(PEERS, key=ratio)
    wanted = [("crate alone", 0.7), ("two torch copies", 1.0), (best, 10.0)]
    for name, least in wanted:
        print(f"{'reached' if ratio(name) >= least else 'MISSED '}  {ratio(name):.2f} x {name} (wanted: {least} x)")
    report = {"settings": vars(args), "rows_per_s": rates, "cpus_others_used": others, "from_python_is": {name: ratio(name) for name in rates}}
    path = ROOT / "target" / "python_pipeline.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
