"""Hooking a torch model up to a store."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from . import _native
from ._arrays import mask_bytes, select
from ._torch import HAS_TORCH, is_tensor, torch
from .base_store import ActivationStore, on_event_loop, stage
from .errors import StoreFullError
from .ring_store import Producer, RingStore

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

Mask = Any
"""None; booleans, one per row; the name of an argument of the model's `forward`; or a function of its arguments."""


def capture(
    model: torch.nn.Module,
    components: Mapping[str, int | str],
    store: ActivationStore | Producer,
    *,
    mask: Mask = None,
    point: Literal["output", "input"] = "output",
    wait: bool | None = None,
) -> Capture:
    """Stores what a model's modules put out, while the context lasts.

        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
        >>> store = RingStore({"pre": 8, "post": 8}, batch_size=4, window=8)
        >>> with capture(model, {"0": "pre", "1": "post"}, store):
        ...     _ = model(torch.randn(10, 4))
        >>> store.flush()
        >>> store.current_activations_stored_per_component
        [10, 10]

    The rows of one forward pass go to the store together, once every component has come, so components stay aligned;
    those of a pass that fails go nowhere. Each context, and each thread that calls the model, has a lane of its own. The
    forward pass and its result are never changed. It waits while the store's queue is full (a store that rejects loses
    the whole pass instead, see `passes_dropped`); and if the store cannot take the rows, the context stops capturing,
    warns, and raises the error where the `with` block ends. What gradient checkpointing runs again is not stored again.

    Args:
        model: Any module: a `transformers` model, a TransformerLens model, one of your own.
        components: For every module to capture, its path in the model (as in `model.named_modules()`, such as
            `"encoder.layer.2"` or `"blocks.0.hook_resid_post"`) and the store's component. Where a module gives a tuple,
            its first element is taken. A path that ends in `":input"` or `":output"` has a `point` of its own, so
            that both can be taken of one module.
        store: Where the rows go. All components of a ring must be captured, for only whole rows come out of it; where
            some of them are written by hand (token ids, say), give a `producer()` of the store, and write to that. A pass
            that fails between two components closes the lane, for its components no longer match.
        mask: Which rows to keep: booleans of the shape of the activations without their last axis, True to keep (a mask
            over the first of those axes goes for all rows under it); the name of one of the model's arguments
            (`"attention_mask"`); or a function of the model's positional and keyword arguments, `mask(args, kwargs)`. A
            call that leaves out an argument which the model's `forward` names keeps all rows.
        point: Whether to take the modules' `"output"` or their `"input"`.
        wait: Whether a pass waits while the store's queue is full. By default it does, except on a thread that runs an
            event loop (a cell of a Jupyter notebook does): there it only warns, once, that rows pile up.

    Raises:
        ValueError: If the model has no such module, not all components are captured, or a module is captured twice.
        IndexError: If the store has no such component.
    """
    return Capture(model, components, store, mask=mask, point=point, wait=wait)


class Capture:
    """What `capture` returns."""

    error: Exception | None
    """Why capturing stopped, if it did."""
    passes: int
    """Forward passes stored."""
    passes_dropped: int
    """Forward passes that failed, did not run every captured module, or were rejected: nothing of them was stored."""

    def __init__(
        self,
        model: torch.nn.Module,
        components: Mapping[str, int | str],
        store: ActivationStore | Producer,
        *,
        mask: Mask = None,
        point: Literal["output", "input"] = "output",
        wait: bool | None = None,
    ) -> None:
        if not HAS_TORCH:
            raise ValueError("capture needs torch; install it")
        if point not in ("output", "input"):
            raise ValueError(f'point is {point!r}; use "output" or "input"')
        if not components:
            raise ValueError("there is nothing to capture; name at least one module and its component")
        self._model = model
        self._modules = [_module(model, path, point) for path in components]
        seen: dict[tuple[int, str], str] = {}
        for path, (module, _, which) in zip(components, self._modules, strict=True):
            first = seen.setdefault((id(module), which), path)
            if first != path:
                raise ValueError(f"{first!r} and {path!r} are the {which} of one module; capture it once")
        self._to: _Lanes | _Store = _Lanes(store, wait) if isinstance(store, RingStore | Producer) else _Store(store)
        self._components = [self._to.number(component) for component in components.values()]
        if len(set(self._components)) != len(self._components):
            raise ValueError("two modules are captured into one component; give each a component of its own")
        if isinstance(store, RingStore) and len(components) < store.n_components:
            missing = [name for number, name in enumerate(store.component_names) if number not in self._components]
            raise ValueError(
                f"nothing is captured into {', '.join(map(repr, missing))}, so no row would be whole; "
                "capture it too, or capture into a store.producer() and write the rest to that yourself"
            )
        self._mask = mask
        self._signature = inspect.signature(model.forward) if isinstance(mask, str) else None
        if self._signature is not None:
            parameters = self._signature.parameters.values()
            self._named = [parameter.name for parameter in parameters if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)]
            if mask not in self._named and all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
                raise ValueError(f"the model's forward has no argument {mask!r} to take the mask from; it has {', '.join(self._named)}")
        self._hooks: list[RemovableHandle] = []
        self._thread = _Thread()
        self._lock = threading.Lock()
        self._passes_of_parts = 0
        self.error, self.passes, self.passes_dropped = None, 0, 0

    def __enter__(self) -> Self:
        if self._hooks:
            raise ValueError("this capture has been entered already; make another with capture()")
        try:
            self._hooks.append(self._model.register_forward_pre_hook(self._begin, with_kwargs=True))
            for number, (module, path, which) in enumerate(self._modules):
                if which == "output":
                    hook = module.register_forward_hook(self._on_output(number, path))
                else:
                    hook = module.register_forward_pre_hook(self._on_input(number, path), with_kwargs=True)
                self._hooks.append(hook)
            self._hooks.append(self._model.register_forward_hook(self._end, always_call=True))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()
        self._to.close()
        if kind is None and self.error is not None:
            raise self.error

    def _remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    # The hooks. None of them returns anything, so torch goes on with what it has.

    def _begin(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        """A forward pass begins on this thread."""
        if self.error is not None or _is_recomputing():
            return
        self._drop_part()
        try:
            self._thread.mask = self._mask_of(args, kwargs)
        except Exception as error:  # noqa: BLE001
            self._stop(error)
            return
        self._thread.inside, self._thread.passes, self._thread.passes_of_parts = True, 0, self._passes_of_parts

    def _end(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """A forward pass has ended, or failed."""
        if _is_recomputing() or not self._thread.inside:
            return
        self._thread.inside = False
        taken = self._thread.taken
        # A wrapper may run its copies of the model on other threads.
        if self.error is not None or (not taken and (self._thread.passes or self._passes_of_parts != self._thread.passes_of_parts)):
            return
        missing = ", ".join(repr(path) for number, (_, path, _) in enumerate(self._modules) if number not in taken)
        self._drop()
        if output is not None:
            again = "as often as the others" if self._thread.passes else "at all"
            self._stop(ValueError(
                f"the forward pass did not run {missing} {again}, so its rows cannot be aligned; capture modules that run in every pass"
            ))

    def _on_output(self, number: int, path: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
            self._take(number, path, output)

        return hook

    def _on_input(self, number: int, path: str) -> Callable[..., None]:
        first = _first_parameter(self._modules[number][0])

        def hook(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            self._take(number, path, args or (kwargs[first] if first in kwargs else tuple(kwargs.values())))

        return hook

    def _take(self, number: int, path: str, activations: Any) -> None:
        if self.error is not None or _is_recomputing():
            return
        taken = self._thread.taken
        try:
            rows = self._rows(path, activations)
            if number in taken:
                if self._thread.inside:
                    raise ValueError(f"module {path!r} ran twice in one forward pass before the others had run, so the rows cannot be aligned")  # noqa: TRY301
                self._drop_part()  # an earlier pass, of a part of the model, broke off
            taken[number] = self._to.stage(rows, self._components[number], self._mask_now(), hold=len(self._modules) > 1)
            if len(taken) == len(self._modules):
                staged = [(self._components[number], taken[number]) for number in range(len(taken))]
                taken.clear()
                self._thread.passes += 1
                with self._lock:
                    self._passes_of_parts += not self._thread.inside
                self._to.write(staged)
                with self._lock:
                    self.passes += 1
        except _RejectedError:
            self._drop()
        except Exception as error:  # noqa: BLE001
            taken.clear()
            self._stop(error)

    @staticmethod
    def _rows(path: str, activations: Any) -> torch.Tensor:
        given = activations
        if isinstance(activations, Mapping):
            activations = next(iter(activations.values()), None)
        while isinstance(activations, tuple | list) and activations:
            activations = activations[0]
        if not is_tensor(activations):
            raise TypeError(f"module {path!r} gives {type(given).__name__}, not a tensor or a tuple of them")
        rows: torch.Tensor = activations.detach()
        return rows

    def _mask_of(self, args: Any, kwargs: Any) -> Any:
        if self._signature is None:
            return self._mask(args, kwargs) if callable(self._mask) else self._mask
        if self._mask in kwargs:
            return kwargs[self._mask]
        if self._mask not in self._named:
            raise ValueError(f"this call gave no argument {self._mask!r} to take the mask from; pass it by name")
        return self._signature.bind_partial(*args, **kwargs).arguments.get(self._mask)

    def _mask_now(self) -> Any:
        if self._thread.inside:
            return self._thread.mask
        if callable(self._mask) or isinstance(self._mask, str):
            raise ValueError("the mask comes from the model's arguments, but a part of the model was called, not the model; capture that part")
        return self._mask

    def _drop_part(self) -> None:
        """Forgets an incomplete pass, if there is one."""
        if self._thread.taken:
            self._drop()

    def _drop(self) -> None:
        self._thread.taken.clear()
        with self._lock:
            self.passes_dropped += 1

    def _stop(self, error: Exception) -> None:
        with self._lock:
            if self.error is not None:
                return
            self.error = error
        message = f"capturing has stopped, and the `with` block will raise: {type(error).__name__}: {error}"
        _warn(message)


class _Thread(threading.local):
    """Where a thread is in a forward pass."""

    def __init__(self) -> None:
        self.inside = False
        self.mask: Any = None
        self.taken: dict[int, Any] = {}
        """The rows of the pass so far, by number of the module."""
        self.passes = 0
        """How often all captured modules have run since it began."""
        self.passes_of_parts = 0
        """What `_passes_of_parts` was then."""


class _RejectedError(Exception):
    """The ring is full, and was made to say so. Nothing of the pass was written."""


def _warn(message: str) -> None:
    """Warns, also where warnings are errors: those must not get into the forward pass."""
    with contextlib.suppress(Warning):
        warnings.warn(message, RuntimeWarning, stacklevel=4)


def _is_recomputing() -> bool:
    """Whether a backward pass is under way on this thread: a forward pass in it is gradient checkpointing's second."""
    current = getattr(torch._C, "_current_graph_task_id", None)  # noqa: SLF001
    return current is not None and current() != -1


def _first_parameter(module: torch.nn.Module) -> str | None:
    try:
        return next(iter(inspect.signature(module.forward).parameters), None)
    except (TypeError, ValueError):  # compiled code has none
        return None


def _module(model: torch.nn.Module, path: str, point: str) -> tuple[torch.nn.Module, str, str]:
    """The module, its path, and whether its input or its output is wanted."""
    name, _, suffix = path.rpartition(":")
    if suffix in ("output", "input") and ":" in path:
        path, point = name, suffix
    try:
        return model.get_submodule(path), path, point
    except AttributeError:
        paths = [name for name, _ in model.named_modules()]
        close = difflib.get_close_matches(path, paths, n=3) or paths[1:4]
        raise ValueError(f"the model has no module {path!r}; it has {', '.join(map(repr, close))}, ...") from None


class _Lanes:
    """Writes to a ring: each pass on a lane that nobody else uses meanwhile."""

    def __init__(self, store: RingStore | Producer, wait: bool | None) -> None:
        self._store = store
        self._ring = store._ring  # noqa: SLF001
        self._components = store._components  # noqa: SLF001
        self._free: deque[Producer] = deque()
        self._wait = wait
        self._has_warned = False
        self.number = self._components.number

    def stage(self, rows: torch.Tensor, component: int, mask: Any, hold: bool) -> _native.Rows:
        """Copies the rows: what follows in the forward pass may change them."""
        return stage(self._ring, self._components, component, rows, mask)

    def write(self, staged: list[tuple[int, _native.Rows]]) -> None:
        """Writes the rows of one pass."""
        counts = {component: len(rows) for component, rows in staged}
        if len(set(counts.values())) > 1:
            raise ValueError(f"the captured modules give different numbers of rows, by component: {counts}; they cannot be aligned")
        lane = self._take()
        begun = False
        try:
            for component, rows in staged:
                if begun:
                    lane._hand_in(component, rows, "line", None)  # noqa: SLF001
                else:
                    self._begin(lane, component, rows)
                begun = True
        except BaseException as error:
            if begun or not isinstance(error, Exception):
                lane.close()  # its components may no longer match
                raise
            self._free_again(lane)  # nothing was written
            if isinstance(error, StoreFullError):
                raise _RejectedError from error
            raise
        self._free_again(lane)

    def _begin(self, lane: Producer, component: int, rows: _native.Rows) -> None:
        """Hands in the first rows of a pass; the rest follows without waiting."""
        wait = self._wait
        if wait is None and on_event_loop():
            try:
                lane._hand_in(component, rows, "wait", 0)  # noqa: SLF001
                return
            except TimeoutError:
                wait = False
                if not self._has_warned:
                    self._has_warned = True
                    _warn("this thread runs an event loop (a Jupyter cell does), so capture does not wait for the trainer, and rows pile up; "
                          "use capture(..., wait=True), or capture on another thread")  # fmt: skip
        lane._hand_in(component, rows, "line" if wait is False else "wait", None)  # noqa: SLF001

    def _take(self) -> Producer:
        if isinstance(self._store, Producer):
            return self._store
        try:
            return self._free.pop()
        except IndexError:
            return self._store.producer()

    def _free_again(self, lane: Producer) -> None:
        if lane is not self._store:
            self._free.append(lane)

    def close(self) -> None:
        """Ends the lanes."""
        while self._free:
            self._free.pop().close()


class _Store:
    """Writes to any other store."""

    def __init__(self, store: Any) -> None:
        self._store: ActivationStore = store
        self._lock = threading.Lock()

    def number(self, component: int | str) -> int:
        if isinstance(component, str) or not -self._store.n_components <= component < self._store.n_components:
            raise IndexError(f"there is no component {component!r}; this store has {self._store.n_components}, numbered from 0")
        return component % self._store.n_components

    def stage(self, rows: torch.Tensor, component: int, mask: Any, hold: bool) -> torch.Tensor:
        """Rows that nobody will change, `[rows, features]`."""
        rows, mask = select(rows, mask)
        flat = rows.reshape(-1, rows.shape[-1])
        if mask is not None:
            return flat[torch.from_numpy(mask_bytes(mask, tuple(rows.shape[:-1]))) != 0]
        return flat.clone() if hold else flat

    def write(self, staged: list[tuple[int, torch.Tensor]]) -> None:
        """Writes the rows of one pass, not mixed with another thread's."""
        with self._lock:
            for component, rows in staged:
                self._store.extend(rows, component)

    def close(self) -> None:
        """Nothing to do."""
