"""Recordings, stores and runs under a `DataLoader`: true lengths, workers, epochs, and states in the middle of one."""

import itertools
import pickle
import warnings

import numpy as np
import pytest
from conftest import numbered, run

import activation_store.recording as module
from activation_store import Recorder, Recording, RingStore, TensorActivationStore, activations
from activation_store._ring.loaders import Worker

torch = pytest.importorskip("torch")
DataLoader = torch.utils.data.DataLoader


def recorded(folder, rows):
    with Recorder(folder, {"token": (1, "i64")}, shard_rows=40) as recorder:
        recorder.extend_pass({"token": np.arange(rows)[:, None]})


def opened(folder, rows=500, **settings):
    if not folder.exists():
        recorded(folder, rows)
    return Recording(folder, **{"batch_size": 32, "window": 128, "seed": 3, **settings})


def tokens(batches):
    return [batch[:, 0].tolist() for batch in batches]


def flat(batches):
    return list(itertools.chain.from_iterable(batches))


def test_the_length_counts_minibatches_and_rows_counts_rows(tmp_path):
    recording = opened(tmp_path / "a")
    assert recording.rows == 500
    loader = DataLoader(recording, batch_size=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(loader) == len(recording) == len(list(loader)) == 16
    assert recording.minibatches() is recording
    nothing = opened(tmp_path / "a", batch_size=512, window=512, drop_last=True)
    assert (len(nothing), list(nothing), bool(nothing)) == (0, [], True)


@pytest.mark.parametrize("workers", [0, 1, 2, 7])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_and_workers_serve_each_row_once_and_as_many_minibatches_as_the_length_says(tmp_path, monkeypatch, workers, drop_last):
    """The workers as they are inside; `test_workers_of_a_loader_share_an_epoch` runs real ones."""
    for rows, world_size, batch_size in itertools.product([65, 96, 97], [1, 3], [3, 16]):
        folder = tmp_path / str(rows)
        seen, counts = [], set()
        for rank in range(world_size):
            recording = opened(folder, rows, batch_size=batch_size, window=4 * batch_size, rank=rank, world_size=world_size, drop_last=drop_last)
            recording.set_epoch(5)
            parts = []
            try:
                for number in range(max(workers, 1)):
                    monkeypatch.setattr(module, "worker", lambda number=number: Worker(number, workers, 0) if workers else None)
                    parts.append(tokens(pickle.loads(pickle.dumps(recording)) if workers else recording))
            except ValueError as error:  # some ranks would drop a minibatch that others serve
                assert drop_last and "drop_last" in str(error), error
                assert -(-rows // world_size) % batch_size == 0 and rows % world_size
                counts.add(None)
                continue
            assert sum(map(len, parts)) == len(recording)
            counts.add(len(recording))
            seen += flat(flat(parts))
        assert len(set(seen)) == len(seen)
        if not drop_last:
            assert len(counts) == 1
            assert len(seen) == rows


@pytest.mark.timeout(400)  # each spawned worker imports torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork, in a process with threads
@pytest.mark.parametrize("settings", [
    {"multiprocessing_context": "fork"},
    {"multiprocessing_context": "fork", "persistent_workers": True},
    {"multiprocessing_context": "spawn", "persistent_workers": True},
], ids=["fork", "fork-persistent", "spawn-persistent"])  # fmt: skip
def test_workers_of_a_loader_share_an_epoch(tmp_path, settings):
    recording = opened(tmp_path / "a")
    loader = DataLoader(recording, batch_size=None, num_workers=2, timeout=60, **settings)
    epochs = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # torch's, of a length that is too small
        for _ in range(2):
            epochs.append(tokens(loader))
            assert len(epochs[-1]) == len(loader) == 16
            assert sorted(flat(epochs[-1])) == list(range(500))
        assert epochs[0] != epochs[1]
        next(iter(loader))  # a peek
        recording.set_epoch(0)
        assert tokens(loader) == epochs[0], "repeats bit for bit"
        assert tokens(loader) == epochs[1]


def test_an_epoch_counts_once_all_of_it_was_served(tmp_path):
    recording, other = opened(tmp_path / "a"), opened(tmp_path / "a")
    first, second, third = (tokens(other) for _ in range(3))
    next(iter(recording))
    assert tokens(recording) == first
    assert tokens(batch for _, batch in zip(range(15), recording, strict=False)) == second[:15]
    assert tokens(batch for _, batch in zip(range(16), recording, strict=False)) == second, "its end was not asked for"
    assert tokens(recording) == third
    recording.set_epoch(1)
    assert tokens(recording) == second


def test_a_state_goes_on_in_the_middle_of_an_epoch(tmp_path):
    recording = opened(tmp_path / "a")
    expected = flat(tokens(recording) for _ in range(3))
    for stop in (0, 1, 7, 15, 16, 20):
        recording = opened(tmp_path / "a")
        before = []
        while len(before) < stop:
            for batch in recording:
                before += tokens([batch])
                if len(before) == stop:
                    break
        state = recording.state_dict()
        resumed = opened(tmp_path / "a")
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        rest = tokens(resumed)
        assert len(rest) == 16 * (stop // 16 + (stop % 16 > 0 or stop == 0)) - stop, "the rest of this epoch"
        while len(before) + len(rest) < len(expected):
            rest += tokens(resumed)
        assert before + rest == expected
    list(recording)
    after = recording.state_dict()
    assert (after["epoch"], after["minibatches"]) == (2, 0)


def test_a_foreign_state_is_refused(tmp_path):
    state = opened(tmp_path / "a").state_dict()
    with pytest.raises(ValueError, match="the state has batch_size=32, and this recording batch_size=16; open the recording as it was"):
        opened(tmp_path / "a", batch_size=16).load_state_dict(state)
    with pytest.raises(ValueError, match="the state has rank=0"):
        opened(tmp_path / "a", rank=1, world_size=2).load_state_dict(state)
    with pytest.raises(ValueError, match="not the state of a Recording"):
        opened(tmp_path / "a").load_state_dict({"epoch": None})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_resumes_in_the_middle_of_an_epoch(tmp_path, workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def loader():
        recording = opened(tmp_path / "a")
        return stateful.StatefulDataLoader(recording, batch_size=None, num_workers=workers, multiprocessing_context="fork" if workers else None)

    whole = loader()
    expected = [tokens(whole) for _ in range(3)]
    assert expected[0] != expected[1]
    for epochs, stop in ((0, 5), (1, 1), (1, 15), (1, 16)):
        first = loader()
        for _ in range(epochs):
            assert tokens(first) == expected[0]
        iterator = iter(first)
        before = tokens(itertools.islice(iterator, stop))
        state = pickle.loads(pickle.dumps(first.state_dict()))
        del iterator, first
        resumed = loader()
        resumed.load_state_dict(state)
        assert before + tokens(resumed) == expected[epochs]
        assert tokens(resumed) == expected[epochs + 1]


def filled(rows=60):
    store = RingStore(4, batch_size=8, window=64)
    store.extend(torch.from_numpy(numbered(rows, 4)))
    store.close()
    return store


def test_a_loader_gets_the_minibatches_of_a_ring_without_a_length():
    loader = DataLoader(filled().minibatches(), batch_size=None)
    with pytest.raises(TypeError, match="has no len"):
        len(loader)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [len(batch) for batch in loader] == [8] * 7 + [4]
    store = filled()
    first = next(iter(store.minibatches()))
    state = store.minibatches().state_dict()
    resumed = RingStore(4, batch_size=8, window=64)
    resumed.minibatches().load_state_dict(state)
    assert len(first) == 8 and resumed.stats().minibatches_served == 1
    resumed.abort()


def test_a_loader_that_has_asked_a_ring_for_its_length_is_told():
    store = filled()
    store.flush()
    loader = DataLoader(store, batch_size=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(store) == 60
        next(iter(loader))
        len(loader)
    with pytest.warns(RuntimeWarning, match=r"has asked for the length of this store.*Give the loader store.minibatches\(\)"):
        iterator = iter(loader)
        next(iterator)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert sum(1 for _ in loader) == 6, "said once"


def test_a_loader_takes_a_run_of_a_model():
    model = torch.nn.Sequential(torch.nn.Identity())
    batches = [torch.from_numpy(numbered(10, 4, 10 * number)) for number in range(6)]
    loader = DataLoader(activations(model, batches, "0", batch_size=8, window=16), batch_size=None)
    with pytest.raises(TypeError, match="has no len"):
        len(loader)
    assert sorted(flat(tokens(loader))) == list(range(60))


def test_a_run_in_a_worker_says_what_works_and_does_not_hang():
    result = run("""
        gate = threading.Event()
        def function(batch):
            gate.wait()  # there is no ring yet
            return {"x": batch}
        run = activations(function, [np.zeros((8, 4), np.float32)] * 4, batch_size=8, window=16)
        loader = torch.utils.data.DataLoader(run, batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=30)
        try:
            list(loader)
        except RuntimeError as error:
            print("num_workers=0" in str(error))
        gate.set()
        print(sum(map(len, run)))
    """, torch=True, timeout=110)
    assert result.stdout == "True\n32\n", result


def test_a_second_loop_over_what_has_ended_says_that_it_serves_nothing():
    store = filled()
    assert len(list(store)) == 8
    with pytest.warns(RuntimeWarning, match="serves nothing: .* loop over a Recording, or keep them in a TensorActivationStore"):
        assert list(store) == []
    run = activations(dict, [{"x": numbered(10, 4)}], batch_size=8, window=16)
    assert len(list(run)) == 2
    with pytest.warns(RuntimeWarning, match="serves nothing: call activations"):
        assert list(run) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = filled()
        for _ in store:  # broken off, and taken up again
            break
        assert len(list(store)) == 7
        early, late = filled(), TensorActivationStore(8, 4, 1)
        loops = iter(early), iter(early)  # at the same time
        assert [len(list(loop)) for loop in loops] == [8, 0]
        late.extend(numbered(8, 4), 0)
        assert [len(list(late.batches(4))) for _ in range(2)] == [2, 2]


def test_a_recording_that_grew_is_not_taken_for_the_one_that_was_opened(tmp_path):
    recording = opened(tmp_path / "a")
    copied = pickle.dumps(recording)
    assert tokens(pickle.loads(copied)) == tokens(recording)
    with Recorder(tmp_path / "a", {"token": (1, "i64")}, lane="other") as recorder:
        recorder.extend_pass({"token": np.arange(7)[:, None]})
    with pytest.raises(ValueError, match="has changed since it was opened, from 500 to 507 rows"):
        pickle.loads(copied)
