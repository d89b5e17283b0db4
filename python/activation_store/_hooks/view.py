"""A view of a model: a copy of its module tree that shares its parameters and buffers and has hooks and a mode of its own."""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

from .._rows.torch import torch
from .model_hooks import without_own

_WRAPPERS = {
    "FSDPModule": "is sharded by FSDP2, which is tied to the modules that it has sharded",
    "FullyShardedDataParallel": "is sharded by FSDP, which is tied to the modules that it has wrapped",
    "DistributedDataParallel": "is a wrapper that is tied to its process group; give its `.module`, which has a view",
    "DataParallel": "is a wrapper that copies its module; give its `.module`, which has a view",
}


def view_of(model: torch.nn.Module) -> torch.nn.Module:
    """A view of a model.

    A view shares each module's dicts of parameters and of buffers. So it sees the model moved, cast, trained and loaded. Each
    dict of hooks is copied, the hooks are not. Containers are copied with the modules, partials and bound methods in them. Any
    other attribute is shared. Code that `torch.compile` made is left out: the view runs the module that was compiled.

    Raises:
        NoViewError: If the model can have none.
        MemoryError: If there is no memory for the copy.
    """
    refuse(model)
    try:
        return _Copier().module(model)
    except MemoryError:
        raise
    except Exception as error:
        raise NoViewError(f"it cannot be copied: {type(error).__name__}: {error}") from error


def path_in_view(path: str) -> str:
    """The path in the view of what has this path in a model of which `torch.compile` made a part."""
    name, colon, which = path.rpartition(":") if path.endswith((":output", ":input")) else (path, "", "")
    return ".".join(part for part in name.split(".") if part != _COMPILED) + colon + which


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether a part of the model runs code that `torch.compile` made."""
    return any(_is_compiled(module) for module in model.modules())


def refuse(model: torch.nn.Module) -> None:
    """Refuses a model that can have no view.

    Raises:
        NoViewError: If it is such a model.
    """
    for path, module in model.named_modules():
        name = f"its module {path!r}" if path else "it"
        if isinstance(module, torch.jit.ScriptModule):
            raise NoViewError(f"{name} is made by torch.jit, whose modules cannot be copied with their parameters shared")
        wrapper = next((each.__name__ for each in type(module).__mro__ if each.__name__ in _WRAPPERS and each.__module__.startswith("torch.")), None)
        if wrapper is not None:
            raise NoViewError(f"{name} {_WRAPPERS[wrapper]}")
        if any(map(torch.nn.parameter.is_lazy, [*module._parameters.values(), *module._buffers.values()])):  # noqa: SLF001
            raise NoViewError(f"{name} has parameters without a shape until it has run; run the model once before")


class NoViewError(Exception):
    """Says why a model can have no view."""


class _Copier:
    """Copies one module tree. Modules wait in a line, so a deep tree needs no deep recursion."""

    def __init__(self) -> None:
        self._copies: dict[int, Any] = {}
        self._originals: list[Any] = []
        """Keeps what was copied alive, so that no other object gets its `id`."""
        self._is_dispatched = False
        """Whether accelerate places parts of the model."""
        self._waiting: deque[tuple[torch.nn.Module, torch.nn.Module]] = deque()

    def module(self, model: torch.nn.Module) -> torch.nn.Module:
        self._is_dispatched = any("_hf_hook" in module.__dict__ for module in model.modules())
        root = self._begin(model)
        while self._waiting:
            self._fill(*self._waiting.popleft())
        return root

    def _begin(self, module: torch.nn.Module) -> torch.nn.Module:
        """The copy of a module, which gets its attributes later."""
        found = self._copies.get(id(module))
        if found is None:
            original = module
            while type(module).__name__ == "OptimizedModule" and _COMPILED in module._modules:  # noqa: SLF001
                module = module._modules[_COMPILED]  # type: ignore[assignment]  # noqa: SLF001
            found = self._begin(module) if module is not original else object.__new__(type(module))
            self._note(original, found)
            if module is original:
                self._waiting.append((module, found))
        return found

    def _fill(self, module: torch.nn.Module, to: torch.nn.Module) -> None:
        for name, value in module.__dict__.items():
            if name in ("_parameters", "_buffers"):
                # What accelerate has offloaded is put into the dict for each pass and taken out again: each tree has its own.
                is_offloaded = self._is_dispatched and any(each is not None and each.is_meta for each in value.values())
                to.__dict__[name] = copy.copy(value) if is_offloaded else value
            elif name in _HOOKS:
                to.__dict__[name] = without_own(value)
            elif name == "_hf_hook":
                to.__dict__[name] = _own_state(value)
            elif name != "_compiled_call_impl":
                to.__dict__[name] = self._value(value)

    def _value(self, value: Any) -> Any:
        found = self._copies.get(id(value))
        if found is not None:
            return found
        if isinstance(value, torch.nn.Module):
            return self._begin(value)
        if isinstance(value, types.MethodType):
            owner = value.__self__
            return types.MethodType(value.__func__, self._begin(owner)) if isinstance(owner, torch.nn.Module) else value
        if type(value) is weakref.ref:
            owner = value()
            return weakref.ref(self._begin(owner)) if isinstance(owner, torch.nn.Module) else value
        if type(value) is functools.partial:
            copied: Any = functools.partial(self._value(value.func), *map(self._value, value.args), **{key: self._value(each) for key, each in value.keywords.items()})
            copied.__dict__.update({key: self._value(each) for key, each in value.__dict__.items()})
            return self._note(value, copied)
        if isinstance(value, dict | list | set | deque):
            return self._container(value)
        if isinstance(value, tuple | frozenset):
            copied = [self._value(each) for each in value]
            if all(new is old for new, old in zip(copied, value, strict=True)):
                return value
            return self._note(value, value._make(copied) if hasattr(value, "_make") else type(value)(copied))
        return value

    def _container(self, value: Any) -> Any:
        copied = self._note(value, copy.copy(value))
        items = [(self._value(key), self._value(each)) for key, each in value.items()] if isinstance(value, dict) else [self._value(each) for each in value]
        copied.clear()
        if isinstance(value, list | deque):
            copied.extend(items)
        else:
            copied.update(items)
        return copied

    def _note(self, value: Any, copied: Any) -> Any:
        self._copies[id(value)] = copied
        self._originals.append(value)
        return copied


def _own_state(hook: Any) -> Any:
    """accelerate's hook of a module with a state of its own for the pass under way. It shares the weights that it puts in."""
    copied = copy.copy(hook)
    if hasattr(copied, "hooks"):
        copied.hooks = type(copied.hooks)(map(_own_state, copied.hooks))
    return copied


def _is_compiled(module: torch.nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or module.__dict__.get("_compiled_call_impl") is not None


def _hook_dicts() -> Iterator[str]:
    if torch is not None:
        yield from (name for name in torch.nn.Module().__dict__ if name.endswith("_hooks") or "_hooks_" in name)


_HOOKS = frozenset(_hook_dicts())
_COMPILED = "_orig_mod"
