"""The mask of a forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from .._rows.torch import torch

Mask: TypeAlias = "torch.Tensor | str | Callable[[tuple[Any, ...], Mapping[str, Any]], Any] | Any | None"
"""None; booleans, one per row; the name of an argument of the model's `forward`; or a function of its arguments."""


class PassMask:
    """Finds the mask of each forward pass of a model."""

    def __init__(self, mask: Mask, model: torch.nn.Module) -> None:
        """Checks that the model's `forward` has the argument that `mask` names."""
        self._mask: Any = mask
        self._signature: inspect.Signature | None = None
        if not isinstance(mask, str):
            return
        self._signature = inspect.signature(model.forward)
        parameters = self._signature.parameters.values()
        self._named = [parameter.name for parameter in parameters if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)]
        self._positional = [parameter.name for parameter in parameters if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)]
        # An encoder-decoder has two masks, and inputs of its own for each.
        prefix = mask.removesuffix("attention_mask")
        self._inputs = [] if prefix == mask else [prefix + "input_ids", prefix + "inputs_embeds"]
        """The arguments whose second axis has the positions that a call runs."""
        if prefix in ("", mask):
            self._inputs += self._named[:1]
        if mask not in self._named and all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            raise ValueError(f"the model's forward has no argument {mask!r} to take the mask from; it has {', '.join(self._named)}")

    def of_call(self, args: Any, kwargs: Any) -> Any:
        """The mask of a call of the model with these arguments."""
        if self._signature is None:
            return self._mask(args, kwargs) if callable(self._mask) else self._mask
        if self._mask in kwargs:
            return self._last_positions(kwargs[self._mask], args, kwargs)
        if self._mask not in self._named:
            raise ValueError(f"this call gave no argument {self._mask!r} to take the mask from; pass it by name")
        return self._last_positions(self._signature.bind_partial(*args, **kwargs).arguments.get(self._mask), args, kwargs)

    def _last_positions(self, mask: Any, args: Any, kwargs: Any) -> Any:
        """The part of a mask that is for the positions of this call.

        With a cache, as in `generate`, a call runs the new positions alone, and its mask covers the earlier ones, too.
        """
        if len(getattr(mask, "shape", ())) != 2:
            return mask
        given = {**dict(zip(self._positional, args, strict=False)), **kwargs}
        inputs = next((given[name] for name in self._inputs if given.get(name) is not None), None)
        shape = tuple(getattr(inputs, "shape", ()))
        if len(shape) < 2 or shape[0] != mask.shape[0] or not 0 < shape[1] < mask.shape[1]:
            return mask
        return mask[:, -shape[1] :]

    def nothing_kept(self, passes: int) -> ValueError:
        """The error of a capture of so many passes, of which no row is kept."""
        return nothing_kept(passes, self._mask, "forward pass")

    def without_call(self) -> Any:
        """The mask where a part of the model was called by itself."""
        if callable(self._mask) or isinstance(self._mask, str):
            raise ValueError("the mask comes from the model's arguments, but a part of the model was called, not the model; capture that part")
        return self._mask


def nothing_kept(ran: int, mask: object, what: str = "batch") -> ValueError:
    """The error of a model that ran so many batches, of which nothing is kept."""
    ran_so_many = f"the model ran {ran} {what}{'' if ran == 1 else 'es'}, and no row was kept"
    if mask is None:
        return ValueError(f"{ran_so_many}: the activations had none")
    name = f"mask={mask!r}" if isinstance(mask, str) else "the mask"
    return ValueError(f"{ran_so_many}: {name} is False (or 0) everywhere, and True (or 1) keeps a row; if it marks the rows to leave out, invert it")
