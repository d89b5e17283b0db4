"""Threads, signals and processes."""

import copy
import os
import pickle
import threading
import time

import numpy as np
import pytest
from conftest import numbered, run

from activation_store import RingStore, TensorActivationStore


@pytest.mark.parametrize("what", ["next(store)", "store.extend(rows)", "future.result()", "store.flush()", "future.exception(30)"])
def test_ctrl_c_interrupts_a_blocked_call(what):
    result = run(f"""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
        rows = np.zeros((64, 4), np.float32)
        store = RingStore(4, batch_size=8, window=16, queue_rows=8)
        if {what!r} != "next(store)":
            for _ in range(3):
                try:
                    future = store.extend(rows, timeout=0.2)
                except TimeoutError:
                    pass
        try:
            threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            {what}
        except KeyboardInterrupt:
            print("interrupted")
        store.close()
        print(sum(len(batch) for batch in store) % 64)
    """)
    assert result.stdout.split() == ["interrupted", "0"], result


CALLS = [
    "next(store)", "store.next(timeout=1)", "store.extend(rows)", "store.try_extend(rows)", "store.append(rows[0])", "len(store)",
    "store.stats()", "store.flush()", "store.close()", "store.empty()", "store.producer()", "future.result(1)", "future.done()",
    "lane.extend(rows)", "tensor.extend(rows, 0)", "tensor[0]", "len(tensor)", "tensor.shuffle()", "store[0]", "store.closed",
]  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_told():
    result = run(f"""
        rows = np.zeros((5, 4), np.float32)
        store = RingStore(4, batch_size=8, window=16)
        tensor = TensorActivationStore(100, 4, 1)
        tensor.extend(rows, 0)
        lane = store.producer()
        future = store.extend(rows)
        batches = list(tensor.batches(2))
        for call in {CALLS!r}:
            child = os.fork()
            if not child:
                signal.alarm(10)
                try:
                    eval(call)
                except RuntimeError as error:
                    assert "cannot be used in process" in str(error) and "DataLoader: num_workers=0" in str(error), error
                else:
                    print(call, "gave no error", flush=True)
                del store, tensor, lane, future, batches
                own = RingStore(4, batch_size=2, window=4)  # a store of the child's own works
                own.extend(rows)
                own.close()
                assert sum(len(batch) for batch in own) == 5
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            if status:
                print(call, "ended with", status)
        store.close()
        print(sum(len(batch) for batch in store))
    """)
    assert (result.stdout, result.stderr) == ("5\n", ""), result


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_reads_the_minibatches_that_it_has_inherited():
    result = run("""
        store = RingStore(4, batch_size=8, window=32, output="numpy")
        rows = iter(range(1, 10**6))
        def write():
            store.extend(np.full((8, 4), next(rows), np.float32))
        for _ in range(5):
            write()
        kept = next(store)
        expected = kept.copy()
        told, tell = os.pipe()
        child = os.fork()
        if not child:
            signal.alarm(10)
            os.read(told, 1)
            # No zeroes, no later rows, and no crash.
            os._exit(0 if kept.min() >= 1 and (kept == expected).all() else 1)
        del kept
        for _ in range(40):  # every frame is written again
            write()
            next(store)
        os.write(tell, b".")
        print(os.waitpid(child, 0)[1])
    """)
    assert (result.stdout, result.stderr) == ("0\n", ""), result


def test_awaiting_works_in_a_forked_child():
    result = run("""
        import asyncio
        rows = np.zeros((5, 4), np.float32)
        async def main():
            store = RingStore(4, batch_size=2, window=4, output="numpy")
            for _ in range(3):
                asyncio.ensure_future(asyncio.wrap_future(store.extend(rows)))
            await anext(store)
            store.close()
            # In one write: both processes print, and `print` writes the end of the line apart under PYTHONUNBUFFERED.
            os.write(1, b"%d\\n" % sum([len(batch) async for batch in store]))
        asyncio.run(main())  # starts the watcher
        child = os.fork()
        asyncio.run(main())
        if not child:
            os._exit(0)
        os.write(1, b"%d\\n" % os.waitpid(child, 0)[1])
    """)
    assert result.stdout.split() == ["13", "13", "13", "0"], result


@pytest.mark.parametrize("kind", ["ring", "tensor"])
def test_a_data_loader_worker_is_told(kind):
    torch = pytest.importorskip("torch")
    if kind == "ring":
        store = RingStore(4, batch_size=8, window=16)
        loader = torch.utils.data.DataLoader(store, batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=30)
    else:
        store = TensorActivationStore(100, 4, 1)
        store.extend(numbered(20, 4), 0)
        loader = torch.utils.data.DataLoader(store, batch_size=4, num_workers=1, multiprocessing_context="fork", timeout=30)
    with pytest.raises(RuntimeError, match="num_workers=0"):
        list(loader)


@pytest.mark.parametrize("make", [
    lambda: RingStore(4, batch_size=8, window=16),
    lambda: TensorActivationStore(10, 4, 1),
    lambda: RingStore(4, batch_size=8, window=16).producer(),
])  # fmt: skip
def test_pickling_says_why(make):
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            copied(make())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_spawned_workers_are_told():
    torch = pytest.importorskip("torch")
    store = RingStore(4, batch_size=8, window=16)
    with pytest.raises(TypeError, match="cannot be pickled"):
        list(torch.utils.data.DataLoader(store, batch_size=None, num_workers=1, multiprocessing_context="spawn"))


@pytest.mark.parametrize("what", ["next(store)", "store.extend(rows)", "future.result()", "store.flush()"])
def test_waits_let_other_threads_run(what):
    # Were the GIL kept, the thread that ends the wait could not: the process would hang until it is killed.
    result = run(f"""
        rows = np.zeros((64, 4), np.float32)
        store = RingStore(4, batch_size=8, window=16, queue_rows=8)
        if {what!r} != "next(store)":
            future = store.extend(rows)
        waiting = threading.Thread(target=lambda: {what})
        waiting.start()
        time.sleep(0.1)  # by now it waits, most likely
        if {what!r} == "next(store)":
            store.extend(rows)
        while waiting.is_alive():
            if {what!r} == "next(store)":
                waiting.join(0.01)  # the minibatches are for the thread
                continue
            try:
                store.next(timeout=0.01)
            except TimeoutError:
                pass
        print("ended")
    """)
    assert result.stdout.split() == ["ended"], result


@pytest.mark.parametrize("blocked", ["next(store)", "fill()", "store.flush()", "future.result()"])
def test_the_interpreter_goes_down_with_blocked_daemon_threads(blocked):
    result = run(f"""
        rows = np.zeros((64, 4), np.float32)
        store = RingStore(4, batch_size=8, window=16, queue_rows=8)
        def fill():
            while True:
                store.extend(rows)
        if {blocked!r} != "next(store)":
            future = store.extend(rows)
        threading.Thread(target=lambda: {blocked}, daemon=True).start()
        future_of_another = RingStore(4, batch_size=8, window=16).extend(rows)
        future_of_another.add_done_callback(lambda done: None)
        time.sleep(0.3)
        sys.stdout.close()
    """)
    assert (result.returncode, result.stderr) == (0, ""), result


def test_stores_come_and_go_without_leaving_threads():
    def threads():
        return len(os.listdir("/proc/self/task"))

    if not os.path.isdir("/proc/self/task"):
        pytest.skip("no /proc here")
    for _ in range(3):
        RingStore(4, batch_size=8, window=16).extend(numbered(4, 4)).done()
    time.sleep(0.2)
    before = threads()
    for _ in range(50):
        RingStore(4, batch_size=8, window=16).extend(numbered(100, 4))
        TensorActivationStore(100, 4, 1).extend(numbered(100, 4), 0)
    deadline = time.monotonic() + 10
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() <= before


def test_many_threads_at_once(in_thread):
    """Hammers one store from all sides; for a free-threaded interpreter above all."""
    store = RingStore(8, batch_size=16, window=128, queue_rows=64, output="numpy")
    rows, lock = [], threading.Lock()

    def capture(first):
        futures = [store.extend(numbered(3, 8, first=start), timeout=30) for start in range(first, first + 300, 3)]
        assert sum(future.result(30).rows for future in futures) == 300

    def train():
        for batch in store:
            with lock:
                rows.extend(batch[:, 0].astype(int))
            store.stats()

    consumers = [in_thread(train) for _ in range(3)]
    producers = [in_thread(lambda first=first: capture(first)) for first in range(0, 2400, 300)]
    stop = time.monotonic() + 30
    while any(thread.is_alive() for thread in producers) and time.monotonic() < stop:
        if store.stats().components["0"].queued == 0:
            time.sleep(0.05)
            if not any(thread.is_alive() for thread in producers):
                break
            # What the producers wait for is in the ring, which needs more rows to give any out.
            store.extend(np.full((16, 8), -1, np.float32), timeout=30)
    store.close()
    for consumer in consumers:
        consumer.join(30)
    assert sorted(row for row in rows if row >= 0) == list(range(2400))
