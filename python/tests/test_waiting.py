"""A wait that nothing can end says once what is missing."""

import asyncio
import threading
import warnings

import pytest
from conftest import numbered

from activation_store import RingStore, StoreClosedError
from activation_store._ring import parties


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(parties, "AFTER", 0.1)


def small():
    return RingStore(4, batch_size=8, window=16, queue_rows=8, output="numpy")


def aborted_when_warned(store, wait):
    """Calls `wait()`, and aborts the store at the first warning, which is returned."""
    said = []

    def show(message, *_args, **_settings):
        said.append(str(message))
        store.abort()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        wait()
    (message,) = said
    return message


@pytest.mark.parametrize("call", ["extend", "extend_pass", "append"])
def test_a_writer_says_that_no_consumer_ever_asked(call):
    store = small()

    def fill():
        rows = {"extend": numbered(8, 4), "extend_pass": {"0": numbered(8, 4)}, "append": numbered(1, 4)[0]}[call]
        with pytest.raises(StoreClosedError):
            for _ in range(100):
                getattr(store, call)(rows)

    message = aborted_when_warned(store, fill)
    assert message.startswith(f"`{call}` has waited 0.1 s: no consumer has ever asked for a minibatch"), message


def test_a_lane_says_so_too_and_flush():
    store = small()
    lane = store.producer()

    def fill():
        with pytest.raises(StoreClosedError):
            for _ in range(100):
                lane.extend(numbered(8, 4))

    assert "no consumer has ever asked" in aborted_when_warned(store, fill)
    store = small()
    store.try_extend(numbered(200, 4))

    def flush():
        with pytest.raises(StoreClosedError):
            store.flush()

    assert aborted_when_warned(store, flush).startswith("`flush` has waited 0.1 s: no consumer has ever asked")


def test_a_writer_says_that_no_consumer_is_left(in_thread):
    store = small()
    store.extend(numbered(40, 4))
    in_thread(lambda: next(iter(store))).join(30)

    def fill():
        with pytest.raises(StoreClosedError):
            for _ in range(100):
                store.extend(numbered(8, 4))

    assert "no consumer is left" in aborted_when_warned(store, fill)


def test_a_loop_says_that_no_producer_is_left(in_thread):
    store = small()
    store.extend(numbered(8, 4))  # by this thread, which waits below
    in_thread(lambda: store.extend(numbered(8, 4))).join(30)
    message = aborted_when_warned(store, lambda: list(store))
    assert message.startswith("a loop over the store has waited 0.1 s: no producer is left and the store is not closed"), message


def test_a_loop_says_that_nothing_was_ever_written():
    store = small()
    assert "nothing has ever been written" in aborted_when_warned(store, lambda: list(store))


@pytest.fixture
def resumed_without_a_lane():
    """A resumed store that has a lane "left", and waits for the lane "right"."""
    first = RingStore(4, batch_size=8, window=16, queue_rows=1000, merge="round_robin", output="numpy")
    lanes = [first.producer(name) for name in ("left", "right")]
    for lane in lanes:
        lane.extend(numbered(100, 4))
    next(iter(first))
    state = first.state_dict()
    first.abort()
    resumed = RingStore.resume(state, output="numpy")
    left = resumed.producer("left")
    left.extend(numbered(100, 4))
    yield resumed
    resumed.abort()


def test_a_wait_that_is_over_names_the_lane_that_a_resumed_store_waits_for(resumed_without_a_lane):
    with pytest.raises(TimeoutError, match='within 0.2 s: the resumed store waits for lane "right", .* open it with producer'):
        for _ in range(100):  # "left" sends its rows first
            resumed_without_a_lane.next(timeout=0.2)
    resumed_without_a_lane.producer("right").extend(numbered(100, 4))
    assert len(resumed_without_a_lane.next(timeout=30)) == 8


def test_a_loop_names_the_lane_that_a_resumed_store_waits_for(resumed_without_a_lane):
    store = resumed_without_a_lane
    message = aborted_when_warned(store, lambda: list(store))
    assert message.startswith('a loop over the store has waited 0.1 s: the resumed store waits for lane "right"'), message


def test_a_task_names_the_lane_that_a_resumed_store_waits_for(resumed_without_a_lane):
    async def train(store):
        return [len(batch) async for batch in store]

    store = resumed_without_a_lane
    message = aborted_when_warned(store, lambda: asyncio.run(train(store)))
    assert message.startswith('a loop over the store has waited 0.1 s: the resumed store waits for lane "right"'), message


def test_a_task_says_so_only_if_no_other_task_can_write(in_thread):
    async def train(store):
        return [len(batch) async for batch in store]

    store = small()
    in_thread(lambda: store.extend(numbered(8, 4))).join(30)
    assert "no producer is left" in aborted_when_warned(store, lambda: asyncio.run(train(store)))

    async def write_later(store):
        store.extend(numbered(8, 4))
        task = asyncio.create_task(train(store))
        await asyncio.sleep(0.5)  # several times the time after which it would speak
        store.close()
        return await task

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asyncio.run(write_later(small())) == [8]


def test_nothing_is_said_while_the_other_side_is_there(in_thread):
    store = small()
    go_on = threading.Event()

    def train():
        loop = iter(store)
        next(loop)
        go_on.wait(30)
        list(loop)

    in_thread(train)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.extend(numbered(40, 4))
        with pytest.raises(TimeoutError):
            store.extend(numbered(400, 4), timeout=0.5)
        threading.Timer(0.5, go_on.set).start()
        for _ in range(20):
            store.extend(numbered(8, 4))
        store.close()


def test_nothing_is_raised_where_warnings_are_errors():
    store = small()
    threading.Timer(0.5, store.abort).start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(store) == []
