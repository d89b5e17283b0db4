"""Whole passes: all components at once, or nothing."""

import asyncio
import threading

import numpy as np
import pytest
from conftest import numbered

from activation_store import RingStore, StoreClosedError, StoreFullError


def store_of(**settings):
    return RingStore({"a": 3, "b": 5, "token": (1, "i64")}, batch_size=16, window=64, output="numpy", **settings)


def a_pass(rows, first=0):
    return {"b": numbered(rows, 5, first), "token": np.arange(first, first + rows)[:, None], 0: numbered(rows, 3, first)}


def tokens(store):
    """The tokens of every row, which belong to rows of the other components."""
    seen = []
    for batch in store:
        for name in ("a", "b"):
            assert np.array_equal(batch[name][:, 0], batch["token"][:, 0])
        seen.extend(batch["token"][:, 0].tolist())
    return sorted(seen)


@pytest.mark.parametrize("copy", [True, False])
def test_passes_come_out_aligned(copy):
    store = store_of(queue_rows=1000)
    written = [store.extend_pass(a_pass(30, start), copy=copy) for start in range(0, 300, 30)]
    with store.producer() as producer:
        producer.extend_pass(a_pass(20, 300))
    store.close()
    assert tokens(store) == list(range(320))
    assert [future.result(30) for future in written] == [(30, start) for start in range(0, 300, 30)]


def test_one_mask_goes_for_all_components():
    store = store_of()
    keep = np.arange(24) % 3 != 0
    batches = {name: rows.reshape(2, 12, -1) for name, rows in a_pass(24).items()}
    assert store.extend_pass(batches, mask=keep.reshape(2, 12)).result(30).rows == 16
    store.close()
    assert tokens(store) == [number for number in range(24) if number % 3]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"b": None}, ValueError, r'the pass has no rows of component 1 \("b"\)'),
        ({"a": numbered(10, 3)}, ValueError, r'the pass has component 0 \("a"\) twice'),
        ({"b": numbered(9, 5)}, ValueError, "a pass has equally many of each"),
        ({"b": numbered(10, 4)}, ValueError, "takes rows of 5 features, but the batch has 4"),
        ({"b": np.zeros((10, 5), np.int64)}, TypeError, "cannot be converted"),
        ({"c": numbered(10, 5)}, IndexError, 'no component "c"'),
    ],
)
def test_a_pass_that_is_refused_leaves_nothing_behind(change, error, message):
    store = store_of()
    batches = {key: rows for key, rows in {**a_pass(10), **change}.items() if rows is not None}
    for extend in (store.extend_pass, store.try_extend_pass):
        with pytest.raises(error, match=message):
            extend(batches)
    with pytest.raises(TypeError, match="a pass is a mapping from component to rows"):
        store.extend_pass(numbered(10, 3))
    store.extend_pass(a_pass(7))
    store.close()
    assert tokens(store) == list(range(7))


def test_a_lane_that_is_uneven_takes_no_pass():
    store = store_of(max_skew=100)
    store.extend(numbered(4, 3), "a")
    with pytest.raises(ValueError, match=r"component 0 \(\"a\"\) is 4 rows ahead of component 1 .*another lane \(producer\(\)\)"):
        store.extend_pass(a_pass(4))
    store.producer().extend_pass(a_pass(4))


def test_without_room_nothing_is_written():
    store = store_of(queue_rows=16)
    passes = 0
    with pytest.raises(TimeoutError, match="Nothing was written"):
        while True:
            store.extend_pass(a_pass(16, 16 * passes), timeout=0.2)
            passes += 1
    with pytest.raises(StoreFullError):
        store.try_extend_pass(a_pass(16))
    store.close()
    assert tokens(store) == list(range(16 * passes))


def test_a_store_that_rejects_takes_all_or_nothing():
    store = store_of(queue_rows=16, when_full="reject")
    taken = []
    for start in range(0, 1600, 16):
        try:
            store.extend_pass(a_pass(16, start))
        except StoreFullError:
            continue
        taken.extend(range(start, start + 16))
    store.close()
    assert len(taken) < 1600
    assert tokens(store) == taken


def test_threads_share_a_lane_pass_by_pass(in_thread):
    store = store_of(queue_rows=16)
    producers = [
        in_thread(lambda first=first: [store.extend_pass(a_pass(5, start)) for start in range(first, first + 100, 5)])
        for first in range(0, 400, 100)
    ]
    in_thread(lambda: ([thread.join() for thread in producers], store.close()))
    assert tokens(store) == list(range(400))


def test_passes_in_an_event_loop():
    async def main():
        store = store_of(queue_rows=16)

        async def capture():
            for start in range(0, 400, 20):
                await store.extend_pass(a_pass(20, start))
            store.close()

        async def train():
            return sorted([token async for batch in store for token in batch["token"][:, 0].tolist()])

        return (await asyncio.wait_for(asyncio.gather(capture(), train()), 60))[1]

    assert asyncio.run(main()) == list(range(400))


@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_call_that_waits_is_told_when_the_store_closes(in_thread, end):
    store = store_of(queue_rows=16)
    with pytest.raises(TimeoutError):
        while True:
            store.extend_pass(a_pass(16), timeout=0.1)  # now it is full
    waiting, told = threading.Barrier(3), []

    def wait(extend):
        waiting.wait()
        try:
            extend()
        except StoreClosedError as error:
            told.append(error)

    threads = [
        in_thread(lambda: wait(lambda: store.extend_pass(a_pass(16)))),
        in_thread(lambda: wait(lambda: store.producer().extend(numbered(16, 3), "a"))),
    ]
    waiting.wait()
    getattr(store, end)()
    for thread in threads:
        thread.join(30)
    assert len(told) == 2
