"""Caches of activations that other programs wrote, read as passes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from ._rows.dtypes import SIZES, dtype_name
from ._rows.torch import HAS_TORCH

Read = Callable[[str, int, int], Any]
"""The items of a column from one number to another, which is not included."""


def read_cache(folder: str | os.PathLike[str], *, name: str = "activations", pass_rows: int = 4096) -> Cache:
    """Opens a cache that another program wrote, to train on or to record.

        >>> cache = read_cache("cached", pass_rows=100)
        >>> for batch in activations(dict, cache, batch_size=64, window=256):  # `dict` gives each pass as it is
        ...     train(batch)
        >>> record(dict, cache, None, "from a cache").rows == cache.rows
        True

    | what is in the folder | components | needs |
    |---|---|---|
    | an Arrow data set, as SAELens' `CacheActivationsRunner` and `datasets` save it | its columns of numbers | `datasets` |
    | `*.safetensors` | the tensors of a file, by name | `safetensors` |
    | `*.npy` | one, called `name` | |
    | folders of `*.npy` | one for each folder, by its name | |

    Files are read in the order of their names, with numbers as numbers: 2 before 10. All dimensions before the features are rows: `[sequence,
    position, feature]` is read in that order. A column without features, such as token ids, has one. Integers of other types become `int64`.

    Args:
        folder: The folder.
        name: What to call the rows of `*.npy` files.
        pass_rows: Rows of a pass.

    Raises:
        FileNotFoundError: If there is no such folder, or nothing in it that can be read.
        ValueError: If files do not have the same components, or components not the same rows. Names the file.
        ImportError: If a library is missing.
    """
    found = Path(folder)
    if pass_rows < 1:
        raise ValueError(f"pass_rows is {pass_rows}; it must be 1 or more")
    if not found.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    if (found / "dataset_info.json").exists() and (found / "state.json").exists():
        return Cache([_arrow(found)], pass_rows)
    for pattern, open_file in (("*.safetensors", _safetensors), ("*.npy", lambda path: _npy({name: path}))):
        files = _in_order(found, pattern)
        if files:
            return Cache([open_file(path) for path in files], pass_rows)
    columns = {path.name: _in_order(path, "*.npy") for path in sorted(found.iterdir()) if path.is_dir()}
    columns = {column: files for column, files in columns.items() if files}
    if len({len(files) for files in columns.values()}) > 1:
        raise ValueError(f"the folders in {str(folder)!r} must have equally many .npy files; they have { {column: len(files) for column, files in columns.items()} }")
    if columns:
        return Cache([_npy(dict(zip(columns, paths, strict=True))) for paths in zip(*columns.values(), strict=True)], pass_rows)
    if list(found.glob("*/shard.json")):
        raise FileNotFoundError(f"{str(folder)!r} is a recording of this library: open it with Recording({str(folder)!r})")
    raise FileNotFoundError(f"{str(folder)!r} has no Arrow data set (dataset_info.json and state.json), no .safetensors and no .npy files")


class Cache(Sequence[Mapping[str, Any]]):
    """Passes that are read when they are asked for: each a mapping from components to rows, `[rows, features]`."""

    def __init__(self, files: list[_File], pass_rows: int) -> None:
        """Use `read_cache`."""
        first = files[0]
        for file in files:
            if file.components != first.components:
                raise ValueError(f"{file.path} has the components {file.components}, and {first.path} has {first.components}; they must be the same, as (features, dtype)")
        self._files = files
        self._pass_rows = pass_rows
        self._ends = np.cumsum([math.ceil(file.rows / pass_rows) for file in files])

    @property
    def components(self) -> Mapping[str, tuple[int, str]]:
        """Features and dtype of each component, by name."""
        return self._files[0].components

    @property
    def rows(self) -> int:
        """Rows of each component."""
        return sum(file.rows for file in self._files)

    def __len__(self) -> int:
        """Passes."""
        return int(self._ends[-1])

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """Reads a pass."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"pass {index} is out of range: there are {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._ends, index, side="right"))
        file = self._files[number]
        first = (index - (int(self._ends[number - 1]) if number else 0)) * self._pass_rows
        return file.rows_between(first, min(first + self._pass_rows, file.rows))

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"Cache({self.rows} rows of {dict(self.components)} in {len(self)} passes)"


@dataclass
class _File:
    """A file, or a whole data set."""

    path: Path
    components: dict[str, tuple[int, str]]
    items: int
    """The first dimension: sequences, or rows."""
    rows_per_item: int
    read: Read

    @property
    def rows(self) -> int:
        return self.items * self.rows_per_item

    def rows_between(self, first: int, end: int) -> dict[str, Any]:
        """Rows of all components."""
        each = self.rows_per_item
        from_item, to_item = first // each, math.ceil(end / each)
        taken = slice(first - from_item * each, end - from_item * each)
        return {
            name: _as_stored(self.read(name, from_item, to_item)).reshape((to_item - from_item) * each, features)[taken]
            for name, (features, _) in self.components.items()
        }


def _file(path: Path, shapes: Mapping[str, tuple[int, ...]], read: Read) -> _File:
    """What a file holds. All dimensions but the last of the tensor that has most are rows; a tensor that has only those has one feature."""
    longest = max(shapes.values(), key=len, default=())
    if not longest:
        raise ValueError(f"{path} holds no rows")
    leading = longest[:-1] or longest
    components = {}
    for name, shape in shapes.items():
        if leading not in (shape, shape[:-1]):
            raise ValueError(f"{path}: {name!r} has the shape {list(shape)}; it must be {list(leading)}, or that and the features, as the others have it")
        features = 1 if shape == leading else shape[-1]
        components[name] = features, _element(_as_stored(read(name, 0, 1)).dtype)
    items, *within = leading
    return _File(path, components, items, math.prod(within), read)


def _arrow(folder: Path) -> _File:
    try:
        import datasets  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise ImportError(f"{str(folder)!r} is an Arrow data set: pip install datasets") from None
    data = datasets.load_from_disk(str(folder))
    if isinstance(data, datasets.DatasetDict):
        raise ValueError(f"{str(folder)!r} has the parts {list(data)}; read one of them, such as {str(folder / next(iter(data)))!r}")
    data = data.with_format("numpy")
    if len(data) == 0:
        raise ValueError(f"{str(folder)!r} has no rows")

    def read(name: str, begin: int, end: int) -> Any:
        return np.asarray(data.select_columns([name])[begin:end][name])

    first = {name: np.asarray(value) for name, value in data[0].items()}
    return _file(folder, {name: (len(data), *value.shape) for name, value in first.items() if value.dtype.kind in "fiu"}, read)


def _safetensors(path: Path) -> _File:
    try:
        from safetensors import safe_open
    except ImportError:
        raise ImportError(f"{path} needs the package safetensors: pip install safetensors") from None
    framework = "pt" if HAS_TORCH else "np"
    with safe_open(path, framework=framework) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}

    def read(name: str, begin: int, end: int) -> Any:
        with safe_open(path, framework=framework) as file:
            return file.get_slice(name)[begin:end]

    return _file(path, shapes, read)


def _npy(columns: Mapping[str, Path]) -> _File:
    arrays = {name: _open_npy(path) for name, path in columns.items()}
    path = next(iter(columns.values()))
    return _file(path, {name: array.shape for name, array in arrays.items()}, lambda name, begin, end: np.array(arrays[name][begin:end]))


def _open_npy(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r")
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as .npy: {error}") from None


def _as_stored(values: Any) -> Any:
    """Integers as a store takes them."""
    kind = str(values.dtype).removeprefix("torch.")
    if kind in ("int8", "int16", "int32", "uint8", "uint16"):
        return values.astype(np.int64) if isinstance(values, np.ndarray) else values.long()
    return values


def _element(dtype: object) -> str:
    """The store's name of an array's dtype.

    Raises:
        TypeError: If no store holds such elements.
    """
    try:
        return dtype_name(dtype)
    except ValueError:
        raise TypeError(f"rows of {dtype} cannot be stored; convert them to one of {', '.join(SIZES)}") from None


def _in_order(folder: Path, pattern: str) -> list[Path]:
    """Files by name, with numbers as numbers."""
    return sorted(folder.glob(pattern), key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)])
