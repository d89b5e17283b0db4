"""Whether the model runs on a thread of its own, or in the thread of the loop over the minibatches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from .._rows.torch import HAS_TORCH, is_tensor, torch

Overlap: TypeAlias = "bool | Literal['auto']"


def runs_on_threads(overlap: Overlap, models: Sequence[Any], batches: Any, when_full: str) -> bool:
    """Whether each model gets a thread.

    Raises:
        ValueError: If `overlap` is none of its values, or is False where only threads do.
    """
    if overlap is True:
        return True
    if overlap == "auto":
        return len(models) > 1 or when_full != "wait" or not _is_all_on_cpu(models[0], batches)
    if overlap is not False:
        raise ValueError(f'overlap is {overlap!r}; use "auto", True (a thread for the model) or False (the loop\'s own thread)')
    if len(models) > 1:
        raise ValueError(f"overlap is False, and there are {len(models)} models; one thread runs one model: give one, or use overlap=True")
    if when_full != "wait":
        raise ValueError(
            f"overlap is False, and when_full is {when_full!r}, which is for a loop that lags behind the model: in one thread it never does. "
            'Use when_full="wait", or overlap=True'
        )
    return False


def _is_all_on_cpu(model: Any, batches: Any) -> bool:
    """Whether a model is known to compute on the CPU. A function, or a module without parameters, is not known to."""
    if not HAS_TORCH or not isinstance(model, torch.nn.Module) or torch.get_default_device().type != "cpu":
        return False
    parameters = list(model.parameters())
    tensors = [*parameters, *model.buffers(), *_tensors_in(_first_of(batches))]
    return bool(parameters) and all(tensor.device.type == "cpu" for tensor in tensors)


def _first_of(batches: Any) -> Any:
    """The first batch, where a look at it runs no code of the user's."""
    if isinstance(batches, list | tuple) or is_tensor(batches):
        return batches[0] if len(batches) else None
    return None


def _tensors_in(batch: Any) -> list[Any]:
    if is_tensor(batch):
        return [batch]
    items = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return [item for item in items if is_tensor(item)]
