"""What a pass costs that ends behind the first layer, compared with the same model cut to that layer.

    python benchmarks/early_stop.py

Three runs in turn, on the same texts: the whole model, which ends early; the cut model; and the whole model with
`stop_early=False`. The figures are medians of the ratios of one round. Writes `target/python_early_stop.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2Model

from activation_store import activations

_TEXTS = 4
"""Texts of a pass."""
_WARM_UP = 4
"""Passes whose rows are served before the time is taken."""


def model_of(args: argparse.Namespace, layers: int) -> torch.nn.Module:
    """A GPT-2 of so many layers."""
    config = GPT2Config(n_layer=layers, n_head=4, n_embd=args.features, n_positions=args.tokens, vocab_size=256, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    model: torch.nn.Module = GPT2Model(config).eval()
    return model


def seconds(args: argparse.Namespace, model: torch.nn.Module, texts: list[torch.Tensor], *, stop_early: bool = True) -> float:
    """How long the passes of a run take after the first ones. The first pass, which runs to its end, and the probe come before."""
    run = activations(model, texts, "h.0", batch_size=args.tokens, window=2 * args.tokens, stop_early=stop_early)
    for _ in range(_WARM_UP * _TEXTS):  # a minibatch has as many rows as one text
        next(run)
    start = time.perf_counter()
    for _ in run:
        pass
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--passes", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()

    texts = [torch.randint(256, (_TEXTS, args.tokens)) for _ in range(args.passes)]
    whole, cut = model_of(args, args.layers), model_of(args, 1)
    early, full = [], []
    for number in range(args.rounds):
        stopped, shorter = seconds(args, whole, texts), seconds(args, cut, texts)
        early.append(stopped / shorter)
        if number < 3:
            full.append(seconds(args, whole, texts, stop_early=False) / shorter)
    ratio, without = statistics.median(early), statistics.median(full)
    print(f"layer 0 of {args.layers}, {args.passes} passes of {_TEXTS * args.tokens} rows, compared with a model of one layer")
    print(f"ends early          {ratio:6.2f} x   ({min(early):.2f} to {max(early):.2f})")
    print(f"stop_early=False    {without:6.2f} x")
    print(f"{'reached' if ratio <= 1.2 else 'MISSED '}  ends early takes at most 1.2 x the cut model")
    path = Path(__file__).resolve().parents[2] / "target" / "python_early_stop.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"settings": vars(args), "early": early, "full": full}, indent=1))


if __name__ == "__main__":
    main()
