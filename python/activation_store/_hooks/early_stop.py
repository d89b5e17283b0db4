"""Ends a forward pass behind the last module that is captured: nothing after it is needed."""

from __future__ import annotations

from typing import Any

from .._rows.torch import torch


class EarlyStop:
    """Counts the calls of the captured modules in the first pass, and ends later passes after the last counted call.

    A pass whose calls come in another order runs to its end. Used by one thread.
    """

    def __init__(self, view: torch.nn.Module) -> None:
        self._first: list[int] | None = None
        """The captured modules in the order in which the first pass called them."""
        self._calls: list[int] = []
        """The same of the pass that runs."""
        self._stop: Stop | None = None
        self._is_on = all(map(_may_be_left, view.modules()))
        self._has_stopped = False
        """Whether any pass was ended early."""
        self._runs_whole = True
        """Whether the pass that runs is to run to its end."""
        self._generates = False
        """Whether the pass that runs calls `generate`, whose length varies."""
        self._problem: str | None = None
        if self._is_on:
            self._watch_generate(view)

    def run(self, view: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        """Calls the view. None if the pass was ended early."""
        self._calls.clear()
        self._runs_whole = not self._is_on or self._first is None
        try:
            output = view(*args, **kwargs)
        except Stop as stop:
            if stop is not self._stop:
                raise
            self._has_stopped = True
            return None
        finally:
            was_stopped, self._stop = self._stop is not None, None
        if was_stopped:
            self._problem = "the model's `forward` caught the exception with which a pass is ended behind the last captured module"
        else:
            self._ended()
        return output

    def check(self) -> None:
        """Raises what a pass has shown to be wrong.

        Raises:
            ValueError: If the number of calls varies, or the model's code has caught the exception that ends a pass.
        """
        if self._problem is not None:
            raise ValueError(f"{self._problem}; give stop_early=False")

    def called(self, number: int) -> None:
        """The captured module of that number has run.

        Raises:
            Stop: If nothing more of this pass is needed.
        """
        self._calls.append(number)
        if self._stop is not None or self._runs_whole or self._first is None or self._calls[-1] != self._first[len(self._calls) - 1]:
            self._runs_whole = True
        elif len(self._calls) == len(self._first):
            self._stop = Stop()  # a new one each time: an exception keeps the frames that it has come through
            raise self._stop

    def _ended(self) -> None:
        """A pass has run to its end."""
        if self._first is None:
            self._first = list(self._calls)
            self._is_on = self._is_on and bool(self._first)
        elif self._is_on and not self._generates and sorted(self._calls) != sorted(self._first):
            self._is_on = False
            if self._has_stopped:
                self._problem = (
                    f"a forward pass ran the captured modules {len(self._calls)} times in all, and the first pass {len(self._first)} times, so "
                    "earlier passes, which were ended after as many calls as the first had, may lack rows"
                )
        self._generates = False

    def _watch_generate(self, view: torch.nn.Module) -> None:
        """Lets a pass that calls `generate` run to its end."""
        for module in view.modules():
            generate = getattr(module, "generate", None)
            if callable(generate) and not isinstance(generate, torch.nn.Module):
                module.__dict__["generate"] = self._watched(generate)

    def _watched(self, generate: Any) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._generates = self._runs_whole = True
            return generate(*args, **kwargs)

        return watched


class Stop(Exception):
    """Ends a forward pass. An `Exception`, because torch runs `always_call` hooks for these alone."""


def _may_be_left(module: torch.nn.Module) -> bool:
    """Whether an exception may leave the module: accelerate takes weights out behind it, and torch.fx prints what leaves it."""
    return "_hf_hook" not in module.__dict__ and not any(each.__name__ == "GraphModule" for each in type(module).__mro__)
