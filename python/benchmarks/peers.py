"""What others do between capture and training, as iterators over minibatches. Each is fed by a function that gives batches.

The buffers of SAELens and dictionary_learning are imported from their packages. The third one is written here.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

Source = Callable[[], torch.Tensor]
"""Gives `[rows, features]`, always as many rows."""

CONTEXT = 128
"""Rows of a context, of which a batch has a whole number."""


def saelens(source: Source, window: int, batch_size: int) -> Iterator[torch.Tensor]:
    """SAELens: concatenate and permute everything whenever the buffer is full; serve half of it."""
    from sae_lens.training.mixing_buffer import mixing_buffer

    return mixing_buffer(window, batch_size, iter(source, None))


def dictionary_learning(source: Source, window: int, batch_size: int) -> Iterator[torch.Tensor]:
    """dictionary_learning: random rows out of those not read yet; when half are read, stop and fill up.

    The buffer runs a model itself. It gets one that costs nothing: its hidden states are the next batch of the source.
    """
    if "nnsight" not in sys.modules:
        # The buffer imports it for the name of its model's type only.
        stand_in: Any = types.ModuleType("nnsight")
        stand_in.LanguageModel = object
        sys.modules["nnsight"] = stand_in
    from dictionary_learning.buffer import ActivationBuffer

    first = source()
    rows, features = first.shape
    model = _Model(source)
    return iter(
        ActivationBuffer(
            itertools.repeat(""),
            model,
            model.layer,
            d_submodule=features,
            n_ctxs=window // CONTEXT,
            ctx_len=CONTEXT,
            refresh_batch_size=rows // CONTEXT,
            out_batch_size=batch_size,
        )
    )


class _Saved:
    """A value that a trace has saved, or gives."""

    def __init__(self, get: Callable[[], Any]) -> None:
        self._get = get

    def save(self) -> _Saved:
        value = self._get()
        return _Saved(lambda: value)

    @property
    def value(self) -> Any:
        return self._get()

    def stop(self) -> None:
        """Runs the model no further."""


class _Model:
    """What dictionary_learning's buffer asks of an nnsight model."""

    dtype = torch.float32

    def __init__(self, source: Source) -> None:
        self.layer = types.SimpleNamespace(output=_Saved(lambda: self._states))
        self.inputs = _Saved(lambda: ((), {"attention_mask": self._mask}))
        self._source = source

    @contextlib.contextmanager
    def trace(self, texts: list[str], **_: Any) -> Iterator[None]:
        self._states = self._source().view(len(texts), CONTEXT, -1)
        self._mask = torch.ones(len(texts), CONTEXT, dtype=torch.int64)
        yield


def fill_shuffle_load(source: Source, window: int, batch_size: int) -> Iterator[torch.Tensor]:
    """sparse_autoencoder: fill a tensor, permute it, read it through a DataLoader; then again."""
    from torch.utils.data import DataLoader, TensorDataset

    features = source().shape[1]
    data = torch.empty(window, 1, features)
    while True:
        stored = 0
        while stored < window:
            batch = source()[: window - stored]
            data[stored : stored + len(batch), 0] = batch
            stored += len(batch)
        data[:] = data[torch.randperm(window)]
        for (batch,) in DataLoader(TensorDataset(data), batch_size=batch_size):
            yield batch[:, 0]


PEERS: dict[str, Callable[[Source, int, int], Iterator[torch.Tensor]]] = {
    "SAELens' `mixing_buffer`": saelens,
    "dictionary_learning's `ActivationBuffer`": dictionary_learning,
    "fill, shuffle, DataLoader": fill_shuffle_load,
}
