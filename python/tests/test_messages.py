"""What is said to a caller who gives something else than is wanted."""

import json

import numpy as np
import pytest

from activation_store import RingStore, TensorActivationStore


def test_settings_that_cannot_be_name_the_value():
    for seed in (-1, 2**64, 0.5):
        with pytest.raises((ValueError, TypeError), match=f"seed is {seed}"):
            RingStore(4, batch_size=2, window=4, seed=seed)
    with pytest.raises(ValueError, match="the store has no component; give the features of one, or a dict"):
        RingStore({})
    with pytest.raises(ValueError, match="the number of features of component 'a' is 0"):
        RingStore({"a": 0})
    with pytest.raises(TypeError, match="batch_size is 2.5; it must be a whole number"):
        RingStore(4, batch_size=2.5)
    with pytest.raises(ValueError, match="allow_overcommit=True"):
        RingStore(1 << 20, window=1 << 30)


def test_whole_floats_are_counts():
    store = RingStore(4.0, batch_size=3e1, window=6e1, seed=2.0)
    assert (store.batch_size, store.window) == (30, 60)
    assert TensorActivationStore(1e2, 4.0, 1.0).max_items == 100


def test_the_configuration_is_a_record_of_the_run():
    store = RingStore({"a": 4, "token": (1, "i64")}, batch_size=8, window=30, dtype="f16", seed=3, when_full="reject")
    config = json.loads(json.dumps(store.config))
    assert config["components"] == [{"name": "a", "features": 4, "dtype": "f16"}, {"name": "token", "features": 1, "dtype": "i64"}]
    assert (config["batch_size"], config["window"], config["queue_rows"], config["seed"]) == (8, 24, 16, 3)
    assert (config["when_full"], config["merge"], config["stacked"]) == ("reject", "arrival", False)
    assert "window=24" in repr(store)


def test_a_minibatch_of_two_components_that_is_taken_for_a_tensor():
    store = RingStore({"a": 4, "b": 4}, batch_size=2, window=4, output="numpy")
    store.extend_pass({"a": np.ones((8, 4), np.float32), "b": np.ones((8, 4), np.float32)})
    batch = next(store)
    assert isinstance(batch, dict)
    assert sorted(batch) == ["a", "b"]
    with pytest.raises(AttributeError, match=r"a minibatch of 2 components is a dict, which has no 'to': take one of them, such as batch\['a'\]"):
        batch.to("cpu")
    assert not hasattr(batch, "__array__")


def test_paths_to_capture_that_are_none():
    torch = pytest.importorskip("torch")
    from activation_store import activations, capture

    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    store = RingStore(4, batch_size=2, window=4)
    with pytest.raises(TypeError, match=r"the modules to capture are \['0'\]; give a dict from each module's path"):
        capture(model, ["0"], store)
    with pytest.raises(TypeError, match="have the key 0, with 'a' as its value; the keys are paths"):
        capture(model, {0: "a"}, store)
    with pytest.raises(TypeError, match="have the key 0"):
        activations(model, [torch.zeros(2, 4)], {0: "a"})
    with activations(model, [torch.zeros(20, 4)] * 3, "0", batch_size=4, window=8, dtype="f16") as batches:
        assert json.loads(json.dumps(batches.config))["modules"] == "0"
        assert batches.config["dtype"] == "f16"
