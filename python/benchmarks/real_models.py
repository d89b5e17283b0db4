"""Real models and trainers on the same CPU, with torch's own number of threads: what `activations` takes beside what others do.

Each function runs one whole training and returns. `overlap.py` takes the time.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import torch

from activation_store import activations

Way = Callable[[], object]
BATCH, CONTEXT, MINIBATCH = 16, 128, 1024


class Llama:
    """A small Llama, of which three layers are captured, and one SAE."""

    layers = ("model.layers.0", "model.layers.1", "model.layers.2")

    def __init__(self, batches: int, window: int) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=600, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        self.model: Any = LlamaForCausalLM(config).eval()
        self.window = window
        self.batches = [torch.randint(3, 600, (BATCH, CONTEXT)) for _ in range(batches)]
        self.encode, self.decode = torch.nn.Linear(128, 512), torch.nn.Linear(512, 128)
        self.optimiser = torch.optim.Adam([*self.encode.parameters(), *self.decode.parameters()], 1e-3)

    def ways(self) -> dict[str, Way]:
        """What to compare; the naive loop first."""
        return {
            "list, cat, randperm": self.naive,
            'overlap="auto"': lambda: self.through_activations("auto"),
            "overlap=True": lambda: self.through_activations(True),
        }

    def step(self, rows: torch.Tensor) -> None:
        loss = ((self.decode(self.encode(rows).relu()) - rows) ** 2).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    def through_activations(self, overlap: Any) -> None:
        for minibatch in activations(self.model, self.batches, list(self.layers), batch_size=MINIBATCH, window=self.window, overlap=overlap):
            self.step(minibatch[self.layers[1]])

    def naive(self) -> None:
        """Hooks that append to lists; then everything is joined and shuffled."""
        parts: dict[str, list[torch.Tensor]] = {path: [] for path in self.layers}

        def hook(path: str) -> Any:
            return lambda module, args, out: parts[path].append((out[0] if isinstance(out, tuple) else out).flatten(0, 1))

        with contextlib.ExitStack() as stack, torch.no_grad():
            for path in self.layers:
                stack.callback(self.model.get_submodule(path).register_forward_hook(hook(path)).remove)
            for batch in self.batches:
                self.model.model(batch)
        rows = {path: torch.cat(found) for path, found in parts.items()}
        for index in torch.randperm(len(rows[self.layers[1]])).split(MINIBATCH):
            self.step(rows[self.layers[1]][index])


class Hooked:
    """A small HookedTransformer and an SAE that SAELens trains: with SAELens' own runner, and with `activations` as its iterator."""

    point = "blocks.1.hook_resid_post"

    def __init__(self, batches: int, window: int) -> None:
        from datasets import Dataset
        from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig, StandardTrainingSAEConfig
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        torch.manual_seed(0)
        self.model = HookedTransformer(
            HookedTransformerConfig(
                n_layers=4, d_model=128, n_ctx=CONTEXT, d_head=32, n_heads=4, d_mlp=256, d_vocab=600, act_fn="gelu", seed=0, device="cpu"
            )
        )
        self.window = window
        # SAELens fills its buffer before the first step, so it reads more than it trains on.
        tokens = torch.randint(600, (batches * BATCH + window // CONTEXT, CONTEXT))
        self.batches = list(tokens.split(BATCH))
        self.dataset = Dataset.from_dict({"input_ids": tokens.tolist()})
        self.rows = (batches * BATCH * CONTEXT) // MINIBATCH * MINIBATCH
        self.config = LanguageModelSAERunnerConfig(
            sae=StandardTrainingSAEConfig(d_in=128, d_sae=512, l1_coefficient=0.1), model_name="small", hook_name=self.point, context_size=CONTEXT,
            streaming=False, prepend_bos=False, n_batches_in_buffer=window // CONTEXT, store_batch_size_prompts=BATCH,
            training_tokens=self.rows, train_batch_size_tokens=MINIBATCH, n_eval_batches=0, logger=LoggingConfig(log_to_wandb=False),
            checkpoint_path=None, output_path=None, verbose=False, device="cpu",
        )  # fmt: skip

    def ways(self) -> dict[str, Way]:
        """What to compare; SAELens' own runner first."""
        return {
            "SAELens' runner": self.runner,
            'overlap="auto"': lambda: self.through_activations("auto"),
            "overlap=True": lambda: self.through_activations(True),
        }

    def runner(self) -> None:
        from sae_lens import LanguageModelSAETrainingRunner

        with contextlib.redirect_stderr(io.StringIO()):
            LanguageModelSAETrainingRunner(self.config, override_dataset=self.dataset, override_model=self.model).run()

    def through_activations(self, overlap: Any) -> None:
        from sae_lens import StandardTrainingSAE
        from sae_lens.training.sae_trainer import SAETrainer

        sae = StandardTrainingSAE(self.config.sae)
        with (
            contextlib.redirect_stderr(io.StringIO()),
            activations(self.model, self.batches, self.point, batch_size=MINIBATCH, window=self.window, overlap=overlap) as data,
        ):
            SAETrainer(cfg=self.config.to_sae_trainer_config(), sae=sae, data_provider=data).fit()
