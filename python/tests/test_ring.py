"""The pipeline: what goes in comes out, shuffled, once, without a copy on the way out."""

import asyncio
import gc
import threading
import warnings

import numpy as np
import pytest
from conftest import drain, numbered

from activation_store import ComponentStats, Dropped, RingStore, Stats, StoreClosedError, StoreFullError


def test_rows_come_out_once_and_shuffled(in_thread):
    store = RingStore(4, batch_size=32, window=512, output="numpy")
    rows = numbered(5000, 4)

    def capture():
        for start in range(0, len(rows), 70):
            store.extend(rows[start : start + 70])
        store.close()

    in_thread(capture)
    batches = list(store)
    assert [len(batch) for batch in batches[:-1]] == [32] * (len(batches) - 1)
    assert len(batches[-1]) == 5000 % 32
    out = np.concatenate(batches)
    assert not np.array_equal(out, rows)
    assert np.array_equal(out[np.argsort(out[:, 0])], rows)
    middle = batches[60][:, 0]
    assert middle.max() - middle.min() > 256, "a minibatch's rows come from all over the window"


def test_the_same_seed_and_rows_give_the_same_minibatches(in_thread):
    def run(seed, cut):
        store = RingStore(3, batch_size=16, window=128, seed=seed, output="numpy")
        rows = numbered(1000, 3)

        def capture():
            for start in range(0, 1000, cut):
                store.extend(rows[start : start + cut])
            store.close()

        in_thread(capture)
        return np.concatenate(list(store))

    assert np.array_equal(run(1, 50), run(1, 333))
    assert not np.array_equal(run(1, 50), run(2, 50))


def test_components_stay_aligned():
    store = RingStore({"a": 3, "b": 5, "token": (1, "i64")}, batch_size=16, window=64, max_skew=500, output="numpy")
    ids = np.arange(200)
    store.extend(numbered(200, 5), "b")
    for start in range(0, 200, 30):
        store.extend(numbered(200, 3)[start : start + 30], "a")
    store.extend(ids[:, None], "token")
    store.close()
    seen = []
    for batch in store:
        assert list(batch) == ["a", "b", "token"]
        assert batch["a"].shape[1:] == (3,) and batch["b"].shape[1:] == (5,)
        assert batch["token"].dtype == np.int64
        assert np.array_equal(batch["a"][:, 0], batch["b"][:, 0])
        assert np.array_equal(batch["a"][:, 0], batch["token"][:, 0])
        seen.extend(batch["token"][:, 0])
    assert sorted(seen) == list(ids)


def test_components_can_be_stacked():
    store = RingStore({"a": 3, "b": 3}, batch_size=10, window=20, output="numpy", stacked=True)
    store.extend(numbered(45, 3), 0)
    store.extend(numbered(45, 3) + 0.5, 1)
    store.close()
    batches = list(store)
    assert [batch.shape for batch in batches] == [(10, 2, 3)] * 4 + [(5, 2, 3)]
    for batch in batches:
        assert np.array_equal(batch[:, 0] + 0.5, batch[:, 1])
    with pytest.raises(ValueError, match="cannot be stacked"):
        RingStore({"a": 3, "b": 4}, stacked=True)


def test_a_minibatch_owns_its_memory_and_gives_it_back():
    store = RingStore({"a": 4, "b": 4}, batch_size=8, window=16, queue_rows=1000, output="numpy")
    for component in (0, 1):
        store.extend(numbered(64, 4), component)
    first = next(store)
    assert not first["a"].flags.owndata and first["a"].flags.writeable
    assert store.stats().frames_lent == 1
    kept = first["b"][2:3]
    before = kept.copy()
    del first
    gc.collect()
    assert store.stats().frames_lent == 1, "a view keeps the frame"
    for component in (0, 1):
        store.extend(numbered(64, 4, first=64), component)
    store.close()
    for _ in store:
        pass
    del _
    assert np.array_equal(kept, before), "kept rows do not change"
    del store
    assert np.array_equal(kept, before), "they outlive the store"


def test_the_frame_goes_back_when_the_tensor_dies():
    store = RingStore(4, batch_size=8, window=16, output="numpy")
    store.extend(numbered(64, 4))
    batch = next(store)
    assert store.stats().frames_lent == 1
    del batch
    assert store.stats().frames_lent == 0


def test_what_is_kept_starves_nobody(in_thread):
    store = RingStore(4, batch_size=8, window=16, output="numpy")
    in_thread(lambda: (store.extend(numbered(800, 4)), store.close()))
    assert len(list(store)) == 100


def test_a_loop_can_be_broken_off_and_taken_up_again():
    store = RingStore(4, batch_size=8, window=16, queue_rows=100, output="numpy")
    store.extend(numbered(40, 4))
    for _ in store:
        break
    store.extend(numbered(40, 4, first=40))
    assert len(next(store)) == 8
    assert len(next(iter(store))) == 8
    assert len(drain(store)) == 56


def test_next_waits_no_longer_than_asked():
    store = RingStore(4, batch_size=8, window=16)
    with pytest.raises(TimeoutError, match="no minibatch was ready within 0.1 s"):
        store.next(timeout=0.1)
    with pytest.raises(ValueError, match="timeout is -1"):
        store.next(timeout=-1)
    store.close()
    with pytest.raises(StopIteration):
        store.next(timeout=0.1)
    with pytest.raises(StopIteration):
        next(store)


def test_extend_waits_for_room_and_says_when_there_is_none():
    store = RingStore(4, batch_size=8, window=16, queue_rows=8, output="numpy")
    with pytest.raises(TimeoutError, match="Nothing was written"):
        for start in range(0, 8000, 8):
            store.extend(numbered(8, 4, first=start), timeout=0.2)
    # What was refused is not there; what was taken is there once.
    written = sum(component.accepted + component.queued for component in store.stats().components.values())
    assert start <= written <= start + 8
    assert len(drain(store)) == written == start


def test_a_consumer_makes_room(in_thread):
    store = RingStore(4, batch_size=8, window=16, queue_rows=8, output="numpy")
    done = threading.Event()

    def capture():
        for start in range(0, 400, 8):
            store.extend(numbered(8, 4, first=start))
        store.close()
        done.set()

    in_thread(capture)
    assert not done.wait(0.2), "the producer waits for the consumer"
    assert sum(len(batch) for batch in store) == 400
    assert done.wait(10)


def test_a_full_store_can_reject_or_drop():
    store = RingStore(4, batch_size=8, window=16, queue_rows=8, when_full="reject")
    with pytest.raises(StoreFullError, match="full"):
        for _ in range(100):
            store.extend(numbered(8, 4))
    with pytest.raises(StoreFullError):
        for _ in range(100):
            store.try_extend(numbered(8, 4))
    store = RingStore(4, batch_size=8, window=16, when_full="drop_oldest", output="numpy")
    for start in range(0, 800, 8):
        store.extend(numbered(8, 4, first=start))
    store.flush()
    counts = store.stats().components["0"]
    assert counts.dropped == counts.dropped_by.oldest > 0
    assert counts.accepted == counts.resident + counts.served + counts.dropped == 800


def test_append_takes_one_row():
    store = RingStore(4, batch_size=8, window=16, output="numpy")
    for row in numbered(20, 4):
        store.append(row, 0)
    store.flush()  # so that there is room
    store.try_extend(numbered(1, 4, first=20))
    with pytest.raises(ValueError, match="append takes one row, but got 2"):
        store.append(numbered(2, 4), 0)
    assert np.array_equal(drain(store), numbered(21, 4))


def test_producers_have_lanes_of_their_own(in_thread):
    store = RingStore({"a": 2, "b": 2}, batch_size=16, window=64, output="numpy")

    def capture(first):
        with store.producer() as producer:
            for start in range(first, first + 300, 10):
                producer.extend(numbered(10, 2, first=start), "a")
                producer.extend(numbered(10, 2, first=start), "b")

    threads = [in_thread(lambda first=first: capture(first)) for first in (0, 1000, 2000)]
    in_thread(lambda: ([thread.join() for thread in threads], store.close()))
    rows = 0
    for batch in store:
        assert np.array_equal(batch["a"], batch["b"])
        rows += len(batch["a"])
    assert rows == 900


def test_a_closed_lane_takes_nothing_more():
    store = RingStore(2, batch_size=2, window=2)
    producer = store.producer()
    producer.close()
    with pytest.raises(StoreClosedError, match="lane is closed"):
        producer.extend(numbered(1, 2))
    store.extend(numbered(1, 2))


def test_several_consumers_share_the_store(in_thread):
    store = RingStore(2, batch_size=8, window=32, output="numpy")
    rows, lock = [], threading.Lock()

    def train():
        for batch in store:
            with lock:
                rows.extend(batch[:, 0])

    consumers = [in_thread(train) for _ in range(3)]
    for start in range(0, 800, 40):
        store.extend(numbered(40, 2, first=start))
    store.close()
    for consumer in consumers:
        consumer.join(timeout=30)
    assert sorted(rows) == list(range(800))


def test_closing_and_aborting():
    with RingStore(2, batch_size=8, window=32, output="numpy") as store:
        store.extend(numbered(20, 2))
        assert not store.closed
    assert store.closed
    with pytest.raises(StoreClosedError, match="the store is closed"):
        store.extend(numbered(1, 2))
    with pytest.raises(StoreClosedError):
        store.producer()
    assert sum(len(batch) for batch in store) == 20

    with pytest.raises(KeyError), RingStore(2, batch_size=8, window=32) as store:
        store.extend(numbered(20, 2))
        raise KeyError
    with pytest.raises(StopIteration):
        next(store)
    with pytest.raises(RuntimeError, match="aborted before this loop began; make another store"):
        next(iter(store))


def test_counters_and_accessors():
    store = RingStore({"a": 2, "b": 3}, batch_size=8, window=32, output="numpy")
    store.extend(numbered(20, 2), "a")
    store.extend(numbered(10, 3), "b")
    store.flush(timeout=10)
    assert store.current_activations_stored_per_component == [20, 10]
    assert len(store) == 10 and store
    assert store.n_components == 2 and store.component_names == ("a", "b") and store.batch_size == 8
    assert store.__sizeof__() == 32 * 5 * 4
    assert repr(store) == "RingStore({'a': (2, 'f32'), 'b': (3, 'f32')}, batch_size=8, window=32)"
    stats = store.stats()
    assert stats.components["a"].accepted == 20 and stats.minibatches_served == 0
    store.empty()
    assert len(store) == 0
    assert store.stats().components["b"].dropped_by.emptied == store.stats().components["b"].dropped == 10


def test_stats_are_values():
    store = RingStore({"a": 2, "b": 3}, batch_size=8, window=32, max_skew=100, output="numpy")
    store.extend(numbered(20, 2), "a")
    store.flush()
    first, again = store.stats(), store.stats()
    assert first == again and first.components == again.components
    assert list(first.components) == ["a", "b"] and first.components["a"] != first.components["b"]
    assert repr(first.components["a"]) == (
        "ComponentStats(accepted=20, queued=0, resident=20, served=0, dropped=0, "
        "dropped_by=Dropped(oldest=0, emptied=0, aborted=0, last=0, unmatched=0), overflowed=0, not_finite=0)"
    )
    assert str(first).startswith("20 rows taken, 0 served in 0 minibatches, 20 in the ring, 0 queued; producers waited ")
    assert repr(first).startswith("Stats(components={'a': ComponentStats(accepted=20, ") and "frames_open=4" in repr(first)
    store.extend(numbered(1, 2), "a").result(10)
    assert store.stats() != first and first == again, "a picture does not change"
    for kind in (Stats, ComponentStats, Dropped):
        public = [name for name in vars(kind) if not name.startswith("_")]
        assert public and all(getattr(kind, name).__doc__ for name in public)
    with pytest.raises(AttributeError):
        first.components["a"].accepted = 0


def test_rows_in_the_ring_can_be_looked_at():
    store = RingStore({"a": 3, "b": 3}, batch_size=4, window=8)
    for component in (0, 1):
        store.extend(numbered(6, 3), component)
    store.flush()
    assert sorted(float(store[row, 0, 0]) for row in range(6)) == [0, 1, 2, 3, 4, 5]
    assert tuple(store[2:5, 1].shape) == (3, 3)
    with pytest.raises(IndexError):
        store[6]


def test_drop_last():
    store = RingStore(2, batch_size=8, window=32, drop_last=True, output="numpy")
    store.extend(numbered(20, 2))
    store.close()
    assert sum(len(batch) for batch in store) == 16
    assert store.stats().components["0"].dropped_by.last == store.stats().components["0"].dropped == 4


@pytest.mark.parametrize("is_task", [False, True])
def test_a_loop_that_has_nothing_because_drop_last_drops_all_rows_says_so_once(is_task):
    async def drained(store):
        return [batch async for batch in store]

    store = RingStore(2, batch_size=8, window=32, drop_last=True, output="numpy")
    store.extend(numbered(7, 2))
    store.close()
    with pytest.warns(RuntimeWarning, match="serves nothing: the store had 7 rows, fewer than a minibatch has, and drop_last=True drops them") as said:
        for _ in range(2):
            assert (asyncio.run(drained(store)) if is_task else list(store)) == []
    assert len(said) == 1


def test_a_loop_over_a_store_without_rows_says_nothing():
    store = RingStore(2, batch_size=8, window=32, drop_last=True, output="numpy")
    store.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(store) == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"window": 2**70}, ValueError, "window is 1180591620717411303424"),
        ({"seed": "x"}, TypeError, "seed is 'x'"),
        ({"seed": None}, TypeError, "seed is None"),
        ({"components": {"a": (4,)}}, ValueError, r"give its features, or \(features, dtype\)"),
        ({"components": {"a": (4, "f32", 1)}}, ValueError, r"give its features, or \(features, dtype\)"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        RingStore(**{"components": 4, "batch_size": 8, "window": 16, **settings})
