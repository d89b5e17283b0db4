"""Hooking a torch model up to a store."""

from __future__ import annotations

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
from .base_store import ActivationStore, room_for_caller, stage
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
    forward pass and its result are never changed. It waits while the store's queue is full; and if the store cannot take
    the rows, the context stops capturing, warns, and raises the error where the `with` block ends.

    Args:
        model: Any module: a `transformers` model, a TransformerLens model, one of your own.
        components: For every module to capture, its path in the model (as in `model.named_modules()`, such as
            `"encoder.layer.2"` or `"blocks.0.hook_resid_post"`) and the store's component. Where a module gives a tuple,
            its first element is taken. A path that ends in `":input"` or `":output"` has a `point` of its own, so
            that both can be taken of one module.
        store: Where the rows go. All components of a ring must be captured, for only whole rows come out of it; where
            some of them are written by hand (token ids, say), give a `producer()` of the store, and write to that.
        mask: Which rows to keep: booleans of the shape of the activations without their last axis, True to keep;
            the name of one of the model's arguments (`"attention_mask"`); or a function of the model's
            positional and keyword arguments, `mask(args, kwargs)`.
        point: Whether to take the modules' `"output"` or their `"input"`.

    Raises:
        ValueError: If the model has no such module, or not all components are captured.
        IndexError: If the store has no such component.
    """
    return Capture(model, components, store, mask=mask, point=point)


class Capture:
    """What `capture` returns."""

    error: Exception | None
    """Why capturing stopped, if it did."""
    passes: int
    """Forward passes stored."""
    passes_dropped: int
    """Forward passes that failed, or did not run every captured module: nothing of them was stored."""

    def __init__(
        self,
        model: torch.nn.Module,
        components: Mapping[str, int | str],
        store: ActivationStore | Producer,
        *,
        mask: Mask = None,
        point: Literal["output", "input"] = "output",
    ) -> None:
        if not HAS_TORCH:
            raise ValueError("capture needs torch; install it")
        if point not in ("output", "input"):
            raise ValueError(f'point is {point!r}; use "output" or "input"')
        if not components:
            raise ValueError("there is nothing to capture; name at least one module and its component")
        self._model = model
        self._modules = [_module(model, path, point) for path in components]
        self._to: _Lanes | _Store = _Lanes(store) if isinstance(store, RingStore | Producer) else _Store(store)
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
        if self._signature is not None and mask not in self._signature.parameters and not any(
            parameter.kind is parameter.VAR_KEYWORD for parameter in self._signature.parameters.values()
        ):
            raise ValueError(f"the model's forward has no argument {mask!r} to take the mask from; it has {', '.join(self._signature.parameters)}")
        self._hooks: list[RemovableHandle] = []
        self._threads = threading.local()
        self._lock = threading.Lock()
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
        self._drop_pass()
        if self.error is None:
            try:
                self._threads.mask = self._mask_of(args, kwargs)
                self._threads.inside = True
            except Exception as error:  # noqa: BLE001
                self._stop(error)

    def _end(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """A forward pass has ended, or failed."""
        missing = self._drop_pass()
        self._threads.inside = False
        if missing and output is not None and self.error is None:
            self._stop(ValueError(
                f"the forward pass did not run {', '.join(missing)}, so its rows cannot be aligned; capture modules that run in every pass"
            ))

    def _on_output(self, number: int, path: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
            self._take(number, path, output)

        return hook

    def _on_input(self, number: int, path: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            self._take(number, path, args or tuple(kwargs.values()))

        return hook

    def _take(self, number: int, path: str, activations: Any) -> None:
        if self.error is not None:
            return
        try:
            rows = self._rows(path, activations)
            taken: dict[int, Any] = self._threads.__dict__.setdefault("taken", {})
            if number in taken:
                # An earlier pass, of a part of the model, broke off.
                self._drop_pass()
            taken[number] = self._to.stage(rows, self._mask_now(), hold=len(self._modules) > 1)
            if len(taken) == len(self._modules):
                self._threads.taken = {}
                self._to.write([(self._components[number], taken[number]) for number in range(len(taken))])
                with self._lock:
                    self.passes += 1
        except Exception as error:  # noqa: BLE001
            self._threads.taken = {}
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
        if self._signature is not None:
            bound = self._signature.bind_partial(*args, **kwargs).arguments
            return bound.get(self._mask, kwargs.get(self._mask))
        return self._mask(args, kwargs) if callable(self._mask) else self._mask

    def _mask_now(self) -> Any:
        if self._threads.__dict__.get("inside"):
            return self._threads.mask
        if self._mask is None:
            return None
        if callable(self._mask) or isinstance(self._mask, str):
            raise ValueError("the mask comes from the model's arguments, but a part of the model was called, not the model; capture that part")
        return self._mask

    def _drop_pass(self) -> list[str]:
        """Forgets an incomplete pass. Returns the modules it lacked."""
        taken: dict[int, Any] = self._threads.__dict__.get("taken") or {}
        if not taken:
            return []
        missing = [repr(path) for number, (_, path, _) in enumerate(self._modules) if number not in taken]
        taken.clear()
        with self._lock:
            self.passes_dropped += 1
        return missing

    def _stop(self, error: Exception) -> None:
        with self._lock:
            if self.error is not None:
                return
            self.error = error
        message = f"capturing has stopped, and the `with` block will raise: {type(error).__name__}: {error}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)


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

    def __init__(self, store: RingStore | Producer) -> None:
        self._store = store
        self._ring = store._ring  # noqa: SLF001
        self._free: deque[Producer] = deque()
        self.number = store._components.number  # noqa: SLF001

    def stage(self, rows: torch.Tensor, mask: Any, hold: bool) -> _native.Rows:
        """Copies the rows: what follows in the forward pass may change them."""
        return stage(self._ring, rows, mask)

    def write(self, staged: list[tuple[int, _native.Rows]]) -> None:
        """Writes the rows of one pass."""
        counts = {component: len(rows) for component, rows in staged}
        if len(set(counts.values())) > 1:
            raise ValueError(f"the captured modules give different numbers of rows, by component: {counts}; they cannot be aligned")
        lane = self._take()
        room = room_for_caller()
        for component, rows in staged:
            lane._hand_in(component, rows, room, None)  # noqa: SLF001
            room = "line"  # the pass has begun, so the rest of it goes in, too
        self._free.append(lane)

    def _take(self) -> Producer:
        if isinstance(self._store, Producer):
            return self._store
        try:
            return self._free.pop()
        except IndexError:
            return self._store.producer()

    def close(self) -> None:
        """Ends the lanes."""
        while self._free:
            lane = self._free.pop()
            if lane is not self._store:
                lane.close()


class _Store:
    """Writes to any other store."""

    def __init__(self, store: Any) -> None:
        self._store: ActivationStore = store
        self._lock = threading.Lock()

    def number(self, component: int | str) -> int:
        if isinstance(component, str) or not -self._store.n_components <= component < self._store.n_components:
            raise IndexError(f"there is no component {component!r}; this store has {self._store.n_components}, numbered from 0")
        return component % self._store.n_components

    def stage(self, rows: torch.Tensor, mask: Any, hold: bool) -> torch.Tensor:
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
