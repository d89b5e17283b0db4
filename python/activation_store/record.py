"""Records what a model's modules put out, in one call."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ._hooks.pass_mask import Mask, nothing_kept
from ._native import __version__
from ._rows.torch import HAS_TORCH, torch
from ._run.dealer import batches_from
from ._run.opening import Layout, with_dtype
from ._run.progress import line_of
from ._run.replicas import Mode, Passes, replica_of
from .capture import Hooks
from .recorder import Recorder, Safe
from .recording import Recording, by_name


def record(
    model: Any,
    batches: Iterable[Any],
    modules: str | Mapping[str, str] | Sequence[str] | None,
    folder: str | os.PathLike[str],
    *,
    mask: Mask = None,
    point: Literal["output", "input"] = "output",
    mode: Mode = "eval",
    hooks: Hooks = "check",
    stop_early: bool = True,
    dtype: object = None,
    lane: str = "lane",
    shard_rows: int = 16_384,
    metadata: Mapping[str, str] | None = None,
    resume: bool = False,
    sync: Literal["each_shard", "at_flush"] = "each_shard",
    progress: bool = False,
) -> Safe:
    """Runs a model over batches and records what some modules put out: once, for as many trainings as you like.

        >>> safe = record(model, tokenised_text, {"encoder.layer.2": "layer.2"}, "activations", mask="attention_mask")
        >>> for batch in Recording("activations", batch_size=64, window=1024):
        ...     train(batch["layer.2"])

    Runs on this thread, under `no_grad`; shards are written in the background. What runs is a view of the model, in eval mode; see `activations`.
    If the model, the batches or Ctrl-C raise, what was recorded before is safe, the lane is not finished, and `resume=True` goes on behind it.

    Args:
        model: A torch module; or a function that gives a batch's rows by name, `f(batch) -> {"layer.2": rows}`, with `modules=None`.
        batches: What the model is called with; see `activations`.
        modules: The modules to capture; see `activations`. The recording remembers whether they were given as a path alone.
        folder: Where the shards go.
        mask: Which rows to keep; see `capture`.
        point: Whether to take the modules' `"output"` or their `"input"`.
        mode: `"eval"`, or `"keep"` for the model's own; see `activations`.
        hooks: Whether changed hooks are an error where the model has no view; see `activations`.
        stop_early: Whether passes end behind the last captured module; see `activations`.
        dtype: Element type for every component of floats. Default: the activations' own type.
        lane: The lane's name. Give each process or rank one of its own, and its own batches.
        shard_rows: Rows after which a shard is written.
        metadata: What describes the rows, beside the names of the modules, which are recorded.
        resume: Go on behind the last whole shard. `batches` must come in the same order, and each must run the model once.
        sync: When the disk has to have the rows; see `Recorder`.
        progress: Whether to show a line of `tqdm`.

    Returns:
        The passes and rows on disk.

    Raises:
        ValueError: If a setting cannot be so; if the lane has shards already, and `resume` is False; if the model has no such module.
        OSError: If the disk fails.
        BaseException: What the model or the batches raise.
    """
    described = {"hooks": _described(modules), "model": getattr(model, "__name__", type(model).__name__), "written_by": f"activation-store {__version__}", **by_name(modules), **(metadata or {})}
    lane_of = _Lane(folder, dtype, {"lane": lane, "shard_rows": shard_rows, "metadata": described, "resume": resume, "sync": sync})
    replica = replica_of(model, modules, lane_of, 0, None, Passes(mask, point, mode, hooks, stop_early))
    line = line_of(batches) if progress else None
    try:
        with torch.no_grad() if HAS_TORCH else contextlib.nullcontext(), replica:
            first = lane_of.passes
            if line is not None:
                line.update(first)
            for index, batch in enumerate(batches_from(batches, first), start=first):
                before = lane_of.passes
                replica.run(index, batch)
                if lane_of.passes != before + 1:
                    raise ValueError(f"batch {index} ran the model {lane_of.passes - before} times: each batch must run it once, so that a recording can be resumed")
                if line is not None:
                    line.update()
        safe = lane_of.finish()
        if lane_of.passes > first and not safe.rows:
            raise nothing_kept(lane_of.passes - first, mask)
        return safe
    finally:
        try:
            lane_of.close()
        finally:
            if line is not None:
                line.close()


class _Lane:
    """Opens the recorder when the first pass tells the widths and dtypes."""

    has_ended = False
    one_pass_a_batch = True

    def __init__(self, folder: str | os.PathLike[str], dtype: object, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._dtype = dtype
        self._settings = settings
        self._recorder: Recorder | None = None
        """Opened by the first pass, or to finish what a killed run has recorded."""
        self._first = self.safe().passes if settings["resume"] else 0

    @property
    def passes(self) -> int:
        """Passes so far."""
        return self._first if self._recorder is None else self._recorder.passes

    def lane(self, number: int, layout: Layout) -> Recorder:
        """The recorder; opens it the first time."""
        if self._recorder is None:
            self._recorder = Recorder(self._folder, with_dtype(layout, self._dtype), **self._settings)
        return self._recorder

    def finish(self) -> Safe:
        """Writes what was recorded, and says that the lane is finished."""
        if self._recorder is None and self._settings["resume"]:
            self._recorder = self._found()  # a run that was killed had recorded everything, but did not come to its end
        if self._recorder is None:
            return self.safe()
        safe = self._recorder.flush()
        self._recorder.close()
        return safe

    def close(self) -> None:
        """Writes what was recorded. Unless it is finished, the lane may go on."""
        if self._recorder is not None:
            self._recorder.close(finished=False)

    def safe(self) -> Safe:
        """What of the lane is on disk."""
        recorder = self._found()
        if recorder is None:
            return Safe(0, 0)
        recorder.close(finished=False)
        return recorder.resumed

    def _found(self) -> Recorder | None:
        """A recorder that goes on with the lane, if it has shards. Other lanes may be damaged."""
        lane = self._settings["lane"]
        try:
            shard = json.loads(Path(self._folder, f"{lane}.000000", "shard.json").read_bytes())["shard"]
            components: Mapping[str, tuple[int, str]] = {each["name"]: (each["features"], each["dtype"]) for each in shard["components"]}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            components = Recording(self._folder).components  # raises, and says what is wrong with the shard
        return Recorder(self._folder, components, lane=lane, resume=True)


def _described(modules: Any) -> str:
    """The modules, as the recording's metadata has them."""
    if modules is None:
        return ""
    if isinstance(modules, Mapping):
        return json.dumps({str(path): str(name) for path, name in modules.items()})
    return json.dumps({str(path): str(path) for path in ([modules] if isinstance(modules, str) else modules)})
