"""What an index gives is what it gives for an array of the same rows; only the rows that it names are copied."""

import numpy as np
import pytest

from activation_store import TensorActivationStore
from activation_store._rows.components import Component
from activation_store._rows.indexing import get

try:
    import torch
except ImportError:
    torch = None

DATA = np.random.default_rng(0).standard_normal((20, 3, 8)).astype(np.float32)
MASK = DATA[:, 0, 0] > 0

INDICES = [
    0, -1, np.int64(4), (4, 1), (slice(3, 9), 1), slice(None, None, 3), [3, 1, 19], [], [[0, 1], [2, 3]], range(2, 5),
    np.array([3, -1, 3]), np.array([3, 1], np.int32), np.array(7), np.array([[0, 1], [2, -20]]), np.array([5]), MASK, list(MASK),
    (np.array([3, 1, 4]), 1), (np.array([3, 1, 0]), np.array([0, 1, 2])), (np.array([3, 1]), slice(1, None), 4),
    (MASK, 1, slice(2, 5)), (np.array([[3, 1], [0, 2]]), ..., 0), (..., 2), None, (None, 2), ..., np.zeros(20, bool),
]  # fmt: skip


def filled():
    store = TensorActivationStore(30, 8, 3)
    for component in range(3):
        store.extend(DATA[:, component], component)
    return store


@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_an_index_gives_what_it_gives_for_an_array(index):
    expected = DATA if torch is None else torch.from_numpy(DATA)
    # As an array, since torch takes some lists for tuples.
    index_of_array = np.asarray(index, None if len(index) else np.int64) if isinstance(index, list | range) else index
    got, expected = filled()[index], expected[index_of_array]
    assert type(got) is type(expected) and got.shape == expected.shape
    assert np.array_equal(np.asarray(got), np.asarray(expected))


@pytest.mark.skipif(torch is None, reason="needs torch")
def test_tensors_are_indices():
    store, data = filled(), torch.from_numpy(DATA)
    for index in (
        torch.tensor([3, -1, 3]), torch.tensor([3, 1], dtype=torch.int32), torch.tensor(4), torch.tensor([4]), torch.tensor([[0, 1], [2, 3]]),
        torch.from_numpy(MASK), torch.zeros(0, dtype=torch.int64), (torch.tensor([3, 1]), torch.tensor([0, 2])), (torch.tensor([3, 1]), 1),
        torch.from_numpy(DATA > 0),
    ):  # fmt: skip
        assert torch.equal(store[index], data[index]), index


@pytest.mark.parametrize("index", [[0, 20], np.array([-21]), (np.array([20]), 0), 20, MASK[:5]], ids=repr)
def test_an_index_of_rows_that_are_not_there_is_an_error(index):
    with pytest.raises((IndexError, TypeError)):
        filled()[index]


@pytest.mark.parametrize("index", ["1", ("1", 0), b"1"], ids=repr)
def test_a_name_is_no_index_of_rows(index):
    with pytest.raises(TypeError, match=r"no number of a row; .*: 0 \('0'\), 1 \('1'\), 2 \('2'\)$"):
        filled()[index]


def test_the_error_names_the_row():
    with pytest.raises(IndexError, match=r"^row index -21 is out of range: there are 20$"):
        filled()[[3, -21]]


@pytest.mark.parametrize("index", [5, slice(3, 9), [1, 2], np.array([1, 2]), (np.array([1, 2]), 0), np.arange(1000) % 100 == 1, range(3)], ids=repr)
def test_only_the_rows_of_the_index_are_copied(index):
    copied = []

    def gather(numbers, out):
        copied.extend(numbers)
        out[:] = 0

    get(gather, 1000, (Component("0", 4, "f32"),), index)
    assert len(copied) <= 10


def test_a_shuffled_store_gives_its_rows_in_the_new_order():
    store = filled()
    store.shuffle()
    rows = np.asarray(store[:])
    picked = np.array([7, 0, 19, 7])
    assert np.array_equal(np.asarray(store[picked]), rows[picked])
    assert np.array_equal(np.stack([np.asarray(row) for row in store.__getitems__([2, -1])]), rows[[2, -1]])
