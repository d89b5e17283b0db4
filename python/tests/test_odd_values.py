"""Rows whose values overflow, or are not finite, are kept, counted, and warned of once."""

import asyncio
import gc
import warnings

import numpy as np
import pytest
from conftest import numbered

from activation_store import Recorder, RingStore, TensorActivationStore, activations

LARGE, NAN = numbered(3, 4) + 70_000, numbered(2, 4) * np.float32("nan")
ODD = np.concatenate([numbered(3, 4), LARGE, NAN])


def taken(store, several=False):
    """The messages of the warnings while a store is read to its end."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if several:
            async def read():
                async for _ in store:
                    pass

            asyncio.run(read())
        else:
            for _ in store:
                pass
    assert {warning.filename for warning in caught} <= {__file__}, "they point at the caller"
    return sorted(str(warning.message) for warning in caught)


@pytest.mark.parametrize("several", [False, True])
def test_a_ring_counts_and_warns_once(several):
    store = RingStore({"a": (4, "f16"), "b": 4}, batch_size=2, window=8, queue_rows=1000)
    for _ in range(2):
        store.extend_pass({"a": ODD, "b": ODD})
    store.close()
    messages = taken(store, several)
    assert [message.partition(":")[0] for message in messages] == ["component 'a'"] * 2 + ["component 'b'"]
    first, second, other = messages  # how many rows the first two name depends on the writer's pace, and with it their order
    assert ("arrived with NaN" in first) != ("arrived with NaN" in second)
    assert ("too large for the component's dtype" in first) != ("too large for the component's dtype" in second)
    assert "arrived with NaN" in other
    counts = store.stats().components
    assert (counts["a"].overflowed, counts["a"].not_finite) == (6, 4)
    assert (counts["b"].overflowed, counts["b"].not_finite) == (0, 4)
    assert "6 overflowed, 4 not finite" in str(store.stats())
    assert "overflowed=6, not_finite=4" in repr(store.stats())
    assert [message.partition(":")[0] for message in taken(store)] == ["a loop over a store that has ended serves nothing"]


def test_double_precision_beyond_f32_is_counted():
    store = RingStore(4, batch_size=2, window=8)
    store.extend(np.full((2, 4), 1e300))
    store.close()
    [message] = taken(store)
    assert "NaN or infinite" in message
    assert store.stats().components["0"].not_finite == 2


def test_ordinary_rows_say_nothing():
    store = RingStore(4, batch_size=2, window=8, dtype="f16")
    store.extend(numbered(8, 4))
    store.close()
    assert taken(store) == []
    assert "finite" not in str(store.stats())


def test_a_run_warns_where_its_minibatches_are_taken():
    pytest.importorskip("torch")
    run = activations(lambda batch: {"a": batch}, [ODD, ODD], dtype="f16", batch_size=2, window=8)
    assert len(taken(run)) == 2


def test_a_recorder_warns_at_flush_and_close(tmp_path):
    recorder = Recorder(tmp_path, {"a": (4, "f16")})
    recorder.extend_pass({"a": LARGE})
    with pytest.warns(RuntimeWarning, match="component 'a': 3 rows so far have a value that is too large"):
        recorder.flush()
    recorder.extend_pass({"a": NAN})
    with pytest.warns(RuntimeWarning, match="component 'a': 2 rows so far arrived with NaN") as caught:
        recorder.close()
    assert len(caught) == 1


def test_a_recorder_that_is_dropped_warns(tmp_path):
    recorder = Recorder(tmp_path, {"a": (4, "f16")})
    recorder.extend_pass({"a": LARGE})
    with pytest.warns(RuntimeWarning, match="component 'a': 3 rows so far have a value that is too large"):
        del recorder
        gc.collect()


def test_a_store_of_fixed_size_warns():
    store = TensorActivationStore(20, 4, 1)
    with pytest.warns(RuntimeWarning, match="component '0': 2 rows so far arrived with NaN") as caught:
        store.extend(NAN)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.extend(NAN)
