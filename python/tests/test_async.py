"""Capture and training as tasks of one event loop."""

import asyncio

import numpy as np
import pytest
from conftest import numbered

from activation_store import RingStore


def test_capture_and_training_in_one_loop():
    async def capture(store):
        for start in range(0, 2000, 50):
            await store.extend(numbered(50, 4, first=start))
        store.close()

    async def train(store):
        return [batch async for batch in store]

    async def main():
        store = RingStore(4, batch_size=16, window=64, queue_rows=16, output="numpy")
        _, batches = await asyncio.wait_for(asyncio.gather(capture(store), train(store)), 60)
        return np.concatenate(batches)

    rows = asyncio.run(main())
    assert np.array_equal(rows[np.argsort(rows[:, 0])], numbered(2000, 4))


def test_extend_never_blocks_the_loop():
    async def main():
        store = RingStore(4, batch_size=8, window=16, queue_rows=8, output="numpy")
        futures = [store.extend(numbered(8, 4, first=start)) for start in range(0, 800, 8)]
        assert not futures[-1].done()
        store.close()
        rows = [row async for batch in store for row in batch[:, 0]]
        assert [written.first_row for written in await asyncio.gather(*futures)] == list(range(0, 800, 8))
        return rows

    assert sorted(asyncio.run(main())) == list(range(800))


def test_several_tasks_share_the_store():
    async def main():
        store = RingStore(2, batch_size=8, window=32, output="numpy")

        async def train():
            return [row async for batch in store for row in batch[:, 0]]

        tasks = [asyncio.create_task(train()) for _ in range(4)]
        for start in range(0, 800, 20):
            await store.extend(numbered(20, 2, first=start))
        store.close()
        return [row for rows in await asyncio.gather(*tasks) for row in rows]

    assert sorted(asyncio.run(main())) == list(range(800))


def test_cancelling_a_wait_for_a_minibatch_loses_none():
    async def main():
        store = RingStore(2, batch_size=8, window=16, output="numpy")
        rows = []

        async def train():
            async for batch in store:
                rows.extend(batch[:, 0])

        async def capture():
            for start in range(0, 400, 8):
                await store.extend(numbered(8, 2, first=start))
                await asyncio.sleep(0.001)
            store.close()

        capturing = asyncio.create_task(capture())
        while not capturing.done():
            # Cancelled again and again, often just as a minibatch arrives.
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(train(), 0.003)
                raise TimeoutError
        await capturing
        await asyncio.wait_for(train(), 10)
        return rows

    assert sorted(asyncio.run(main())) == list(range(400))


def test_loops_come_and_go():
    store = RingStore(2, batch_size=8, window=16, output="numpy")

    async def wait_in_vain():
        task = asyncio.ensure_future(store.__anext__())
        await asyncio.sleep(0.02)
        assert not task.done()

    asyncio.run(wait_in_vain())  # leaves a waiting task behind, which asyncio cancels

    async def take():
        return len(await anext(store))

    store.extend(numbered(100, 2), timeout=0)
    assert asyncio.run(take()) == 8


def test_errors_reach_the_awaiting_task():
    async def main():
        store = RingStore(4, batch_size=8, window=16, queue_rows=8)
        futures = [store.extend(numbered(8, 4)) for _ in range(50)]
        asyncio.get_running_loop().call_later(0.05, store.abort)
        with pytest.raises(ValueError, match="aborted"):
            await asyncio.gather(*[asyncio.wrap_future(future) for future in futures])
        for future in futures:
            future.exception()

    asyncio.run(main())


def test_a_minibatch_that_a_cancelled_task_leaves_goes_to_one_that_waits():
    async def main():
        store = RingStore(2, batch_size=8, window=8, output="numpy")
        first = asyncio.ensure_future(anext(store))
        second = asyncio.ensure_future(anext(store))
        await asyncio.sleep(0)
        store.extend(numbered(8, 2))
        # It comes while this thread does not look; then the task it came for is cancelled.
        while store.stats().minibatches_served == 0:
            pass
        first.cancel()
        return len(await asyncio.wait_for(second, 30))

    assert asyncio.run(main()) == 8


def test_a_minibatch_that_a_cancelled_task_leaves_goes_to_a_thread_that_waits(in_thread):
    store = RingStore(2, batch_size=8, window=8, output="numpy")
    got = []

    async def main():
        task = asyncio.ensure_future(anext(store))
        await asyncio.sleep(0)
        store.extend(numbered(8, 2))
        while store.stats().minibatches_served == 0:
            pass
        # It has been served to the task, so a thread that comes now finds none.
        thread = in_thread(lambda: got.append(len(next(store))))
        task.cancel()
        while thread.is_alive():
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), 30))
    assert got == [8]


def test_a_timeout_is_kept_on_a_thread_that_runs_a_loop():
    async def main():
        store = RingStore(4, batch_size=8, window=16, queue_rows=8, output="numpy")
        with pytest.raises(TimeoutError, match="Nothing was written"):
            for start in range(0, 8000, 8):
                store.extend(numbered(8, 4, first=start), timeout=0.01)

    asyncio.run(main())
