"""Arrays on their way in: libraries, elements, layouts, masks, and who owns what."""

import threading

import numpy as np
import pytest
from conftest import drain, numbered

from activation_store import RingStore, StoreFullError, TensorActivationStore


@pytest.fixture(params=["numpy", "torch"])
def make(request):
    """Makes an array of one of the libraries from a numpy array."""
    if request.param == "numpy":
        return lambda array: array
    torch = pytest.importorskip("torch")
    # `from_numpy` takes no negative strides; a test that has them flips the tensor itself.
    return lambda array: torch.from_numpy(np.ascontiguousarray(array))


def store_of(features, **settings):
    return RingStore(features, batch_size=8, window=64, output="numpy", **settings)


def test_leading_axes_become_rows(make):
    rows = numbered(24, 5)
    store = store_of(5)
    store.extend(make(rows.reshape(2, 12, 5)))
    store.extend(make(numbered(1, 5, first=24)[0]))
    assert np.array_equal(drain(store), numbered(25, 5))


LAYOUTS = {
    "contiguous": lambda rows: rows,
    "every other row": lambda rows: rows.repeat(2, 0)[::2] if isinstance(rows, np.ndarray) else rows.repeat_interleave(2, 0)[::2],
    "some features of wider rows": lambda rows: _beside(rows)[:, 3:8],
    "transposed": lambda rows: _transposed(rows),
    "positions first": lambda rows: rows.reshape(4, 6, 5).swapaxes(0, 1),
    "every other feature": lambda rows: _beside(rows.repeat(2, 1) if isinstance(rows, np.ndarray) else rows.repeat_interleave(2, 1))[:, 3:13:2],
    "one row for all": lambda rows: _broadcast(rows),
}


def _beside(rows):
    if isinstance(rows, np.ndarray):
        return np.concatenate([rows[:, :3] * 0, rows, rows[:, :1]], 1)
    import torch

    return torch.cat([rows[:, :3] * 0, rows, rows[:, :1]], 1)


def _transposed(rows):
    return np.ascontiguousarray(rows.T).T if isinstance(rows, np.ndarray) else rows.T.contiguous().T


def _broadcast(rows):
    return np.broadcast_to(rows[0], (24, 5)) if isinstance(rows, np.ndarray) else rows[0].expand(24, 5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("copy", [True, False])
def test_any_layout(make, layout, copy):
    array = LAYOUTS[layout](make(numbered(24, 5)))
    expected = np.asarray(array).reshape(-1, 5).copy()
    store = store_of(5)
    store.extend(array, copy=copy).result(10)
    assert np.array_equal(drain(store), expected[np.argsort(expected[:, 0], kind="stable")])


def test_reversed_rows():
    store = store_of(5)
    store.extend(numbered(24, 5)[::-1])
    store.extend(numbered(24, 5, first=24)[:, ::-1][:, ::-1])
    assert np.array_equal(drain(store), numbered(48, 5))


def test_the_array_can_be_changed_at_once(make):
    array = make(numbered(5000, 16))
    store = RingStore(16, batch_size=50, window=20_000, output="numpy")
    future = store.extend(array)
    array[:] = -1
    future.result(10)
    assert np.array_equal(drain(store), numbered(5000, 16))


def test_lent_memory_is_kept_alive_and_let_go():
    torch = pytest.importorskip("torch")
    import gc
    import weakref

    store = store_of(4)
    rows = numbered(16, 4)
    alive = weakref.ref(rows)
    store.extend(rows, copy=False).result(10)
    del rows
    gc.collect()
    store.extend(numbered(1, 4, first=16)).result(10)
    gc.collect()
    assert alive() is None
    store.extend(torch.from_numpy(numbered(8, 4, first=17)), copy=False)
    assert np.array_equal(drain(store), numbered(25, 4))


@pytest.mark.parametrize("shape", [(24,), (4, 6)])
def test_a_mask_keeps_the_true_rows(make, shape):
    rows = numbered(24, 5)
    mask = np.random.default_rng(0).random(shape) < 0.5
    store = store_of(5)
    store.extend(make(rows.reshape(*shape, 5)), mask=make(mask))
    store.extend(make(rows.reshape(*shape, 5) + 100), mask=(~mask).astype(np.int64))
    expected = np.concatenate([rows[mask.reshape(-1)], rows[~mask.reshape(-1)] + 100])
    assert np.array_equal(drain(store), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_on_any_layout(make, layout):
    array = LAYOUTS[layout](make(numbered(24, 5)))
    mask = np.random.default_rng(0).random(array.shape[:-1]) < 0.5
    expected = np.asarray(array)[mask]
    store = store_of(5)
    future = store.extend(array, mask=make(mask))
    if layout != "one row for all":
        array[...] = -1  # the store has a copy
    assert future.result(10).rows == mask.sum()
    assert np.array_equal(drain(store), expected[np.argsort(expected[:, 0], kind="stable")])


def test_a_mask_over_the_first_axes_goes_for_all_below(make):
    store = store_of(5)
    store.extend(make(numbered(24, 5).reshape(2, 3, 4, 5)), mask=make(np.array([[True, False, True], [False, False, True]])))
    assert drain(store)[:, 0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 20, 21, 22, 23]


def test_masks_on_wide_and_long_batches():
    rows = numbered(3000, 200)
    for share in (0, 0.01, 0.5, 0.99, 1):
        mask = np.random.default_rng(1).random(3000) < share
        store = RingStore(200, batch_size=50, window=20_000, output="numpy")
        assert store.extend(rows, mask=mask).result(10).rows == mask.sum()
        assert np.array_equal(drain(store).reshape(-1, 200), rows[mask])


def test_wrong_masks(make):
    store = store_of(5)
    with pytest.raises(ValueError, match=r"the mask has shape \(3,\), but the rows have \(24,\)"):
        store.extend(make(numbered(24, 5)), mask=make(np.ones(3, bool)))
    with pytest.raises(TypeError, match="the mask holds float32"):
        store.extend(make(numbered(24, 5)), mask=make(np.ones(24, np.float32)))


@pytest.mark.parametrize("kept", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("given", ["float32", "float16", "bfloat16"])
def test_elements_are_converted(kept, given):
    torch = pytest.importorskip("torch")
    rows = torch.from_numpy(numbered(40, 8)).to(getattr(torch, given))
    store = RingStore(8, batch_size=8, window=16, dtype=kept)
    store.extend(rows.reshape(5, 8, 8))
    store.close()
    out = torch.cat(list(store))
    kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kept]
    assert out.dtype == kind
    expected = rows.to(kind).float()
    out = out.float()
    order = lambda rows: rows[torch.argsort(rows.sum(1))]  # noqa: E731
    assert torch.equal(order(out), order(expected))


def test_bf16_of_numpy():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    store = RingStore(4, batch_size=8, window=16, dtype=ml_dtypes.bfloat16, output="numpy")
    store.extend(numbered(20, 4).astype(ml_dtypes.bfloat16))
    store.close()
    batches = list(store)
    assert batches[0].dtype == ml_dtypes.bfloat16
    out = np.concatenate(batches).astype(np.float32)
    assert np.array_equal(out[np.argsort(out[:, 0])], numbered(20, 4))


def test_other_byte_orders():
    store = store_of(4)
    store.extend(numbered(8, 4).astype(">f4"))
    assert np.array_equal(drain(store), numbered(8, 4))


def test_tensors_that_need_gradients():
    torch = pytest.importorskip("torch")
    store = store_of(4)
    store.extend(torch.from_numpy(numbered(8, 4)).requires_grad_() * 1)
    with torch.inference_mode():
        store.extend(torch.from_numpy(numbered(8, 4, first=8)) * 1)
    assert np.array_equal(drain(store), numbered(16, 4))


def test_no_rows(make):
    store = store_of(4)
    assert store.extend(make(np.empty((0, 4), np.float32))).result(10).rows == 0
    assert store.extend(make(np.empty((3, 0, 4), np.float32))).result(10).rows == 0
    assert store.extend(make(np.empty((0, 0), np.float32))).result(10).rows == 0
    assert store.extend(make(numbered(3, 4)), mask=np.zeros(3, bool)).result(10).rows == 0
    assert len(drain(store)) == 0


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (np.zeros((3, 5), np.float32), ValueError, r'component 0 \("0"\) takes rows of 4 features, but the batch has 5'),
        (np.float32(3), TypeError, r"component 0 are a single number, of shape \(\)"),
        (np.zeros((3, 4), np.complex64), TypeError, "rows of complex64 cannot be stored"),
        (np.zeros((3, 4), np.int64), TypeError, "int64 cannot be converted"),
        ([[1.0, 2.0, 3.0, 4.0]], TypeError, "not as list"),
        (None, TypeError, "not as NoneType"),
    ],
)
def test_what_is_no_batch(batch, error, message):
    store = store_of(4)
    with pytest.raises(error, match=message):
        store.extend(batch)
    store.extend(numbered(8, 4))
    assert len(drain(store)) == 8, "the store goes on"


def test_tensors_that_are_no_batch():
    torch = pytest.importorskip("torch")
    store = store_of(4)
    with pytest.raises(TypeError, match="to_dense"):
        store.extend(torch.zeros(3, 4).to_sparse())
    with pytest.raises(TypeError, match="complex64"):
        store.extend(torch.zeros(3, 4, dtype=torch.complex64))
    with pytest.raises(TypeError, match="meta tensor"):
        store.extend(torch.zeros(3, 4, device="meta"))
    with pytest.raises(TypeError, match="the mask holds bfloat16; use booleans"):
        store.extend(torch.zeros(3, 4), mask=torch.ones(3, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match="the mask is a meta tensor"):
        store.extend(torch.zeros(3, 4), mask=torch.ones(3, dtype=torch.bool, device="meta"))


@pytest.mark.parametrize(("component", "named"), [(1, "1"), (-2, "-2"), ("b", '"b"')])
def test_no_such_component(component, named):
    for store in (store_of(4), TensorActivationStore(8, 4, 1)):
        with pytest.raises(IndexError, match=rf'there is no component {named}; this store has 0 \("0"\)'):
            store.extend(numbered(8, 4), component)
        assert store.extend(numbered(8, 4), -1).result(10).rows == 8


def test_a_component_is_a_number_or_a_name():
    for component in (None, 0.0, (0,)):
        with pytest.raises(TypeError, match="a component is a number or a name"):
            store_of(4).extend(numbered(8, 4), component)


def test_a_component_too_far_ahead_is_told():
    store = RingStore({"a": 2, "b": 2}, batch_size=8, window=16, max_skew=32)
    with pytest.raises(ValueError, match='ahead of component 1 \\("b"\\)'):
        for _ in range(10):
            store.extend(numbered(8, 2), "a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"components": 0}, "must be at least 1"),
        ({"components": {}}, "no component"),
        ({"components": 4, "batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"components": 4, "batch_size": -1}, "batch_size is -1"),
        ({"components": 4, "batch_size": 8, "window": 4}, "window is 4 rows, less than one minibatch of 8"),
        ({"components": 4, "window": 2**62}, "overflow|cannot be allocated|at most"),
        ({"components": 1 << 20, "window": 1 << 30}, "no window fits.*allow_overcommit=True builds it anyway"),
        ({"components": 1 << 20, "window": 1 << 30, "allow_overcommit": True}, "cannot be allocated"),
        ({"components": 4, "dtype": "f64"}, "unknown dtype 'f64'; use one of f32"),
        ({"components": 4, "when_full": "explode"}, "when_full is"),
        ({"components": 4, "merge": "chance"}, "merge is"),
        ({"components": 4, "output": "jax"}, "output is 'jax'"),
    ],
)
def test_impossible_stores(settings, message):
    with pytest.raises(ValueError, match=message):
        RingStore(**settings)


def test_what_cannot_be_copied_is_a_memory_error():
    # As a view of one row it is small; as a batch it is not.
    rows = np.broadcast_to(np.zeros(4, np.float32), (2**50, 4))
    store = RingStore(4, batch_size=8, window=16)
    with pytest.raises(MemoryError, match="cannot be allocated"):
        store.extend(rows)
    with pytest.raises((MemoryError, StoreFullError)):
        TensorActivationStore(10, 4, 1).extend(rows, 0)
    store.extend(np.zeros((3, 4), np.float32)).result(30)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (np.ma.masked_array(np.zeros((2, 4), np.float32)), TypeError, "masked array"),
        (np.zeros((3, 0), np.float32), ValueError, r"shape \(3, 0\) has rows of 0 features"),
        (np.zeros(0, np.float32), ValueError, r"shape \(0,\) has rows of 0 features"),
        (np.zeros((0, 5), np.float32), ValueError, "takes rows of 4 features, but the batch has 5"),
    ],
)
def test_more_that_is_no_batch(rows, error, message):
    with pytest.raises(error, match=message):
        RingStore(4, batch_size=8, window=16).extend(rows)


@pytest.mark.parametrize("resize", [
    "tensor.untyped_storage().resize_(0)", "tensor.untyped_storage().resize_(4 * 1024)", "setattr(tensor, 'data', torch.zeros(1, 4))",
    "array.resize((1, 4), refcheck=False)",
])  # fmt: skip
@pytest.mark.parametrize("call", ["store.extend(rows)", "store.extend_pass({0: rows})"])
def test_memory_that_is_resized_while_its_rows_wait_for_room_is_not_read(resize, call):
    torch = pytest.importorskip("torch")
    store = RingStore(4, batch_size=8, window=16, queue_rows=8, output="numpy")
    try:
        while True:
            store.extend(np.zeros((8, 4), np.float32), timeout=0.3)
    except TimeoutError:
        pass
    tensor, array = torch.ones(10_000, 4), np.ones((10_000, 4), np.float32)
    rows = array if "array" in resize else tensor
    errors = []

    def write():
        try:
            eval(call, {"store": store, "rows": rows})
        except ValueError as error:
            errors.append(str(error))

    writer = threading.Thread(target=write)
    writer.start()
    writer.join(0.5)  # by now it waits for room, most likely; if not yet, it finds another size or address
    assert writer.is_alive()
    eval(resize, {"tensor": tensor, "array": array, "torch": torch, "setattr": setattr})
    consumer = threading.Thread(target=lambda: seen.extend(store))
    seen = []
    consumer.start()
    writer.join(30)
    store.close()
    consumer.join(30)
    assert len(errors) == 1, errors
    assert "was resized after its rows were handed over" in errors[0]
    assert all((batch == 0).all() for batch in seen)
