"""Whether a view stands for its model: shown by the first pass."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from .._rows.torch import is_tensor, torch
from . import model_hooks
from .view import is_compiled


class Probe:
    """Compares a view with its model, and watches which modules run.

    The first batch runs once more for this, on the model itself, if the whole model is in eval mode: the outputs must be equal
    bit for bit. In train mode a pass may change the model and may draw random numbers, so then the hooks alone decide. They
    alone decide, too, if a part of the model is compiled, if another thread changes hooks or modes of the model meanwhile, or
    if the model gives another output each time.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._is_compiled = is_compiled(model)
        self._as_copied = model_hooks.HooksOf(model, modes=True)
        """The hooks and modes of the model when the view was made."""

    def why_not(self, run_view: Callable[[], Any], args: Any, kwargs: Any) -> str | None:
        """Runs a pass of the view. Why the view cannot stand for the model; None if it can.

        If there is no memory for a comparison, the view runs once more, without one.

        Raises:
            BaseException: What the model raises, if the view does so, too; and that there is no memory for a pass of the view.
        """
        if not self._is_compiled and not any(module.training for module in self._model.modules()) and self._is_quiet():
            try:
                return self._why_not(run_view, args, kwargs, self._output(args, kwargs))
            except Exception as error:
                if not _is_no_memory(error):
                    raise
        return self._why_not(run_view, args, kwargs, None)

    def _why_not(self, run_view: Callable[[], Any], args: Any, kwargs: Any, expected: tuple[Any] | None) -> str | None:
        """As `why_not`. `expected` is the model's output to compare with, if there is one."""
        try:
            with self._model_runs() as ran:
                output = run_view()
        except Exception as error:
            if _is_no_memory(error):
                raise
            if expected is None:
                self._model(*args, **kwargs)  # raises the error itself if it is the model's
            return f"its view raised {type(error).__name__}: {error}"
        if ran:
            return f"its view ran module {ran[0]!r} of the model itself, because the model's code refers to it in a way that a copy keeps"
        if expected is None or _is_same(output, expected[0]) or not self._is_quiet():
            return None
        again = self._output(args, kwargs)
        if again is None or not _is_same(again[0], expected[0]):
            return None
        return "its view gave another output for the first batch"

    def _output(self, args: Any, kwargs: Any) -> tuple[Any] | None:
        """What the model gives; None if its hooks or modes changed meanwhile."""
        # The pass of the view must find the input and the buffers as they were.
        try:
            args, kwargs = copy.deepcopy((args, kwargs))
        except Exception:  # noqa: BLE001
            return None
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers() if not buffer.is_meta and not buffer.is_inference()]
        model_hooks.probing.now = True
        try:
            output = self._model(*args, **kwargs)
        finally:
            model_hooks.probing.now = False
            with torch.no_grad():
                for buffer, before in buffers:
                    if not _has_same_bits(buffer, before):
                        buffer.copy_(before)
        return (output,) if self._is_quiet() else None

    def _is_quiet(self) -> bool:
        return self._as_copied.difference(self._model) is None

    @contextmanager
    def _model_runs(self) -> Iterator[list[str]]:
        """The modules of the model that run on this thread while the context lasts."""
        ran: list[str] = []
        here = threading.get_ident()

        def watch(path: str) -> Any:
            def note(module: torch.nn.Module, args: Any) -> None:
                if threading.get_ident() == here:
                    ran.append(path)

            return note

        handles = []
        try:
            for path, module in self._model.named_modules():
                handles.append(model_hooks.note(module.register_forward_pre_hook(watch(path))))  # noqa: PERF401
            yield ran
        finally:
            for handle in handles:
                model_hooks.remove(handle)


def _is_no_memory(error: Exception) -> bool:
    """Whether there was not enough memory. On the CPU, torch raises a `RuntimeError` for that."""
    kinds = (MemoryError, getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError))
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error))


def _is_same(one: Any, other: Any) -> bool:
    """Whether two outputs are equal bit for bit. What holds no tensors counts as equal."""
    if is_tensor(one) or is_tensor(other):
        return is_tensor(one) and is_tensor(other) and _has_same_bits(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_is_same(each, other[key]) for key, each in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if is_dataclass(one):
        return all(_is_same(getattr(one, field.name, None), getattr(other, field.name, None)) for field in fields(one))
    return True


def _has_same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.shape, one.dtype, one.device, one.layout) != (other.shape, other.dtype, other.device, other.layout):
        return False
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())  # noqa: PLR0124
