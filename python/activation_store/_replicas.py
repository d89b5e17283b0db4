"""What runs the batches: a copy of a model, or a function of the user's own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from ._first_pass import FirstPass, layout_of
from ._opening import Opens
from ._pass_mask import Mask
from ._positions import Position, value_of
from ._torch import HAS_TORCH, is_tensor, torch
from .errors import StoreClosedError, StoreFullError
from .hooks import Capture


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


class ModelReplica:
    """A model, of which some modules are captured."""

    def __init__(
        self,
        model: torch.nn.Module,
        modules: Mapping[str, str],
        opening: Opens,
        number: int,
        start: Position | None,
        mask: Mask,
        point: Any,
    ) -> None:
        self.model = model
        names = list(modules.values())
        if len(set(names)) != len(names):
            raise ValueError(f"two modules have one name in {names}; give each a name of its own")
        self._sink = FirstPass(opening, number, names, start)
        self._capture = _OwnCapture(model, modules, self._sink, mask=mask, point=point)

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
            with self._capture.of_this_thread():
                self.model(*args, **kwargs)
        finally:  # no lock of the model's is held any more; passes before an error count
            is_open = self._sink.hand_over()
        if self._capture.error is not None:
            raise self._capture.error
        return is_open and not self._capture.stopped

    def remove(self) -> None:
        self._capture._remove()  # noqa: SLF001


class FunctionReplica:
    """A function that gives the rows of a batch, by component."""

    model = None

    def __init__(
        self, function: Callable[[Any], Mapping[str, Any]], opening: Opens, number: int, start: Position | None
    ) -> None:
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


def replica_of(model: Any, modules: Any, opening: Opens, number: int, start: Position | None, mask: Mask, point: Any) -> Replica:
    """What runs a model, or a function.

    Raises:
        TypeError: If it is neither, or the modules are missing or too many.
        ValueError: If the model has no such module.
    """
    if HAS_TORCH and isinstance(model, torch.nn.Module):
        if modules is None:
            raise TypeError("name the modules to capture: a path, a list of paths, or a mapping from paths to names")
        if isinstance(modules, str):
            modules = [modules]
        if not isinstance(modules, Mapping):
            modules = {path: path for path in modules}
        return ModelReplica(model, {path: str(name) for path, name in modules.items()}, opening, number, start, mask, point)
    if not callable(model):
        raise TypeError(f"the model is {type(model).__name__}; give a torch module, a function, or a list of them")
    if modules is not None or mask is not None or point != "output":
        raise TypeError("modules, mask and point are for a torch module; a function gives the rows to keep, by name")
    return FunctionReplica(model, opening, number, start)


class _OwnCapture(Capture):
    """Captures the passes that its replica runs, and no others, also not of the same thread. The replica raises the error itself."""

    _thread_id = -1
    """The thread that runs a pass now; no thread has -1."""

    @contextlib.contextmanager
    def of_this_thread(self) -> Iterator[None]:
        """Captures what this thread runs, while the context lasts."""
        self._thread_id = threading.get_ident()
        try:
            yield
        finally:
            self._thread_id = -1

    @property
    def own_thread(self) -> int | None:
        return self._thread_id

    def _warn(self, error: Exception) -> None:
        """The training loop raises it."""


def _arguments(batch: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The arguments that a batch is: a mapping's by name; a tuple's, or a list's of tensors, in order; else one."""
    if isinstance(batch, Mapping):
        return (), batch
    if isinstance(batch, tuple) or (isinstance(batch, list) and batch and all(is_tensor(item) for item in batch)):
        return tuple(batch), {}
    return (batch,), {}
