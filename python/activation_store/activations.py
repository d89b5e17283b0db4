"""Runs a model and gives what its modules put out as minibatches, in one loop."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, Unpack, cast, overload

from ._hooks import live
from ._hooks.pass_mask import Mask
from ._ring.loaders import BatchT_co, refuse_worker
from ._ring.settings import RunSettings
from ._rows.dtypes import dtype_name
from ._rows.torch import IterableDataset, torch
from ._rows.warnings import warn
from ._run.dealer import Dealer
from ._run.gate import Gate
from ._run.left_behind import end_left_behind
from ._run.loop import LoopRun
from ._run.opening import Opening, builder
from ._run.overlap import Overlap, runs_on_threads
from ._run.positions import first_positions, resumed_positions
from ._run.progress import NoProgress, Progress
from ._run.replicas import Mode, Passes, replica_of
from ._run.run import Run
from ._run.same_model import check_replicas
from ._run.threads import ThreadRun
from .capture import Hooks
from .ring_store import RingStore, check_settings
from .snapshots import Source

if TYPE_CHECKING:
    from . import _native

BatchT = TypeVar("BatchT")


class _Settings(RunSettings, total=False):
    """What `activations` takes for every model."""

    batch_size: int
    window: int
    dtype: object
    overlap: Overlap
    progress: bool
    resume: Source | None


class _ModuleSettings(_Settings, total=False):
    """What it takes for a torch module."""

    mask: Mask
    point: Literal["output", "input"]
    mode: Mode
    hooks: Hooks
    stop_early: bool


class _AllSettings(_ModuleSettings, total=False):
    """What it takes in all."""

    output: Literal["torch", "numpy"] | None
    stacked: bool


@overload
def activations(
    model: torch.nn.Module | Sequence[torch.nn.Module], batches: Iterable[Any], modules: str, **settings: Unpack[_ModuleSettings]
) -> Activations[torch.Tensor]: ...


@overload
def activations(
    model: torch.nn.Module | Sequence[torch.nn.Module],
    batches: Iterable[Any],
    modules: Mapping[str, str] | list[str] | tuple[str, ...],
    **settings: Unpack[_ModuleSettings],
) -> Activations[dict[str, torch.Tensor]]: ...


@overload
def activations(
    model: Callable[[BatchT], Mapping[str, Any]] | Sequence[Callable[[BatchT], Mapping[str, Any]]],
    batches: Iterable[BatchT],
    **settings: Unpack[_Settings],
) -> Activations[Any]: ...


@overload
def activations(
    model: Any,
    batches: Iterable[Any],
    modules: str | Mapping[str, str] | Sequence[str] | None = ...,
    **settings: Unpack[_AllSettings],
) -> Activations[Any]: ...


def activations(
    model: Any,
    batches: Iterable[Any],
    modules: str | Mapping[str, str] | Sequence[str] | None = None,
    *,
    batch_size: int = 4096,
    window: int = 262_144,
    mask: Mask = None,
    point: Literal["output", "input"] = "output",
    mode: Mode = "eval",
    hooks: Hooks = "check",
    stop_early: bool = True,
    dtype: object = None,
    overlap: Overlap = "auto",
    progress: bool = False,
    resume: Source | None = None,
    output: Literal["torch", "numpy"] | None = None,
    stacked: bool = False,
    **settings: Unpack[RunSettings],
) -> Activations[Any]:
    """Runs a model over batches, and gives what some modules put out as shuffled minibatches.

        >>> for batch in activations(model, tokenised_text, {"encoder.layer.2": "layer.2", "encoder.layer.4": "layer.4"}):
        ...     train(batch["layer.2"], batch["layer.4"])

    On a thread of its own (see `overlap`), the model runs at once, under `no_grad`, while the loop trains. It waits while the
    ring is full. `no_grad`, `autocast` and the current CUDA device belong to a thread: your own do not reach the model's
    thread (set them in a function of your own, see below). In the loop's own thread, each pass begins with what a new thread
    has of grad mode, inference mode, autocast and the default device. So both ways give equal minibatches.

    What runs is a *view* of the model: a copy of its modules that shares its parameters and buffers, with hooks and a mode of
    its own. So you may hook, evaluate and `train()` the model in the loop, and the rows stay the model's. Hooks that are on at
    the start stay on the view. If the model is in eval mode, the first batch also runs on the model itself, to compare the
    outputs. A model that can have no view (FSDP, DDP, `torch.jit`, a `forward` that is a closure over its modules) runs itself:
    a warning says why. `docs/python.md` says more.

    The loop raises an error of the model, of a hook or of `batches` with its own traceback, after the minibatches
    that were captured before it.

    The run ends when the last reference to the iterator goes: you leave the loop, and no name refers to the iterator.
    It also ends at `close()`, at the end of `with activations(...) as batches:`, and when the process exits. If only the
    traceback of an error refers to the iterator (a notebook keeps it), the next run of the model ends it, and warns. Ending
    it discards what was captured and waits up to 5 s for the forward pass under way. Runs of one model live side by side. On
    several ranks, `equally` ends the loops of all with the same minibatch.

    Args:
        model: A torch module, or a list of replicas of it (copies with equal parameters), each of which gets a thread and a lane: batch k goes to
            replica k modulo their number, so that runs repeat bit for bit with `merge="round_robin"`. Or a function
            of your own, or a list of them, that gives a batch's rows by name: `f(batch) -> {"layer.2": rows}`, of
            shape `[..., features]`. Leave out `modules`, `mask` and `point` then.
        batches: What the model is called with: a tensor is its one argument, a mapping its arguments by name, a tuple
            (or a list of tensors, as a `DataLoader` makes them) its arguments in order, anything else its one
            argument. Nothing is moved to a device.
        modules: The modules to capture: a path as in `model.named_modules()`, a list of paths, or a mapping from
            paths to the names that the minibatches get. See `capture` for `":input"`.
        batch_size: Rows of a minibatch.
        window: Rows that a minibatch's rows are spread over. The ring takes the memory of that many.
        mask: Which rows to keep; see `capture`.
        point: Whether to take the modules' `"output"` or their `"input"`.
        mode: `"eval"`: the view runs in eval mode. `"keep"`: in the mode that each module of the model has at the start.
        hooks: Where the model has no view, each pass compares its hooks, modules and modes with the first pass's. With
            `"check"` a change is an error. `"allow"` stores what comes.
        stop_early: Whether a pass of a view ends behind the last captured module. The first pass counts how often each runs. Give
            False if that number varies.
        dtype: Element type for every component of floats. Default: the activations' own type.
        overlap: Whether the model runs on a thread of its own. True: yes, from this call on. False: no, each pass runs in the
            loop's thread when the loop wants a minibatch and none is ready; for one model, with `when_full="wait"`. `"auto"`:
            in the loop's thread if the model has parameters and all of them are on the CPU, where two threads of torch would
            fight for the cores; on a thread otherwise, also for several models, a function (what it computes on is not known),
            batches or a default device elsewhere, and another `when_full`.
        progress: Whether to show a line of `tqdm`: forward passes, rows per second, how full the ring is, who waits.
        resume: Go on from a snapshot of a run of the same model and batches: the folder that `snapshot` was given, or what
            `state_dict` returned. The run starts with the first batch whose rows are needed. If `batches` can be
            indexed, earlier ones are not loaded; otherwise they are loaded and skipped, which a warning says. They
            must come in the same order as before. Batch k must go to the same replica, so give as many models.
        output: Minibatches as `"torch"` tensors or `"numpy"` arrays; by default torch where it is installed.
        stacked: The components as one `[batch, component, feature]` array, instead of a dict by name.
        settings: Others of `RingStore`'s: `seed`, `ready_frames`, `queue_rows`, `drop_last`, `when_full`, `merge`,
            `allow_overcommit`.

    Returns:
        An iterator, also for `async for`. A path alone gives tensors `[batch, features]`. A list or a mapping of modules gives dicts of
        tensors by name, also if it has one module. A function's minibatch is a tensor if it gives one component, else a dict.

    Raises:
        ValueError: If a setting cannot be so, the model has no such module, or replicas are not copies of one model. What only the first pass can tell, the
            loop raises.
        TypeError: If there is no such setting, or the model is neither a module nor a function.
        ImportError: If `progress` is set and tqdm is not installed.
    """
    unknown = sorted(settings.keys() - RunSettings.__annotations__.keys())
    if unknown:
        raise TypeError(f"there is no setting {', '.join(map(repr, unknown))}; use one of {', '.join(RunSettings.__annotations__)}")
    if dtype is not None:
        dtype_name(dtype)
    sizes = {**settings, "batch_size": batch_size, "window": window, "output": output, "stacked": stacked}
    check_settings(**cast("Any", sizes))  # now, not in the first pass
    models = list(model) if isinstance(model, list | tuple) else [model]
    if not models:
        raise ValueError("there is no model; give one, or a list of at least one")
    check_replicas(models)
    has_threads = runs_on_threads(overlap, models, batches, settings.get("when_full", "wait"))
    named = modules is not None and not isinstance(modules, str)
    opening = Opening(builder(dtype, sizes), len(models), waits=has_threads, named=named, mask=mask)
    starts = first_positions(len(models)) if resume is None else resumed_positions(resume, len(models))
    passes, gate = Passes(mask, point, mode, hooks, stop_early), Gate()
    replicas = [replica_of(each, modules, opening, number, start, passes, gate) for number, (each, start) in enumerate(zip(models, starts, strict=True))]
    line = Progress(batches, in_turns=not has_threads) if progress else NoProgress()
    dealer = Dealer(batches, starts, in_turn=settings.get("merge") == "round_robin")
    run = (ThreadRun if has_threads else LoopRun)(replicas, dealer, opening, line, gate)
    if resume is not None:
        opening.resume(RingStore.resume(resume, **cast("Any", sizes)))
    names = modules if modules is None or isinstance(modules, str) else dict(modules) if isinstance(modules, Mapping) else list(modules)
    config = {**sizes, "modules": names, "point": point, "mode": mode, "dtype": None if dtype is None else dtype_name(dtype)}
    result: Activations[Any] = Activations(run, config)
    if end_left_behind(live.using(Activations, [replica.model for replica in replicas if replica.model is not None])):
        warn("another activations(...) ran this model, and only the traceback of an earlier error referred to it: it has been ended")
    live.add(result)
    run.start()
    return result


class Activations(IterableDataset[BatchT_co], Generic[BatchT_co]):
    """What `activations` returns: an iterator over minibatches, and the run of the model that ends with it.

    It is a `torch.utils.data.IterableDataset` without a length, for a `DataLoader` with `batch_size=None, num_workers=0`.
    """

    def __init__(self, run: Run, config: dict[str, Any]) -> None:
        self._run = run
        self._config = config
        # Called when the last reference to this goes, and at exit.
        weakref.finalize(self, run.stop)

    def __iter__(self) -> Iterator[BatchT_co]:
        refuse_worker("a run of a model")
        if self._run.has_served_all:
            warn("a loop over a run that has ended serves nothing: call activations(...) again, or record the rows and loop over a Recording")
        return self

    def __next__(self) -> BatchT_co:
        run = self._run
        del self  # so that the traceback of Ctrl-C does not refer to it, and the run ends
        return cast("BatchT_co", run.next(None))

    def next(self, timeout: float | None = None) -> BatchT_co:
        """The next minibatch.

        In the loop's own thread (see `overlap`), no pass is broken off. So the timeout counts between passes, and the call
        runs one pass, whatever the timeout, if no minibatch is ready.

        Raises:
            TimeoutError: If none was ready in time.
            StopIteration: If the run has ended and everything is served.
            BaseException: The error of the model, a hook or the loader, once, after the last minibatch.
        """
        run = self._run
        del self
        return cast("BatchT_co", run.next(timeout))

    def __aiter__(self) -> AsyncIterator[BatchT_co]:
        return self

    async def __anext__(self) -> BatchT_co:
        run = self._run
        del self
        return cast("BatchT_co", await run.anext())

    def _uses(self, models: Sequence[Any]) -> bool:
        return self._run.uses(models)

    def close(self) -> None:
        """Ends the run: waits for the forward pass under way, takes the hooks off, and discards what was captured."""
        self._run.stop()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No forward pass of this run is under way while the context lasts.

            >>> batches = activations(model, tokenised_text, "encoder.layer.2", batch_size=64, window=1024)
            >>> with batches.paused():
            ...     _ = model.load_state_dict(model.state_dict())  # train it, or use the memory that a pass takes
            >>> batches.close()

        Waits for the pass under way and holds the next. The minibatches that are ready are served meanwhile. Do not ask
        for more in the block: they would need a pass.
        """
        with self._run.gate.held():
            yield

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def snapshot(
        self, folder: str | os.PathLike[str], *, form: Literal["light", "full"] = "light", timeout: float | None = None
    ) -> Path:
        """Saves the state between the minibatches taken and the next ones; see `RingStore.snapshot`. `resume=folder` goes on from it.

        Raises:
            RuntimeError: Before the first minibatch, or after the end of the run; else as there.
        """
        return self._run.opening.store.snapshot(folder, form=form, timeout=timeout)

    def state_dict(self) -> dict[str, Any]:
        """A light snapshot as a dict, for a checkpoint of your own; see `RingStore.state_dict`. `resume=state` goes on from it.

        Raises:
            RuntimeError: As `snapshot`.
        """
        return self._run.opening.store.state_dict()

    @property
    def config(self) -> dict[str, Any]:
        """The settings that were given, for the record of a run. JSON can hold it."""
        return dict(self._config)

    def stats(self) -> _native.Stats | None:
        """The ring's counts; None before the first pass."""
        return self._run.opening.stats()

    def __reduce__(self) -> Any:
        raise TypeError("a run of a model cannot be pickled: its threads belong to this process")
