"""Hooks that store what a model's modules put out, while you run the model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from ._hooks import live, model_hooks
from ._hooks.hook_points import HookPoint, check_paths, hook_points
from ._hooks.pass_mask import Mask, PassMask
from ._hooks.sinks import PassRejected, Sink, check_whole, sink_into
from ._hooks.view import is_compiled
from ._rows.torch import HAS_TORCH, torch
from ._rows.warnings import warn
from .errors import StoreClosedError

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from .base_store import ActivationStore
    from .producer import Producer


def capture(
    model: torch.nn.Module,
    components: Mapping[str, int | str],
    store: ActivationStore | Producer,
    *,
    mask: Mask = None,
    point: Literal["output", "input"] = "output",
    wait: bool = True,
    hooks: Hooks = "check",
) -> Capture:
    """Stores what a model's modules put out, while the context lasts.

        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
        >>> store = RingStore({"pre": 8, "post": 8}, batch_size=4, window=512)
        >>> with capture(model, {"0": "pre", "1": "post"}, store):
        ...     _ = model(torch.randn(10, 4))
        >>> store.flush()
        >>> store.current_activations_stored_per_component
        [10, 10]

    The rows of one forward pass go to the store together, when every component has come, so components stay aligned. If the
    pass fails, none of its rows are stored. Each context, and each thread that calls the model, has a lane of its own. The
    forward pass and its result are never changed. The pass waits while the store's queue is full, inside the model's `forward`:
    a lock that `forward` holds is held meanwhile, so the training loop must not need it (`activations` hands a pass over when
    the model has returned). A store that rejects drops the whole pass instead (see `passes_dropped`). If the store cannot take the rows, the context stops capturing,
    warns, and raises the error where the `with` block ends. If the mask has kept no row of any pass, that is an error there, too. If the store is closed or aborted, because training has ended, the
    context stops capturing without a warning. In both cases `stopped` is true: leave the block then, because the model would run
    for nothing. What gradient checkpointing runs again is not stored again.

        >>> with torch.no_grad(), capture(model, {"0": "pre", "1": "post"}, store) as captured:
        ...     for inputs in batches:
        ...         if captured.stopped:
        ...             break
        ...         _ = model(inputs)

    Args:
        model: Any module: a `transformers` model, a TransformerLens model, one of your own.
        components: For every module to capture, its path in the model (as in `model.named_modules()`, such as
            `"encoder.layer.2"` or `"blocks.0.hook_resid_post"`) and the store's component. Where a module gives a tuple,
            its first element is taken. A path that ends in `":input"` or `":output"` has a `point` of its own, so
            that both can be taken of one module.
        store: Where the rows go. All components of a ring, a `Recorder` or a `Tee` must be captured, because only whole rows come out of them.
            Where some of a ring's are written by hand (token ids, say), give a `producer()` of the store, and write to that. A pass
            that fails between two components closes the lane, for its components no longer match.
        mask: Which rows to keep: booleans of the shape of the activations without their last axis, True to keep (a mask
            over the first of those axes goes for all rows under it); the name of one of the model's arguments
            (`"attention_mask"`), of which the last positions count where a call runs only these, with a cache; or a function of the model's positional and keyword arguments, `mask(args, kwargs)`. A
            call that leaves out an argument which the model's `forward` names keeps all rows.
        point: Whether to take the modules' `"output"` or their `"input"`.
        wait: Whether a pass waits while the store's queue is full, also on a thread that runs an event loop (a cell of a
            Jupyter notebook does), which stands still meanwhile: train on another thread. False lets rows pile up in memory.
        hooks: `capture` never runs the model, so your own hooks change what is captured. With `"check"` it compares the hooks
            and modules of the model in each pass with the first captured pass's, and stops if they are others. `"allow"`
            stores what comes.

    Raises:
        TypeError: If `components` is no mapping, or its keys are no paths.
        ValueError: If the model has no such module, not all components are captured, or a module is captured twice.
        IndexError: If the store has no such component.

    Entering it raises `ValueError` if another thread is capturing the same model, whose store would get these passes, too, or if
    the model is being captured into this store already.
    """
    return Capture(model, components, store, mask=mask, point=point, wait=wait, hooks=hooks)


Hooks: TypeAlias = Literal["check", "allow"]
"""Whether hooks that change between passes are an error or allowed."""


def check_hooks(hooks: object) -> None:
    """Checks this setting.

    Raises:
        ValueError: If it is none.
    """
    if hooks not in ("check", "allow"):
        raise ValueError(f'hooks is {hooks!r}; use "check" or "allow"')


class Capture:
    """What `capture` returns."""

    def __init__(
        self,
        model: torch.nn.Module,
        components: Mapping[str, int | str],
        store: ActivationStore | Producer | Sink,
        *,
        mask: Mask = None,
        point: Literal["output", "input"] = "output",
        wait: bool = True,
        hooks: Hooks = "check",
    ) -> None:
        if not HAS_TORCH:
            raise ValueError("capture needs torch; install it")
        if point not in ("output", "input"):
            raise ValueError(f'point is {point!r}; use "output" or "input"')
        check_hooks(hooks)
        check_paths(components)
        if not components:
            raise ValueError("there is nothing to capture; name at least one module and its component")
        self._model = model
        self._store = store
        self._points = hook_points(model, components, point)
        self._sink = sink_into(store, wait)
        self._components = [self._sink.number(component) for component in components.values()]
        if len(set(self._components)) != len(self._components):
            raise ValueError("two modules are captured into one component; give each a component of its own")
        check_whole(store, self._components)
        self._mask = PassMask(mask, model)
        self._checks_hooks = hooks == "check"
        self._first_hooks: model_hooks.HooksOf | None = None
        """The hooks of the model in the first pass; None before its end."""
        self._hooks: list[RemovableHandle] = []
        self._thread = _ThreadState()
        self._lock = threading.Lock()
        self._passes_of_parts = 0
        self._error: Exception | None = None
        self._has_stopped = False
        self._passes = self._passes_dropped = 0
        self._entered_on = threading.current_thread()
        self._has_kept = False
        """Whether the mask has kept any row."""

    def __enter__(self) -> Self:
        if self._hooks:
            raise ValueError("this capture has been entered already; make another with capture()")
        self._begin_alone()
        self._sink.note_writer()
        try:
            self._note(self._model.register_forward_pre_hook(self._begin, with_kwargs=True))
            for number, point in enumerate(self._points):
                self._note(point.register(self._taker(number, point)))
            self._note(self._model.register_forward_hook(self._end, always_call=True))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()
        self._sink.close()
        if kind is None and (wrong := self._wrong_at_end()) is not None:
            raise wrong

    def _wrong_at_end(self) -> Exception | None:
        """What the `with` block raises at its end."""
        if self._error is None and self._passes and not self._has_kept and not self._has_stopped:
            return self._mask.nothing_kept(self._passes)
        return self._error

    def __repr__(self) -> str:
        paths = ", ".join(repr(point.path) for point in self._points)
        return f"capture of {paths} of {type(self._model).__name__} into {self._store!r}"

    @property
    def stopped(self) -> bool:
        """Whether no more passes are stored: the store takes no more rows, or `error` says what went wrong."""
        return self._has_stopped or self._sink.closed

    @property
    def error(self) -> Exception | None:
        """Why capturing stopped; None while it has not. Raised where the `with` block ends."""
        return self._error

    @property
    def passes(self) -> int:
        """Forward passes stored so far."""
        return self._passes

    @property
    def passes_dropped(self) -> int:
        """Forward passes of which nothing was stored: they failed, or a store that rejects had no room.

        A pass that does not run every captured module is counted, too. It also stops the capture: see `error`.
        """
        return self._passes_dropped

    def _begin_alone(self) -> None:
        """Notes that this captures the model.

        Raises:
            ValueError: If another thread is capturing the same model, or anything captures the same model into the same store.
        """
        here = threading.current_thread()
        with live.lock:
            for other in filter(None, (ref() for ref in live.using(Capture, [self._model]))):
                runs = (self.own_thread is not None) + (other.own_thread is not None)
                # What captures one thread's passes alone gets no other's.
                if runs < 2 and (runs or other._entered_on is not here or other._store is self._store):
                    raise ValueError(
                        f"this model already has a live capture, which would get these passes, too: {other!r}, entered on thread "
                        f"{other._entered_on.name!r}. End that one first: close its store, and let its `with` block end"
                    )
            self._entered_on = here
            live.add(self)

    def _uses(self, models: Sequence[Any]) -> bool:
        return any(self._model is model for model in models)

    def _note(self, handle: RemovableHandle) -> None:
        self._hooks.append(model_hooks.note(handle))

    def _remove(self) -> None:
        live.remove(self)
        for hook in self._hooks:
            model_hooks.remove(hook)
        self._hooks = []

    # The hooks. None of them returns anything, so torch goes on with what it has.

    def _begin(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        """A forward pass begins on this thread."""
        if self._has_stopped or self._is_foreign() or _is_recomputing():
            return
        self._drop_part()
        try:
            self._check_hooks()
            self._thread.mask = self._mask.of_call(args, kwargs)
        except Exception as error:  # noqa: BLE001
            self._stop(error)
            return
        self._thread.inside, self._thread.passes, self._thread.passes_of_parts = True, 0, self._passes_of_parts

    def _end(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """A forward pass has ended, or failed."""
        if self._is_foreign() or _is_recomputing() or not self._thread.inside:
            return
        self._thread.inside = False
        taken = self._thread.taken
        # A wrapper may run its copies of the model on other threads.
        if self._has_stopped or (not taken and (self._thread.passes or self._passes_of_parts != self._thread.passes_of_parts)):
            return
        missing = ", ".join(repr(point.path) for number, point in enumerate(self._points) if number not in taken)
        self._drop()
        if output is not None:
            again = "as often as the others" if self._thread.passes else "at all"
            advice = "capture modules that run in every pass"
            if is_compiled(self._model):
                advice = (
                    "the model is compiled by torch.compile, and compiled code skips hooks that were put on after it had been compiled. Capture "
                    "with `activations` or `record`, which run a view of the uncompiled modules, or run and capture the uncompiled model"
                )
            self._stop(ValueError(f"the forward pass did not run {missing} {again}, so its rows cannot be aligned; {advice}"))

    def _taker(self, number: int, point: HookPoint) -> Callable[[Any], None]:
        return lambda activations: self._take(number, point, activations)

    def _take(self, number: int, point: HookPoint, activations: Any) -> None:
        if self._has_stopped or self._is_foreign() or _is_recomputing():
            return
        taken = self._thread.taken
        try:
            rows = point.tensor(activations)
            if number in taken:
                if self._thread.inside:
                    raise ValueError(f"module {point.path!r} ran twice in one forward pass before the others had run, so the rows cannot be aligned")  # noqa: TRY301
                self._drop_part()  # an earlier pass, of a part of the model, broke off
            mask = self._thread.mask if self._thread.inside else self._mask.without_call()
            taken[number] = self._sink.stage(rows, self._components[number], mask, hold=len(self._points) > 1)
            if len(taken) == len(self._points):
                staged = [(self._components[number], taken[number]) for number in range(len(taken))]
                self._check_hooks(is_end=True)
                taken.clear()
                self._thread.passes += 1
                with self._lock:
                    self._passes_of_parts += not self._thread.inside
                self._has_kept = self._has_kept or any(len(rows) for _, rows in staged)
                self._sink.write(staged)
                with self._lock:
                    self._passes += 1
        except PassRejected:
            self._drop()
        except StoreClosedError as error:
            self._drop()
            if self._sink.closed:
                self._has_stopped = True
            else:  # another store has ended, to which this one writes as well
                self._stop(error)
        except Exception as error:  # noqa: BLE001
            taken.clear()
            self._stop(error)

    def _check_hooks(self, is_end: bool = False) -> None:
        """Compares the hooks of the model with the first pass's.

        Raises:
            ValueError: If they are others.
        """
        if not self._checks_hooks:
            return
        if self._first_hooks is None:
            if is_end:  # libraries put hooks of their own on in their first pass
                self._first_hooks = model_hooks.HooksOf(self._model, modes=self._checks_modes)
            return
        changed = self._first_hooks.difference(self._model)
        if changed is not None:
            raise ValueError(
                f"{changed} after the first captured pass, so the rows of later passes are another model's; {self._advice}, "
                'or give hooks="allow" if these rows are to be stored'
            )

    _checks_modes = False
    """Whether the modules' modes are compared, too."""
    _advice = "change hooks only outside of the `with` block, or capture with `activations`, which runs a view of the model where it can"

    def _drop_part(self) -> None:
        """Forgets an incomplete pass, if there is one."""
        if self._thread.taken:
            self._drop()

    def _drop(self) -> None:
        self._thread.taken.clear()
        with self._lock:
            self._passes_dropped += 1

    def _stop(self, error: Exception) -> None:
        with self._lock:
            if self._error is not None:
                return
            self._error, self._has_stopped = error, True
        self._warn(error)

    def _warn(self, error: Exception) -> None:
        warn(f"capturing has stopped, and the `with` block will raise: {type(error).__name__}: {error}")

    @property
    def own_thread(self) -> int | None:
        """The only thread whose passes are captured; None if the passes of all threads are."""
        return None

    def _is_foreign(self) -> bool:
        """Whether passes of this thread are not captured."""
        return self.own_thread is not None and self.own_thread != threading.get_ident()


class _ThreadState(threading.local):
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


def _is_recomputing() -> bool:
    """Whether a backward pass is under way on this thread: a forward pass in it is gradient checkpointing's second. Or whether a pass only
    compares outputs."""
    if getattr(model_hooks.probing, "now", False):
        return True
    current = getattr(torch._C, "_current_graph_task_id", None)  # noqa: SLF001
    return current is not None and current() != -1


