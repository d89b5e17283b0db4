"""Which hooks are on the modules of a model, without the hooks of this package."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from .._rows.torch import torch

probing = threading.local()
"""Its `now` is true while this thread runs a model only to compare its output: nothing of that pass is captured."""

_own: set[int] = set()
"""The ids of the hooks of this package that are on any model now."""


def note(handle: RemovableHandle) -> RemovableHandle:
    """Notes a hook of this package."""
    _own.add(handle.id)
    return handle


def remove(handle: RemovableHandle) -> None:
    """Takes a hook of this package off its module."""
    handle.remove()
    _own.discard(handle.id)


def without_own(hooks: Any) -> Any:
    """A copy of a module's dict of hooks, without the hooks of this package."""
    copied = hooks.copy()
    for number in _own.intersection(copied):
        del copied[number]
    return copied


class HooksOf:
    """The hooks of a model's modules at one moment, to be compared with later ones."""

    def __init__(self, model: torch.nn.Module, *, modes: bool = False) -> None:
        """With `modes`, whether each module is in train mode is compared, too."""
        self._modes = modes
        self._seen = self._look(model)

    def difference(self, model: torch.nn.Module) -> str | None:
        """What is not as it was, with the first module of which this is true. None if all is."""
        now = self._look(model)
        if now == self._seen:
            return None
        for path in [*now, *(path for path in self._seen if path not in now)]:
            before, after = self._seen.get(path), now.get(path)
            if before == after:
                continue
            name = f"module {path!r}" if path else "the model itself"
            if before is None or after is None or before.module is not after.module:
                return f"{name} was replaced, added or taken away"
            if before.training != after.training:
                return f"{name} was set to {'train' if after.training else 'eval'} mode"
            if before.forward != after.forward:
                return f"the `forward` of {name} was replaced"
            return f"the hooks of {name} changed"
        return None

    def _look(self, model: torch.nn.Module) -> dict[str, _Seen]:
        return {path: _Seen(module, self._modes) for path, module in model.named_modules()}


class _Seen:
    """What is compared of a module."""

    __slots__ = ("after", "before", "forward", "module", "training")

    def __init__(self, module: torch.nn.Module, modes: bool) -> None:
        self.module = module
        self.before = [number for number in tuple(module._forward_pre_hooks) if number not in _own]  # noqa: SLF001
        self.after = [number for number in tuple(module._forward_hooks) if number not in _own]  # noqa: SLF001
        self.forward = module.__dict__.get("forward")
        self.training = modes and module.training

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Seen) and self.module is other.module and all(
            getattr(self, name) == getattr(other, name) for name in ("before", "after", "forward", "training")
        )

    __hash__ = None  # type: ignore[assignment]
