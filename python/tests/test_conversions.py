"""Elements that no store holds are converted where this loses no more than precision; else the error says what would work."""

import numpy as np
import pytest
from conftest import drain, numbered

from activation_store import Recorder, Recording, RingStore, TensorActivationStore, activations, capture

torch = pytest.importorskip("torch")

ROWS = numbered(12, 4)


def in_a_ring(rows, dtype, mask=None, how="extend"):
    store = RingStore({"a": (4, dtype)}, batch_size=4, window=16, output="torch")
    if how == "extend":
        store.extend(rows, "a", mask=mask)
    else:
        store.extend_pass({"a": rows}, mask=mask, copy=how == "pass")
    store.close()
    batches = list(store)
    rows = torch.cat(batches).to(torch.float64).numpy() if batches else np.empty((0, 4))
    return rows[np.argsort(rows[:, 0], kind="stable")]


FLOATS = {
    "numpy": lambda rows: rows.astype(np.float64),
    "torch": lambda rows: torch.from_numpy(rows).double(),
    "with a gradient": lambda rows: torch.from_numpy(rows).double().requires_grad_(),
    "transposed": lambda rows: torch.from_numpy(rows.T.copy()).double().T,
    "backwards": lambda rows: rows.astype(np.float64)[::-1],
    "other byte order": lambda rows: rows.astype(">f8"),
}


@pytest.mark.parametrize("make", FLOATS)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("how", ["extend", "pass", "lent pass"])
def test_double_precision_becomes_the_components_floats(make, dtype, how):
    expected = torch.from_numpy(ROWS).to({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]).double().numpy()
    assert np.array_equal(in_a_ring(FLOATS[make](ROWS), dtype, how=how), expected)
    if make != "backwards":
        assert np.array_equal(in_a_ring(FLOATS[make](ROWS), dtype, np.arange(12) > 4, how), expected[5:])


def test_eight_bit_floats_become_floats():
    rows = torch.from_numpy(ROWS).to(torch.float8_e4m3fn)
    assert np.array_equal(in_a_ring(rows, "f32"), rows.double().numpy())


IDS = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@pytest.mark.parametrize("dtype", ["i64", "u32"])
@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_integers_that_fit_become_the_components_integers(library, kind, dtype):
    ids = (np.arange(12)[:, None] % 2 if kind == "bool" else np.arange(12)[:, None]).astype(kind)
    store = RingStore({"id": (1, dtype)}, batch_size=4, window=16, output="numpy")
    store.extend(ids if library == "numpy" else torch.from_numpy(ids))
    store.close()
    assert np.array_equal(np.sort(np.concatenate(list(store)), axis=0), np.sort(ids, axis=0))


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_integers_that_do_not_fit_are_refused(library):
    store = RingStore({"id": (1, "u32"), "wide": (1, "i64")}, batch_size=4, window=16)
    make = np.asarray if library == "numpy" else lambda array: torch.from_numpy(np.asarray(array))
    with pytest.raises(TypeError, match="'id' holds u32, and the rows hold -3, which does not fit; give the component the dtype i64"):
        store.extend(make(np.array([[1], [-3]])), "id")
    with pytest.raises(TypeError, match="'id' holds u32, and the rows hold 4294967296, which does not fit"):
        store.extend_pass({"id": make(np.array([[2**32]])), "wide": make(np.array([[1]]))})
    with pytest.raises(TypeError, match="'wide' holds i64, and the rows hold 18446744073709551615, which does not fit"):
        store.extend(make(np.array([[2**64 - 1]], np.uint64)), "wide")
    assert len(store) == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda: torch.zeros(3, 4, dtype=torch.int32), "'a' holds f32, and int32 cannot be converted to it: convert the rows to float32"),
        (lambda: np.zeros((3, 4), bool), "'a' holds f32, and bool cannot be converted to it"),
        (lambda: torch.zeros(3, 4, dtype=torch.complex128), "rows of complex128 cannot be stored: take their real and imaginary parts"),
        (lambda: np.zeros((3, 4), np.complex64), "rows of complex64 cannot be stored"),
        (lambda: torch.quantize_per_tensor(torch.zeros(3, 4), 1.0, 0, torch.qint8), "use .dequantize"),
        (lambda: torch.zeros(3, 4).to_sparse(), "to_dense"),
        (lambda: torch.zeros(3, 4).to_sparse_csr(), "to_dense"),
        (lambda: torch.zeros(3, 4, device="meta"), "meta tensor"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2, 4), torch.zeros(1, 4)]), "nested"),
        (lambda: np.array([["a"]]), "cannot be stored"),
        (lambda: np.array([[None]]), "rows of object cannot be stored"),
        (lambda: torch.tensor(3.0), r"component 'a' are a single number, of shape \(\): they need an axis for the features"),
        (lambda: np.float64(3), r"component 'a' are a single number, of shape \(\)"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_what_cannot_be_converted_is_refused(rows, message):
    rows = rows()
    store = RingStore({"a": 4}, batch_size=4, window=16)
    for mask in (None, np.ones(3, bool)):
        with pytest.raises(TypeError, match=message):
            store.extend(rows, "a", mask=mask)
        with pytest.raises(TypeError, match=message):
            store.extend_pass({"a": rows}, mask=mask)
    assert len(store) == 0


def test_floats_are_no_ids():
    store = RingStore({"id": (4, "i64")}, batch_size=4, window=16)
    with pytest.raises(TypeError, match="'id' holds i64, and the rows are float64: round"):
        store.extend(np.zeros((3, 4)), "id")


def test_a_recorder_and_a_store_of_fixed_size_convert(tmp_path):
    with Recorder(tmp_path, {"a": (4, "bf16"), "id": (1, "i64")}) as recorder:
        recorder.extend_pass({"a": ROWS.astype(np.float64), "id": np.arange(12, dtype=np.int32)[:, None]})
    recorded = Recording(tmp_path)
    assert recorded.rows == 12
    store = TensorActivationStore(20, 4, 1)
    store.extend(ROWS.astype(np.float64))
    store.append(np.full(4, 7.0))
    assert np.array_equal(np.asarray(store[:12]).reshape(12, 4), ROWS)
    with pytest.raises(TypeError, match="complex64"):
        store.extend(torch.zeros(3, 4, dtype=torch.complex64))
    with pytest.raises(TypeError, match="single number"):
        store.extend(torch.tensor(1.0))


class Double(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.loss = torch.nn.Identity()

    def forward(self, x):
        out = self.linear(x)
        self.loss(out.sum())
        return out


def test_a_model_in_double_precision_is_captured():
    model = Double().double()
    inputs = torch.randn(12, 4, dtype=torch.float64)
    expected = np.sort(model.linear(inputs).detach().float().numpy(), axis=0)
    store = RingStore(4, batch_size=4, window=16, output="numpy")
    with torch.no_grad(), capture(model, {"linear": 0}, store):
        model(inputs)
    assert np.array_equal(np.sort(drain(store), axis=0), expected)
    batches = activations(model, [inputs], "linear", dtype="f32", batch_size=4, window=16)
    assert np.array_equal(np.sort(torch.cat(list(batches)).numpy(), axis=0), expected)
    with pytest.raises(TypeError, match=r'rows of float64 cannot be stored.*give dtype="f32"'):
        list(activations(model, [inputs], "linear", batch_size=4, window=16))


def test_a_function_gives_double_precision_and_narrow_ids():
    def rows(batch):
        return {"x": batch, "id": np.arange(12, dtype=np.int32)[:, None]}

    batches = list(activations(rows, [ROWS.astype(np.float64)], dtype="f32", batch_size=4, window=16))
    assert sorted(int(row) for batch in batches for row in np.asarray(batch["id"]).reshape(-1)) == list(range(12))


def test_a_module_that_gives_a_single_number_is_named():
    store = RingStore(4, batch_size=4, window=16)
    model = Double()
    message = r"module 'loss' gives a single number, a tensor of shape \(\): rows need an axis"
    with pytest.warns(RuntimeWarning, match="capturing has stopped"), pytest.raises(TypeError, match=message), capture(model, {"loss": 0}, store):
        model(torch.randn(3, 4))
    with pytest.raises(TypeError, match=message):
        list(activations(model, [torch.randn(3, 4)], "loss", batch_size=4, window=16))
    with pytest.raises(TypeError, match=r"'x' is a single number, of shape \(\)"):
        list(activations(lambda batch: {"x": np.float32(1)}, [1], batch_size=4, window=16))


def test_components_with_different_numbers_of_rows_are_named():
    class Halves(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.whole, self.first = torch.nn.Identity(), torch.nn.Identity()

        def forward(self, x):
            return self.first(self.whole(x)[::2])

    model = Halves()
    store = RingStore({"resid": 4, "pooled": 4}, batch_size=4, window=16)
    for into in (store, store.producer()):
        with (
            pytest.warns(RuntimeWarning, match="capturing has stopped"),
            pytest.raises(ValueError, match=r"different numbers of rows, by component: \{'resid': 12, 'pooled': 6\}"),
            capture(model, {"whole": "resid", "first": "pooled"}, into),
        ):
            model(torch.randn(12, 4))
