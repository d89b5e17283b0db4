"""Code written for the `sparse_autoencoder` library's stores, with only the import changed."""

import sys
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, Dataset, IterableDataset  # noqa: E402

from activation_store import ActivationStore, RingStore, StoreFullError, TensorActivationStore  # noqa: E402


def test_two_components():
    store = TensorActivationStore(max_items=160, n_neurons=128, n_components=2)
    for component_idx in range(2):
        for _ in range(10):
            store.extend(torch.rand(16, 128), component_idx=component_idx)
    assert len(store) == 160


def test_a_full_store():
    store = TensorActivationStore(max_items=6, n_neurons=128, n_components=1)
    store.append(torch.rand(128), component_idx=0)
    store.extend(torch.rand(4, 128), component_idx=0)
    with pytest.raises(StoreFullError, match="Activation store is full") as raised:
        store.extend(torch.rand(2, 128), component_idx=0)
    assert isinstance(raised.value, IndexError)
    assert len(store) == 5, "nothing has changed"
    store.append(torch.rand(128), component_idx=0)
    with pytest.raises(StoreFullError):
        store.append(torch.rand(128), component_idx=0)
    assert str(StoreFullError()) == "Activation store is full"
    assert str(StoreFullError("no room")) == "no room"


def test_indexing():
    data = torch.rand(20, 3, 8)
    store = TensorActivationStore(max_items=30, n_neurons=8, n_components=3)
    for component in range(3):
        store.extend(data[:, component], component)
    rows = torch.tensor([3, 1, 19])
    for index in (
        0, 19, -1, -20, (4, 1), (4, -1), (4, 1, 2), (-1, 1, -2), slice(None), slice(3, 9), slice(-5, None, 2), slice(3, 9, 3),
        (slice(3, 9), 1), (slice(None), slice(1, None), 4), (5, slice(0, 2)), (slice(2, 4), 1, 1), slice(100, 200), slice(5, 2),
        [3, 1, 19], rows, (rows, 1), (Ellipsis, 2), (3, Ellipsis), data[:, 0, 0] > 0.5, np.int64(4),
    ):  # fmt: skip
        assert torch.equal(store[index], data[index]), index
    for index in (20, -21, (20, 0), (0, 3), (0, 0, 8), (0, 0, 0, 0)):
        with pytest.raises(IndexError):
            store[index]


def test_an_index_past_the_end_is_an_error():
    store = TensorActivationStore(max_items=100, n_neurons=4, n_components=2)
    with pytest.raises(IndexError, match="row index 0 is out of range: there are 0"):
        store[0]
    store.extend(torch.rand(10, 4), 0)
    store.extend(torch.rand(7, 4), 1)
    assert store.current_activations_stored_per_component == [10, 7]
    assert len(store) == 7
    with pytest.raises(IndexError, match="row index 7 is out of range: there are 7"):
        store[7, 0]


def test_writes_are_visible_to_the_next_call():
    store = TensorActivationStore(max_items=500, n_neurons=64, n_components=1)
    for row in range(500):
        store.append(torch.full((64,), float(row)), component_idx=0)
        assert len(store) == row + 1
        assert torch.equal(store[row, 0], torch.full((64,), float(row)))


def test_the_batch_can_be_changed_at_once():
    store = TensorActivationStore(max_items=1000, n_neurons=64, n_components=1)
    batch = torch.ones(1000, 64)
    store.extend(batch, 0)
    batch.zero_()
    assert bool((store[:] == 1).all())


def test_emptying():
    store = TensorActivationStore(max_items=10, n_neurons=5, n_components=1)
    store.extend(torch.zeros(10, 5), component_idx=0)
    store.empty()
    assert len(store) == 0
    store.extend(torch.ones(10, 5), component_idx=0)
    assert len(store) == 10


def test_shuffling_repeats_with_the_seed():
    def shuffled(seed, own=None):
        torch.manual_seed(seed)
        store = TensorActivationStore(max_items=100, n_neurons=1, n_components=2, seed=own)
        for component in range(2):
            store.extend(torch.arange(100.0)[:, None], component)
        store.shuffle()
        assert torch.equal(store[:, 0], store[:, 1]), "components stay together"
        return store[:, 0, 0].tolist()

    assert shuffled(1) == shuffled(1) != shuffled(2)
    assert shuffled(1, own=5) == shuffled(2, own=5) != shuffled(1)
    assert sorted(shuffled(1)) == list(range(100))


def test_without_a_seed_every_store_shuffles_in_its_own_way():
    def shuffled():
        store = TensorActivationStore(max_items=100, n_neurons=1, n_components=1)
        store.extend(torch.arange(100.0)[:, None], 0)
        store.shuffle()
        return store[:, 0, 0].tolist()

    torch.manual_seed(1)
    first = [shuffled(), shuffled()]
    assert first[0] != first[1]
    torch.manual_seed(1)
    assert [shuffled(), shuffled()] == first


def test_lists_are_indices_of_rows():
    store = TensorActivationStore(max_items=10, n_neurons=4, n_components=1)
    store.extend(torch.rand(5, 4), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(store[[0, 2]], store[:][torch.tensor([0, 2])])
        assert store[[[0, 1], [2, 3]]].shape == (2, 2, 1, 4)


def test_size_in_bytes():
    assert TensorActivationStore(max_items=2, n_neurons=100, n_components=1).__sizeof__() == 800
    assert sys.getsizeof(TensorActivationStore(max_items=2, n_neurons=100, n_components=1)) >= 800


@pytest.mark.parametrize("shuffle", [False, True])
def test_data_loader(shuffle):
    store = TensorActivationStore(max_items=1000, n_neurons=100, n_components=2)
    data = torch.rand(10, 2, 100)
    for component in range(2):
        store.extend(data[:, component], component)
    batches = list(DataLoader(store, shuffle=shuffle, batch_size=4))
    assert [tuple(batch.shape) for batch in batches] == [(4, 2, 100), (4, 2, 100), (2, 2, 100)]
    out = torch.cat(batches)
    assert torch.equal(out, data) is not shuffle
    assert torch.equal(out[out[:, 0, 0].argsort()], data[data[:, 0, 0].argsort()])


def test_epochs_of_minibatches():
    store = TensorActivationStore(max_items=100, n_neurons=4, n_components=2)
    store.fill_with_test_data(n_batches=5, batch_size=10, n_components=2, input_features=4)
    orders = []
    for _ in range(2):
        batches = list(store.batches(16))
        assert [tuple(batch.shape) for batch in batches] == [(16, 2, 4)] * 3 + [(2, 2, 4)]
        orders.append(torch.cat(batches))
    assert not torch.equal(*orders)
    assert torch.equal(*(order[order[:, 0, 0].argsort()] for order in orders))
    (batch,) = store.batches(50, stacked=False, output="numpy")
    assert list(batch) == ["0", "1"] and batch["0"].shape == (50, 4)


def test_other_elements_are_converted():
    store = TensorActivationStore(max_items=100, n_neurons=4, n_components=1)
    store.extend(torch.ones(1, 4, dtype=torch.float64), 0)
    store.extend(torch.ones(1, 4, dtype=torch.int64), 0)
    store.extend(torch.ones(1, 4, dtype=torch.bfloat16), 0)
    store.extend(np.ones((1, 4)), 0)
    assert store[:].dtype == torch.float32
    assert torch.equal(store[:], torch.ones(4, 1, 4))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((0, 4, 1), ValueError), ((10, 0, 1), ValueError), ((10, 4, -1), ValueError), (("ten", 4, 1), TypeError), ((2**40, 2**20, 2), ValueError)],
)
def test_impossible_stores(arguments, error):
    with pytest.raises(error):
        TensorActivationStore(*arguments)


def test_what_cannot_be_is_told_at_the_call():
    with pytest.raises(ValueError, match="device is 'florp'"):
        TensorActivationStore(10, 4, 1, device="florp")
    with pytest.raises(TypeError, match="seed is 'x'"):
        TensorActivationStore(10, 4, 1, seed="x")
    with pytest.raises(ValueError, match="batch_size is 0"):
        TensorActivationStore(10, 4, 1).batches(0)


def test_wrong_width():
    store = TensorActivationStore(10, 4, 1)
    with pytest.raises(ValueError, match="takes rows of 4 features, but the batch has 5"):
        store.extend(torch.rand(2, 5), 0)
    with pytest.raises(IndexError, match="there is no component 1"):
        store.extend(torch.rand(2, 4), 1)
    with pytest.raises(ValueError, match="append takes one row, but got 2"):
        store.append(torch.rand(2, 4), 0)


def test_a_store_of_your_own():
    class ListStore(ActivationStore):
        def __init__(self):
            self._rows = []

        def append(self, item, component_idx=0):
            self._rows.append(item)

        def extend(self, batch, component_idx=0):
            self._rows.extend(batch)

        def empty(self):
            self._rows.clear()

        @property
        def n_components(self):
            return 1

        @property
        def current_activations_stored_per_component(self):
            return [len(self._rows)]

        def __getitem__(self, index):
            return self._rows[index]

        def __len__(self):
            return len(self._rows)

    store = ListStore()
    store.fill_with_test_data(n_batches=2, batch_size=3, input_features=5)
    assert len(store) == 6 and store[0].shape == (5,)
    store.shuffle()
    assert next(iter(DataLoader(store, batch_size=6))).shape == (6, 5)
    with pytest.raises(ValueError, match="n_batches is 0"):
        store.fill_with_test_data(n_batches=0)
    with pytest.raises(TypeError, match="abstract"):
        ActivationStore()


def test_kinds_of_data_sets():
    store = RingStore(4, batch_size=8, window=16)
    assert isinstance(store, ActivationStore) and isinstance(store, Dataset) and isinstance(store, IterableDataset)
    store = TensorActivationStore(8, 4, 1)
    assert isinstance(store, ActivationStore) and isinstance(store, Dataset) and not isinstance(store, IterableDataset)


def test_ring_store_under_a_data_loader():
    store = RingStore(4, batch_size=8, window=64)
    store.extend(torch.rand(60, 4))
    store.close()
    assert [len(batch) for batch in DataLoader(store, batch_size=None)] == [8] * 7 + [4]


def test_fill_with_test_data_fills_a_ring():
    store = RingStore({"a": 256, "b": 256}, batch_size=8, window=64)
    store.fill_with_test_data(n_components=2)
    store.flush()
    assert len(store) == 16
