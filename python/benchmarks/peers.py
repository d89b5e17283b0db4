"""What others do between capture and training, as iterators over minibatches. Each is fed by a function that gives batches.

SAELens' buffer is the one of the package; the others' algorithms are written down here anew.
"""

from collections.abc import Callable, Iterator

import torch

Source = Callable[[], torch.Tensor]


def saelens(source: Source, window: int, batch_size: int) -> Iterator[torch.Tensor]:
    """SAELens: concatenate and permute everything whenever the buffer is full; serve half of it."""
    from sae_lens.training.mixing_buffer import mixing_buffer

    def batches() -> Iterator[torch.Tensor]:
        while True:
            yield source()

    return mixing_buffer(window, batch_size, batches())


def dictionary_learning(source: Source, window: int, batch_size: int) -> Iterator[torch.Tensor]:
    """dictionary_learning: random rows out of those not read yet; when half are read, stop and fill up."""
    rows = torch.empty(0)
    unread = torch.empty(0, dtype=torch.bool)
    while True:
        if int(unread.sum()) < window // 2:
            kept = rows[unread] if len(rows) else rows
            filled = len(kept)
            first = source()
            rows = torch.empty(window, first.shape[1])
            if filled:
                rows[:filled] = kept
            batch = first
            while filled < window:
                part = batch[: window - filled]
                rows[filled : filled + len(part)] = part
                filled += len(part)
                if filled < window:
                    batch = source()
            unread = torch.ones(window, dtype=torch.bool)
        candidates = unread.nonzero().squeeze(1)
        chosen = candidates[torch.randperm(len(candidates))[:batch_size]]
        unread[chosen] = False
        yield rows[chosen]


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
    "SAELens mixing_buffer": saelens,
    "dictionary_learning's algorithm": dictionary_learning,
    "fill + shuffle + DataLoader": fill_shuffle_load,
}
