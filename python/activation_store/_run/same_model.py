"""Whether the models that are given as replicas are copies of one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .._rows.torch import HAS_TORCH, torch

_SAMPLE = 8
"""Elements of each parameter that are compared."""


def check_replicas(models: Sequence[Any]) -> None:
    """Compares the parameters and buffers of models: names, shapes, dtypes and some of the values.

    Raises:
        ValueError: If two are not copies of one model.
    """
    modules = [model for model in models if HAS_TORCH and isinstance(model, torch.nn.Module)]
    for number, model in enumerate(modules[1:], start=1):
        if model is modules[0]:
            continue
        if (difference := _difference(modules[0], model)) is not None:
            raise ValueError(
                f"models 0 and {number} are not copies of one model: {difference}. A list of models is of replicas, each of which runs a part of the "
                "batches, so the minibatches would mix both. To compare two models, call activations for each, with the same batches and "
                "seed; or give a function that runs both and gives the rows of each a name: f(batch) -> {'base': ..., 'tuned': ...}"
            )


def _difference(first: torch.nn.Module, second: torch.nn.Module) -> str | None:
    ours, theirs = dict(_tensors(first)), dict(_tensors(second))
    if only := sorted(ours.keys() ^ theirs.keys()):
        return f"only the {'first' if only[0] in ours else 'other'} has {only[0]!r}"
    for name, tensor in ours.items():
        other = theirs[name]
        for what, one, two in (("shape", tuple(tensor.shape), tuple(other.shape)), ("dtype", tensor.dtype, other.dtype)):
            if one != two:
                return f"{name!r} has the {what} {one} in one and {two} in the other"
        ours_now, theirs_now = _sample(tensor), _sample(other)
        if ours_now is not None and theirs_now is not None and not torch.equal(ours_now, theirs_now):
            return f"{name!r} has other values"
    return None


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters and buffers that a copy has, too. (Buffers that are not saved may be made as the model runs.)"""
    for path, module in model.named_modules(remove_duplicate=False):
        buffers = {name: buffer for name, buffer in module._buffers.items() if name not in module._non_persistent_buffers_set}  # noqa: SLF001
        for name, tensor in {**module._parameters, **buffers}.items():  # noqa: SLF001
            if tensor is not None:
                yield f"{path}.{name}".lstrip("."), tensor


def _sample(tensor: torch.Tensor) -> torch.Tensor | None:
    """Some elements, on the CPU; None where there are none to read (on the meta device; a shard of a tensor)."""
    if tensor.is_meta or not tensor.numel() or type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
        return None
    places = np.linspace(0, tensor.numel() - 1, min(_SAMPLE, tensor.numel())).astype(np.int64)
    index = np.unravel_index(places, tuple(tensor.shape)) if tensor.ndim else ()
    elements = tensor.detach()[tuple(torch.as_tensor(each, device=tensor.device) for each in index)].cpu()
    return elements.to(torch.float64).nan_to_num() if elements.is_floating_point() else elements
