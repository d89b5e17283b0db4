"""The handle of a write."""

import asyncio
import concurrent.futures
import pickle
import threading
import time

import pytest
from conftest import numbered

from activation_store import RingStore, StoreClosedError, Written


@pytest.fixture
def full():
    """A store whose next write stays pending until it is drained, and that write."""
    store = RingStore(4, batch_size=8, window=16, ready_frames=1, queue_rows=10_000, output="numpy")
    store.extend(numbered(64, 4))
    return store, store.extend(numbered(8, 4, first=64))


def finish(store):
    """Drains the store a little later, on another thread."""

    def run():
        time.sleep(0.1)
        store.close()
        for _ in store:
            pass

    threading.Thread(target=run, daemon=True).start()


def test_result():
    store = RingStore(4, batch_size=8, window=64)
    assert store.extend(numbered(5, 4)).result(10) == (5, 0)
    future = store.extend(numbered(7, 4))
    assert future.result() == Written(rows=7, first_row=5)
    assert future.result(0) == (7, 5), "as often as wanted"
    assert future.done() and not future.running() and not future.cancelled()
    assert future.exception() is None


def test_large_batches_are_one_write():
    store = RingStore(768, batch_size=64, window=4096)
    store.extend(numbered(10, 768))
    assert store.extend(numbered(1000, 768)).result(10) == (1000, 10)


def test_pending(full):
    store, future = full
    assert not future.done() and future.running()
    with pytest.raises(TimeoutError, match="not in the store within 0.05 s; the write goes on"):
        future.result(timeout=0.05)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.exception(timeout=0)
    assert not future.cancel() and not future.cancelled()
    finish(store)
    assert future.result(10).rows == 8


def test_callbacks(full):
    store, future = full
    called = []
    future.add_done_callback(lambda done: called.append((done, threading.current_thread().name)))
    future.add_done_callback(lambda done: called.append(done.result().rows))
    assert called == []
    finish(store)
    future.result(10)
    deadline = time.monotonic() + 10
    while len(called) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert called[0][0] is future and called[1] == 8
    future.add_done_callback(lambda done: called.append("at once"))
    assert called[2] == "at once"


def test_concurrent_futures_wait(full):
    store, future = full
    other = RingStore(4, batch_size=8, window=64).extend(numbered(3, 4))
    other.exception(10)
    done, pending = concurrent.futures.wait([future, other], timeout=0.1, return_when=concurrent.futures.ALL_COMPLETED)
    assert (done, pending) == ({other}, {future})
    finish(store)
    done, pending = concurrent.futures.wait([future, other], timeout=10)
    assert done == {future, other} and not pending
    assert list(concurrent.futures.as_completed([future], timeout=10)) == [future]


def test_as_completed_while_pending(full):
    store, future = full
    finish(store)
    assert [done.result().rows for done in concurrent.futures.as_completed([future], timeout=10)] == [8]


def test_asyncio_wrap_future(full):
    store, future = full

    async def main():
        wrapped = asyncio.wrap_future(future)
        finish(store)
        return await asyncio.wait_for(wrapped, 10)

    assert asyncio.run(main()) == (8, 64)


def test_await(full):
    store, future = full

    async def main():
        finish(store)
        assert await future == (8, 64)
        assert await future == (8, 64), "as often as wanted"
        return await asyncio.gather(*[asyncio.ensure_future(_await(future)) for _ in range(3)])

    async def _await(future):
        return await future

    assert asyncio.run(main()) == [(8, 64)] * 3


def test_cancelling_the_await_does_not_cancel_the_write(full):
    store, future = full

    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_await(), 0.1)

    async def _await():
        await future

    asyncio.run(main())
    finish(store)
    assert future.result(10).rows == 8


def test_many_threads_wait_for_one(full):
    store, future = full
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(future.result, 20) for _ in range(8)]
        finish(store)
        assert {done.result() for done in waiting} == {(8, 64)}


def test_a_thread_that_waits_holds_up_nobody_else(full):
    store, pending = full
    started = threading.Event()

    def wait():
        started.set()
        pending.exception(60)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    started.wait()
    called = threading.Event()
    pending.add_done_callback(lambda done: called.set())  # watched by the thread that watches all
    other = RingStore(4, batch_size=8, window=64).extend(numbered(3, 4))
    told = threading.Event()
    other.add_done_callback(lambda done: told.set())
    assert told.wait(30)
    with pytest.raises(TimeoutError):
        pending.result(0.01)
    assert not called.is_set() and waiting.is_alive()
    store.abort()
    assert called.wait(30)
    waiting.join(30)


def test_dropping_it_loses_nothing():
    store = RingStore(4, batch_size=8, window=16, output="numpy")
    finish_rows = []

    def capture():
        for start in range(0, 400, 20):
            store.extend(numbered(20, 4, first=start))
        store.close()

    threading.Thread(target=capture, daemon=True).start()
    for batch in store:
        finish_rows.extend(batch[:, 0])
    assert sorted(finish_rows) == list(range(400))


def test_rows_without_counterparts_are_reported_by_flush_once():
    store = RingStore({"a": 4, "b": 4}, batch_size=8, window=16, output="numpy")
    lane = store.producer()
    future = lane.extend(numbered(3, 4), "a")
    lane.close()
    assert future.result(10).rows == 3, "these rows were taken; it is the lane's end that loses them"
    with pytest.raises(ValueError, match="3 rows of component 0 .* had no counterpart in component 1"):
        store.flush(10)
    store.flush(10)
    assert store.stats().components["a"].dropped_by.unmatched == 3


@pytest.mark.parametrize("watched", [False, True])
def test_a_write_that_fails_keeps_its_error(full, watched):
    store, future = full
    if watched:
        future.add_done_callback(lambda done: None)
    store.abort()
    assert concurrent.futures.wait([future], timeout=10).done == {future}
    for _ in range(2):
        with pytest.raises(StoreClosedError, match="aborted"):
            future.result(10)


def test_pickling_says_why():
    future = RingStore(4, batch_size=8, window=16).extend(numbered(1, 4))
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(future)


def test_a_finished_write_is_finished_without_waiting():
    future = RingStore(4, batch_size=8, window=16).extend(numbered(1, 4))
    while not future._outcome.done():
        pass
    assert concurrent.futures.wait([future], timeout=0).done == {future}
    assert list(concurrent.futures.as_completed([future], timeout=0)) == [future]
    assert "finished" in repr(future)
