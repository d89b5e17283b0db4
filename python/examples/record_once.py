"""Records two layers of a real transformer once, and trains many sparse autoencoders from the recording.

    pip install './python[torch]' transformers safetensors tqdm matplotlib
    python python/examples/record_once.py

all-MiniLM-L6-v2 runs over English text once. Then two widths with two seeds are trained on each layer, all in one loop, without the
model. Stop the program at any moment and start it again: the recording goes on behind its last whole shard.
"""

from __future__ import annotations

import argparse
import os
import time
from itertools import islice, product
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch
from tqdm import tqdm
from train_sae import Component, Transformer, documents, model_dir  # the program beside this one

from activation_store import Recording, record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=100, help="forward passes to record, of 32 paragraphs each")
    parser.add_argument("--epochs", type=int, default=1, help="how often each row is trained on")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4], help="1 is the first encoder layer")
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 768], help="latents of the SAEs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of the SAEs' first weights")
    parser.add_argument("--model", type=Path, help="directory of a local copy [default: downloaded once with pip]")
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="files, or directories with .txt files")
    parser.add_argument("--recording", type=Path, default=Path("target/record_once/recording"))
    parser.add_argument("--out", type=Path, default=Path("target/record_once"))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--window", type=int, default=16_384)
    parser.add_argument("-k", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    args.out.mkdir(parents=True, exist_ok=True)

    # Once: the model runs, and its activations go to disk.
    start = time.perf_counter()
    held_out, training = record_both(args)
    print(f"recorded {training.rows} rows of {', '.join(training.components)} in {time.perf_counter() - start:.1f} s: {training}")

    # Many: the SAEs share the minibatches. A second run of this program, with other widths or seeds, records nothing.
    students: dict[str, list[Component]] = {name: [] for name in training.components}
    for (layer, rows), (width, seed) in product(held_out.items(), product(args.widths, args.seeds)):
        settings = argparse.Namespace(latents=width, k=args.k, lr=args.lr, seed=seed)
        students[layer].append(Component(f"{layer}.{width}.seed{seed}", rows, settings))
    losses: dict[str, list[float]] = {student.name: [] for layer in students.values() for student in layer}
    start, trained, total = time.perf_counter(), 0, args.epochs * training.rows
    with tqdm(total=total, desc="rows trained", unit="row") as line:
        for minibatch in training.replay(args.epochs):
            for layer, rows in minibatch.items():
                for student in students[layer]:
                    if student.sae is None:
                        torch.manual_seed(student.args.seed)
                    losses[student.name].append(student.step(rows, trained / total))
            trained += len(rows)
            line.update(len(rows))
    assert trained == total, f"{total} rows recorded, but {trained} trained on"
    seconds = time.perf_counter() - start
    print(f"{len(losses)} SAEs in {seconds:.1f} s: {trained / seconds:.0f} tokens/s, each token for all of them")

    longest = max(map(len, losses))
    print("\nvariance unexplained on held-out rows:")
    print(f"{'':<{longest}} {'before':>8} {'after':>8} {'PCA':>12} {'mean L0':>8} {'dead latents':>14}")
    for student in (student for layer in students.values() for student in layer):
        print(student.report(args.out, longest))
    print("PCA: with as many components as the mean L0, fitted on the training rows")
    print("dead: active on no row of the last quarter of the training\n")
    draw(losses, args.out / "run.svg")
    print(f"wrote the SAEs and run.svg to {args.out}")


def record_both(args: argparse.Namespace) -> tuple[dict[str, torch.Tensor], Recording]:
    """The rows to judge by, and the recording to train on. Records what is not there yet."""
    transformer = Transformer(model_dir(args.model))
    texts = documents(args.text, wanted=8_000 * args.passes)
    modules = {f"encoder.layer.{layer - 1}": f"layer.{layer}" for layer in args.layers}
    # Spread evenly, so that both parts are of all kinds.
    parts = {"held-out": (texts[::20], 10), "training": ([text for number, text in enumerate(texts) if number % 20], args.passes)}
    for part, (some, passes) in parts.items():
        batches = list(islice(transformer.batches(some), passes))
        record(
            transformer.model, batches, modules, args.recording / part,
            mask=transformer.keep, shard_rows=2048, resume=True, progress=True, metadata={"model": "all-MiniLM-L6-v2"},
        )  # fmt: skip
    held_out = Recording(args.recording / "held-out")
    return (
        {name: held_out.get(name, range(held_out.rows)) for name in held_out.components},
        Recording(args.recording / "training", batch_size=args.batch_size, window=args.window, seed=1),
    )


def draw(losses: dict[str, list[float]], file: Path) -> None:
    """The loss of each SAE, over the minibatches."""
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for name, values in losses.items():
        axes.plot(values, label=name, linewidth=1)
    axes.set(xlabel="minibatch", ylabel="fraction of variance unexplained", ylim=(0, 1))
    axes.legend(loc="upper right", fontsize="small")
    figure.savefig(file)


if __name__ == "__main__":
    main()
