"""What the snippets of the documentation take for granted: a small model, its text, a trainer."""

import os
import socket
import tempfile
from typing import Any

import numpy as np
import torch

from activation_store import Recorder, RingStore

torch.set_num_threads(1)
folder = "checkpoints"


def model_and_text() -> dict[str, Any]:
    """A BERT of five layers and width 384, and 120 texts of 8 to 16 tokens for it."""
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=64, hidden_size=384, num_hidden_layers=5, num_attention_heads=4, intermediate_size=64)
    torch.manual_seed(0)
    text = []
    for number in range(120):
        mask = torch.zeros(2, 16, dtype=torch.long)
        mask[:, : 8 + number % 9] = 1
        text.append({"input_ids": torch.randint(64, (2, 16)), "attention_mask": mask})
    return {"model": BertModel(config).eval(), "tokenised_text": text}


def hooked_transformer() -> dict[str, Any]:
    """A transformer of TransformerLens, and tokens for it: 48,000 rows."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=32, d_head=8, n_heads=2, d_mlp=32, d_vocab=64, act_fn="gelu", seed=0, device="cpu"
    )
    return {"hooked": HookedTransformer(config), "token_batches": [torch.randint(64, (50, 32)) for _ in range(30)]}


def train(*batches: torch.Tensor) -> None:
    """A training step."""
    for batch in batches:
        assert batch.ndim == 2
        assert batch.isfinite().all()


def world(page: str) -> dict[str, Any]:
    """The names that the snippets of a page use, and an empty folder to work in."""
    os.chdir(tempfile.mkdtemp())
    os.mkdir(folder)
    names: dict[str, Any] = {"train": train, "folder": folder, "trainer": torch.nn.Linear(2, 2), **model_and_text()}
    if page == "python.md":
        names |= hooked_transformer()
        with socket.socket() as free:  # as torchrun does
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if page == "recording.md":
        os.mkdir("cached")
        np.save("cached/0.npy", np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32))
    if page == "resume.md":
        names |= {"k": 0, "resumed": False, "save_trainer": lambda k: None, "remove_trainer": lambda k: None}
    return names


def world_of_docstrings() -> dict[str, Any]:
    """The names that the examples in docstrings use, and a folder to work in that has snapshots in `checkpoints`."""
    os.chdir(tempfile.mkdtemp())
    batches = [torch.randn(10, 4) for _ in range(20)]
    os.mkdir(folder)
    for number in (1, 2, 3):
        torch.save({}, f"{folder}/trainer-{number}.pt")
    before = RingStore(4, batch_size=4, window=8, queue_rows=1000)
    for batch in batches:
        before.extend_pass({"0": batch})
    for _ in range(3):
        next(before)
        before.snapshot(folder)
    before.abort()
    rows = torch.randn(6, 8)
    with Recorder("recorded", {"attn": 8, "mlp": 8}) as recorder:
        recorder.extend_pass({"attn": torch.randn(500, 8), "mlp": torch.randn(500, 8)})
    os.mkdir("cached")
    for number in range(3):
        np.save(f"cached/{number}.npy", np.random.default_rng(number).normal(size=(200, 8)).astype(np.float32))
    return {
        **model_and_text(), "train": train, "batches": batches, "run": lambda batch: {"0": batch},
        "store": RingStore({"attn": 8, "mlp": 8}), "attn": rows, "mlp": rows, "attention_mask": torch.ones(6, dtype=torch.bool),
    }  # fmt: skip
