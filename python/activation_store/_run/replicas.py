"""What runs the batches: a copy of a model, or a function of the user's own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeAlias

from .._hooks.early_stop import EarlyStop
from .._hooks.hook_points import HookPoint
from .._hooks.pass_mask import Mask
from .._hooks.probe import Probe
from .._hooks.view import NoViewError, is_compiled, path_in_view, view_of
from .._rows.torch import HAS_TORCH, is_tensor, torch
from .._rows.warnings import warn
from ..capture import Capture, Hooks, check_hooks
from ..errors import StoreClosedError, StoreFullError
from .first_pass import FirstPass, layout_of
from .gate import Gate
from .opening import Opens
from .positions import Position, value_of

Mode: TypeAlias = Literal["eval", "keep"]
"""Whether a view runs in eval mode, or in the mode that the model is in when the run begins."""


class Replica(Protocol):
    """Runs batches on one thread and hands their rows in. Its context lasts as long as the thread runs."""

    def __enter__(self) -> Any: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

    @property
    def model(self) -> Any:
        """The model, None for a function."""

    def run(self, index: int, batch: Any) -> bool:
        """Runs a batch, which has that index, and hands its rows in. False if no more rows are taken."""

    def remove(self) -> None:
        """Takes the hooks off the model, if there are any."""


class Passes(NamedTuple):
    """How a model's passes are run."""

    mask: Mask = None
    point: Any = "output"
    mode: Mode = "eval"
    hooks: Hooks = "check"
    stop_early: bool = True


class ModelReplica:
    """A model, of which some modules are captured. A view of it runs, if it can have one."""

    def __init__(
        self, model: torch.nn.Module, modules: Mapping[str, str], opening: Opens, number: int, start: Position | None, passes: Passes, gate: Gate
    ) -> None:
        self.model = model
        names = list(modules.values())
        if len(set(names)) != len(names):
            raise ValueError(f"two modules have one name in {names}; give each a name of its own")
        check_hooks(passes.hooks)
        if passes.mode not in ("eval", "keep"):
            raise ValueError(f'mode is {passes.mode!r}; use "eval" or "keep"')
        self._modules = modules
        self._passes = passes
        self._gate = gate
        self._sink = FirstPass(opening, number, names, start)
        self._probe: Probe | None = None
        """What the first pass has to show; None after it, and if there is no view."""
        self._early_stop: EarlyStop | None = None
        self._is_removed = False
        self._capture = self._of_view()

    def __enter__(self) -> Self:
        self._capture.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._capture.__exit__(kind, error, traceback)

    def run(self, index: int, batch: Any) -> bool:
        self._sink.begin_batch(index)
        args, kwargs = _arguments(batch)
        try:
            with self._gate.passing() as may_run:
                if not may_run:
                    return False
                self._run(index, args, kwargs)
        except BaseException:
            with contextlib.suppress(Exception):  # the model's error comes first; passes before it count
                self._sink.hand_over()
            raise
        is_open = self._sink.hand_over()  # no lock of the model's is held any more, and the gate is free
        if self._capture.error is not None:
            raise self._capture.error
        if self._early_stop is not None:
            self._early_stop.check()
        return is_open and not self._capture.stopped

    def remove(self) -> None:
        self._is_removed = True
        self._capture._remove()  # noqa: SLF001

    def _of_view(self) -> _OwnCapture:
        """A capture of the model's view, or of the model if there is none."""
        try:
            view = view_of(self.model)
        except NoViewError as error:
            return self._of_model(str(error))
        modules = self._modules
        if is_compiled(self.model):
            modules = {path_in_view(path): name for path, name in modules.items()}
            warn(f"{type(self.model).__name__} has parts that torch.compile made; what runs is a view of the uncompiled modules, because compiled code skips hooks")
        if self._passes.mode == "eval":
            for module in view.modules():
                module.training = False  # not by `eval()`: a model's own could change the parameters, which are shared
        self._probe = Probe(self.model)
        self._early_stop = EarlyStop(view) if self._passes.stop_early else None
        return _OwnCapture(view, modules, self._sink, early_stop=self._early_stop, mask=self._passes.mask, point=self._passes.point, hooks="allow")

    def _of_model(self, reason: str) -> _OwnCapture:
        """A capture of the model itself."""
        self._probe = self._early_stop = None
        mode = ", and in train mode, because the mode is the model's" if self._passes.mode == "eval" and self.model.training else ""
        capture = _OwnCapture(self.model, self._modules, self._sink, mask=self._passes.mask, point=self._passes.point, hooks=self._passes.hooks)
        warn(
            f"the model itself runs{mode}: there is no view of {type(self.model).__name__}, because {reason}. Hooks and modes that you "
            "change meanwhile change the captured rows"
            + ("" if self._passes.hooks == "allow" else ", so such a change is an error")
        )
        return capture

    def _run(self, index: int, args: Any, kwargs: Any) -> None:
        probe, self._probe = self._probe, None
        if probe is None:
            self._call(args, kwargs)
            return

        def run_view() -> Any:
            self._sink.begin_batch(index)  # forgets the rows of a pass that failed
            return self._call(args, kwargs)

        reason = probe.why_not(run_view, args, kwargs)
        if reason is not None:
            self._capture._remove()  # noqa: SLF001
            if self._is_removed:
                return  # the run has been ended meanwhile
            self._capture = self._of_model(reason)
            self._capture.__enter__()
            self._sink.begin_batch(index)  # forgets the rows of the view
            self._call(args, kwargs)

    def _call(self, args: Any, kwargs: Any) -> Any:
        model = self._capture.model
        with self._capture.of_this_thread():
            return model(*args, **kwargs) if self._early_stop is None else self._early_stop.run(model, args, kwargs)


class FunctionReplica:
    """A function that gives the rows of a batch, by component."""

    model = None

    def __init__(
        self, function: Callable[[Any], Mapping[str, Any]], opening: Opens, number: int, start: Position | None, gate: Gate
    ) -> None:
        self._gate = gate
        self._start = start
        self._function = function
        self._opening = opening
        self._number = number

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Has no hooks to take off."""

    def run(self, index: int, batch: Any) -> bool:
        if self._start is not None and (index, 1) == self._start:
            return True  # a batch is one pass, and the store has it
        with self._gate.passing() as may_run:
            if not may_run:
                return False
            rows = self._function(batch)
        if not isinstance(rows, Mapping):
            raise TypeError(f"the function gives {type(rows).__name__}; it must give the rows by name, such as {{'layer.2': rows}}")
        layout, by_name = layout_of(rows), {str(name): batch for name, batch in rows.items()}
        lane = None
        try:
            lane = self._opening.lane(self._number, layout)
            lane.extend_pass(by_name, value=value_of(index, 1))
        except StoreFullError:
            pass  # the store rejects: nothing of this pass is stored
        except StoreClosedError:
            if self._opening.has_ended or (lane is not None and lane._lane.closed):  # noqa: SLF001
                return False
            raise  # another store has ended, to which the rows' memory belongs
        return True

    def remove(self) -> None:
        """Has none."""


def replica_of(
    model: Any, modules: Any, opening: Opens, number: int, start: Position | None, passes: Passes, gate: Gate | None = None
) -> Replica:
    """What runs a model, or a function.

    Raises:
        TypeError: If it is neither, or the modules are missing or too many.
        ValueError: If the model has no such module, or a setting cannot be so.
    """
    gate = Gate() if gate is None else gate
    if HAS_TORCH and isinstance(model, torch.nn.Module):
        if modules is None:
            raise TypeError("name the modules to capture: a path, a list of paths, or a mapping from paths to names")
        if isinstance(modules, str):
            modules = [modules]
        if not isinstance(modules, Mapping):
            modules = {path: path for path in modules}
        return ModelReplica(model, {path: str(name) for path, name in modules.items()}, opening, number, start, passes, gate)
    if not callable(model):
        raise TypeError(f"the model is {type(model).__name__}; give a torch module, a function, or a list of them")
    if modules is not None or passes.mask is not None or (passes.point, passes.mode, passes.hooks) != ("output", "eval", "check"):
        raise TypeError("modules, mask, point, mode and hooks are for a torch module; a function gives the rows to keep, by name")
    return FunctionReplica(model, opening, number, start, gate)


class _OwnCapture(Capture):
    """Captures the passes that its replica runs, and no others, also not of the same thread. The replica raises the error itself."""

    _thread_id = -1
    """The thread that runs a pass now; no thread has -1."""
    _checks_modes = True
    _advice = "run a copy of the model for what needs other hooks or another mode"

    def __init__(self, *args: Any, early_stop: EarlyStop | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._early_stop = early_stop

    @contextlib.contextmanager
    def of_this_thread(self) -> Iterator[None]:
        """Captures what this thread runs, while the context lasts."""
        self._thread_id = threading.get_ident()
        try:
            yield
        finally:
            self._thread_id = -1

    @property
    def model(self) -> torch.nn.Module:
        """What is captured: the view, or the model."""
        return self._model

    @property
    def own_thread(self) -> int | None:
        return self._thread_id

    def _take(self, number: int, point: HookPoint, activations: Any) -> None:
        super()._take(number, point, activations)
        if self._early_stop is not None and not self._is_foreign():
            self._early_stop.called(number)

    def _warn(self, error: Exception) -> None:
        """The training loop raises it."""

    def _wrong_at_end(self) -> Exception | None:
        """The run says whether no row was kept: other replicas may have some."""
        return self._error


def _arguments(batch: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The arguments that a batch is: a mapping's by name; a tuple's, or a list's of tensors, in order; else one."""
    if isinstance(batch, Mapping):
        return (), batch
    if isinstance(batch, tuple) or (isinstance(batch, list) and batch and all(is_tensor(item) for item in batch)):
        return tuple(batch), {}
    return (batch,), {}
