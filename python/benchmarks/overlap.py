"""Capture and training at once, or in turns: how long a run takes.

    python benchmarks/overlap.py [sleeping] [llama] [hooked]

`sleeping`: the model and the trainer sleep, as the host does while a GPU works; what is measured is what the store adds.
`llama` and `hooked`: a real model and a real trainer share the CPU, with torch's own number of threads. The ways run in turn,
`--pairs` times; each ratio is the median of the ratios of neighbouring runs. Without a name, all three. Writes
`target/python_overlap.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import torch
from real_models import Hooked, Llama

from activation_store import RingStore, TensorActivationStore, capture


class Model(torch.nn.Module):
    """A transformer that takes `seconds` for a forward pass."""

    def __init__(self, rows: int, features: int, seconds: float) -> None:
        super().__init__()
        self.layer = torch.nn.Identity()
        self.out, self.seconds = torch.randn(rows, features), seconds

    def forward(self) -> torch.Tensor:
        time.sleep(self.seconds)
        out: torch.Tensor = self.layer(self.out)
        return out


def at_once(args: argparse.Namespace) -> float:
    """A thread captures while this one trains."""
    model = Model(args.batch, args.features, args.capture)
    store = RingStore(args.features, batch_size=args.batch, window=args.window)
    start = time.perf_counter()

    def run_model() -> None:
        with capture(model, {"layer": 0}, store):
            for _ in range(args.passes):
                model()
        store.close()

    thread = threading.Thread(target=run_model)
    thread.start()
    rows = 0
    for minibatch in store:
        rows += len(minibatch)
        time.sleep(args.train)
    thread.join()
    assert rows == args.passes * args.batch
    return time.perf_counter() - start


def in_turns(args: argparse.Namespace) -> float:
    """The original's loop: fill the store, shuffle it, train on it, again."""
    model = Model(args.batch, args.features, args.capture)
    store = TensorActivationStore(args.window, args.features, 1)
    per_fill = args.window // args.batch
    start = time.perf_counter()
    for _ in range(args.passes // per_fill):
        store.empty()
        with capture(model, {"layer": 0}, store):
            for _ in range(per_fill):
                model()
        store.shuffle()
        for _ in torch.utils.data.DataLoader(store, batch_size=args.batch):
            time.sleep(args.train)
    return time.perf_counter() - start


AUTO = 'overlap="auto"'


def sleeping(args: argparse.Namespace) -> dict[str, float]:
    """At once against in turns, with a model and a trainer that sleep."""
    longer = args.passes * max(args.capture, args.train)
    total = args.passes * (args.capture + args.train)
    turns, once = in_turns(args), at_once(args)
    print(f"{args.passes} forward passes of {args.capture} s and as many training steps of {args.train} s, {args.batch} rows of {args.features} each")
    print(f"in turns  {turns:6.2f} s   {turns / total:.2f} x their sum ({total:.2f} s)")
    print(f"at once   {once:6.2f} s   {once / longer:.2f} x the longer of the two ({longer:.2f} s)")
    print(f"{verdict(once / longer, 1.1)}  at once takes at most 1.1 x the longer")
    return {"in_turns": turns, "at_once": once, "longer": longer, "sum": total}


def side_by_side(name: str, model: Llama | Hooked, limit: float, pairs: int) -> dict[str, Any]:
    """The ways of a real model in turn, and their ratios to the first of them."""
    ways = model.ways()
    for way in ways.values():
        way()  # what is imported or allocated once does not count
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(pairs):
        for way in list(ways) if number % 2 else reversed(ways):
            start = time.perf_counter()
            ways[way]()
            seconds[way].append(time.perf_counter() - start)
    first = next(iter(ways))
    ratios = {way: [own / other for own, other in zip(seconds[way], seconds[first], strict=True)] for way in ways}
    print(f"\n{name}, {torch.get_num_threads()} threads of torch, {pairs} pairs")
    for way in ways:
        print(f"{way:20} {statistics.median(seconds[way]):6.2f} s   {statistics.median(ratios[way]):.2f} x {first} ({min(ratios[way]):.2f} to {max(ratios[way]):.2f})")
    print(f"{verdict(statistics.median(ratios[AUTO]), limit)}  overlap=\"auto\" takes at most {limit} x {first}")
    return {"seconds": seconds, "ratios": ratios}


def verdict(ratio: float, limit: float) -> str:
    return "reached" if ratio <= limit else "MISSED "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", help="sleeping, llama or hooked; default: all of them")
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--window", type=int, default=16_384)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--passes", type=int, default=240)
    parser.add_argument("--capture", type=float, default=0.03, help="seconds of a forward pass")
    parser.add_argument("--train", type=float, default=0.03, help="seconds of a training step")
    parser.add_argument("--pairs", type=int, default=9, help="runs of each way of a real model")
    parser.add_argument("--batches", type=int, default=60, help="batches of a real model, of 2,048 rows each")
    args = parser.parse_args()
    which = args.which or ["sleeping", "llama", "hooked"]
    if unknown := set(which) - {"sleeping", "llama", "hooked"}:
        parser.error(f"there is no {', '.join(sorted(unknown))}; use sleeping, llama or hooked")

    measured: dict[str, Any] = {"settings": vars(args)}
    if "sleeping" in which:
        measured |= sleeping(args)
    if "llama" in which:
        measured["llama"] = side_by_side("a small Llama, three layers, one SAE", Llama(args.batches, args.window), 1.10, args.pairs)
    if "hooked" in which:
        measured["hooked"] = side_by_side("a small HookedTransformer, SAELens' SAE", Hooked(args.batches, args.window), 1.00, args.pairs)
    path = Path(__file__).resolve().parents[2] / "target" / "python_overlap.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
