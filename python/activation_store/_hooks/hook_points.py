"""Where a model's activations are taken: its modules' outputs and inputs."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .._rows.torch import is_tensor, torch

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


class HookPoint(NamedTuple):
    """The output or the input of a module."""

    module: torch.nn.Module
    path: str
    """The module's path in the model."""
    which: str
    """`"output"` or `"input"`."""

    def register(self, take: Callable[[Any], None]) -> RemovableHandle:
        """Calls `take` with what the module gives, or is given, whenever it runs."""
        # The hooks return nothing, so torch goes on with what it has.
        if self.which == "output":
            return self.module.register_forward_hook(lambda module, args, output: take(output))
        first = _first_parameter(self.module)

        def before(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            take(args or (kwargs[first] if first in kwargs else tuple(kwargs.values())))

        return self.module.register_forward_pre_hook(before, with_kwargs=True)

    def tensor(self, activations: Any) -> torch.Tensor:
        """The tensor in what the hook was given: itself, or the first of a tuple."""
        found = activations
        if isinstance(found, Mapping):
            found = next(iter(found.values()), None)
        while isinstance(found, tuple | list) and found:
            found = found[0]
        if not is_tensor(found):
            raise TypeError(f"module {self.path!r} gives {type(activations).__name__}, not a tensor or a tuple of them")
        if not found.dim():
            raise TypeError(
                f"module {self.path!r} gives a single number, a tensor of shape (): rows need an axis for the features, [..., features]. "
                "Capture a module that gives them, such as the one before"
            )
        tensor: torch.Tensor = found.detach()
        return tensor


def check_paths(components: object) -> None:
    """Checks that these are paths of modules, and what becomes of each.

    Raises:
        TypeError: If they are not.
    """
    if not isinstance(components, Mapping):
        raise TypeError(f"the modules to capture are {components!r}; give a dict from each module's path to the store's component, such as {_EXAMPLE}")
    for path, component in components.items():
        if not isinstance(path, str):
            raise TypeError(f"the modules to capture have the key {path!r}, with {component!r} as its value; the keys are paths, as in {_EXAMPLE}")


_EXAMPLE = "{'encoder.layer.2': 0}"


def hook_points(model: torch.nn.Module, paths: Collection[str], point: str) -> list[HookPoint]:
    """The hook points at `paths`; those that do not say `":input"` or `":output"` are the modules' `point`.

    Raises:
        ValueError: If the model has no such module, or two paths lead to one.
    """
    points = [_hook_point(model, path, point) for path in paths]
    seen: dict[tuple[int, str], str] = {}
    for path, found in zip(paths, points, strict=True):
        first = seen.setdefault((id(found.module), found.which), path)
        if first != path:
            raise ValueError(f"{first!r} and {path!r} are the {found.which} of one module; capture it once")
    return points


def _hook_point(model: torch.nn.Module, path: str, point: str) -> HookPoint:
    name, _, suffix = path.rpartition(":")
    if suffix in ("output", "input") and ":" in path:
        path, point = name, suffix
    try:
        return HookPoint(model.get_submodule(path), path, point)
    except AttributeError:
        paths = [name for name, _ in model.named_modules()]
        close = difflib.get_close_matches(path, paths, n=3) or paths[1:4]
        raise ValueError(f"the model has no module {path!r}; it has {', '.join(map(repr, close))}, ...") from None


def _first_parameter(module: torch.nn.Module) -> str | None:
    try:
        return next(iter(inspect.signature(module.forward).parameters), None)
    except (TypeError, ValueError):  # compiled code has none
        return None
