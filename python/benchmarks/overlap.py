"""Capture and training at once, or in turns: how long a run takes.

    python benchmarks/overlap.py

The model and the trainer sleep, as the host does while a GPU works; what is measured is what the store adds. Writes
`target/python_overlap.json`.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path

import torch

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--window", type=int, default=16_384)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--passes", type=int, default=240)
    parser.add_argument("--capture", type=float, default=0.03, help="seconds of a forward pass")
    parser.add_argument("--train", type=float, default=0.03, help="seconds of a training step")
    args = parser.parse_args()

    longer = args.passes * max(args.capture, args.train)
    total = args.passes * (args.capture + args.train)
    turns, once = in_turns(args), at_once(args)
    print(f"{args.passes} forward passes of {args.capture} s and as many training steps of {args.train} s, {args.batch} rows of {args.features} each")
    print(f"in turns  {turns:6.2f} s   {turns / total:.2f} x their sum ({total:.2f} s)")
    print(f"at once   {once:6.2f} s   {once / longer:.2f} x the longer of the two ({longer:.2f} s)")
    print(f"{'reached' if once <= 1.1 * longer else 'MISSED '}  at once takes at most 1.1 x the longer")
    path = Path(__file__).resolve().parents[2] / "target" / "python_overlap.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"settings": vars(args), "in_turns": turns, "at_once": once, "longer": longer, "sum": total}, indent=1))


if __name__ == "__main__":
    main()
