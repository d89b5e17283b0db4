"""How a pipeline ends: errors reach the training loop, and no caller is left waiting."""

import asyncio
import gc
import threading
import traceback
import weakref

import pytest
from conftest import numbered, run

from activation_store import RingStore


def small(**settings):
    return RingStore(4, batch_size=8, window=16, queue_rows=8, output="numpy", **settings)


class Broken(Exception):
    """The model's error."""


def fails_in_capture():
    raise Broken("out of memory")


def closed_with_an_error(rows=20):
    store = small()
    store.extend(numbered(rows, 4))
    try:
        fails_in_capture()
    except Broken as error:
        store.close(error)
        return store, error


def test_an_error_of_the_capture_reaches_the_loop_after_the_rows():
    store, error = closed_with_an_error(20)
    rows = 0
    with pytest.raises(Broken) as raised:
        for batch in store:
            rows += len(batch)
    assert rows == 20
    assert raised.value is error
    assert "fails_in_capture" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]


def test_each_loop_is_told_once():
    store, error = closed_with_an_error(8)
    first, second = iter(store), iter(store)
    assert len(next(second)) == 8
    depths = []
    for loop in (first, second, iter(store), store):
        with pytest.raises(Broken) as raised:
            next(loop)
        assert raised.value is error
        depths.append(len(traceback.extract_tb(raised.value.__traceback__)))
        with pytest.raises(StopIteration):
            next(loop)
    assert depths[0] == depths[1] == depths[2], "one loop's frames are not in another's traceback"


def test_tasks_are_told_too():
    async def main():
        store = small()

        async def train():
            return [len(batch) async for batch in store]

        tasks = [asyncio.create_task(train()) for _ in range(3)]
        await asyncio.sleep(0)
        store.extend(numbered(20, 4))
        store.close(Broken("out of memory"))
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)

    assert [type(outcome) for outcome in asyncio.run(main())] == [Broken] * 3


def test_the_first_error_stays_and_abort_discards_it():
    store, error = closed_with_an_error(8)
    store.close()
    store.close(KeyError("later"))
    assert len(next(store)) == 8
    with pytest.raises(Broken):
        next(store)
    store, _ = closed_with_an_error(8)
    loop = iter(store)
    store.abort()
    assert list(loop) == []
    store = small()
    store.close()
    store.close(error)  # also after a plain close
    with pytest.raises(Broken):
        next(store)


def test_what_would_end_a_loop_quietly_is_made_an_error():
    for end in (StopIteration(), StopAsyncIteration()):
        store = small()
        store.close(end)
        with pytest.raises(RuntimeError, match=type(end).__name__) as raised:
            list(store)
        assert raised.value.__cause__ is end
    with pytest.raises(TypeError, match="must be an exception"):
        small().close("out of memory")


def test_a_store_is_freed_although_its_error_leads_back_to_it():
    def run_into_an_error():
        store = small()
        try:
            store.extend(numbered(8, 4))
            fails_in_capture()
        except Broken as error:
            store.close(error)
        return weakref.ref(store)

    store = run_into_an_error()
    gc.collect()
    assert store() is None


def test_a_loop_that_runs_when_the_store_is_aborted_ends_quietly(in_thread):
    store = small()
    got, first = [], threading.Event()

    def train():
        for batch in store:
            got.append(len(batch))
            first.set()

    thread = in_thread(train)
    store.extend(numbered(40, 4))
    assert first.wait(30)
    store.abort()
    thread.join(30)
    with pytest.raises(RuntimeError, match="make another store"):
        list(store)


def test_loops_come_and_go_without_closing_the_store():
    store = small()
    for _ in range(3):
        loop = iter(store)
        with pytest.raises(TimeoutError):
            loop.next(timeout=0)
        del loop
    assert not store.closed
    store.extend(numbered(20, 4))


def test_a_loop_over_a_store_that_nothing_else_refers_to_ends():
    store = small()
    store.extend(numbered(20, 4))
    loop = iter(store)
    del store
    gc.collect()
    assert sum(len(batch) for batch in loop) == 20


PIPELINE = """
store = RingStore({"a": 4, "b": 4}, batch_size=8, window=16, queue_rows=8, output="numpy")

def capture():
    rows = np.zeros((8, 4), np.float32)
    try:
        for number in range(PASSES):
            if store.closed:
                break
            time.sleep(MODEL)
            if number == FAILS_AT:
                raise MemoryError("the model failed")
            store.extend_pass({"a": rows, "b": rows})
    except StoreClosedError:
        pass
    except BaseException as error:
        store.close(error)
    else:
        store.close()

threading.Thread(target=capture).start()  # not a daemon: the process ends only if this does

def train(leave):
    with store:
        for number, batch in enumerate(store):
            time.sleep(TRAINER)
            if number == 5:
                if leave == "break":
                    break
                if leave == "return":
                    return
                if leave == "raise":
                    raise KeyError("the trainer failed")
                if leave == "Ctrl-C":
                    os.kill(os.getpid(), signal.SIGINT)
"""

PACES = {"fast": (0, 0), "a slow model": (0.01, 0), "a slow trainer": (0, 0.01)}


def pipeline(code, pace, passes=10**9, fails_at=-1):
    model, trainer = PACES[pace]
    settings = f"PASSES, FAILS_AT, MODEL, TRAINER = {passes}, {fails_at}, {model}, {trainer}\n"
    return run(settings + PIPELINE + code)


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize(
    ("leave", "error"), [("break", ""), ("return", ""), ("raise", "KeyError: 'the trainer failed'"), ("Ctrl-C", "KeyboardInterrupt")]
)
def test_the_process_ends_however_the_loop_is_left(leave, error, pace):
    result = pipeline(f"train({leave!r})", pace)
    assert result.stderr.strip().split("\n")[-1] == error, result


@pytest.mark.parametrize("pace", PACES)
def test_the_process_ends_with_a_trainer_that_died_on_its_own_thread(pace):
    result = pipeline("threading.Thread(target=train, args=('raise',)).start()", pace)
    assert (result.returncode, result.stderr.count("Traceback")) == (0, 1), result


@pytest.mark.parametrize("pace", PACES)
def test_the_process_ends_with_a_model_that_fails(pace):
    result = pipeline("train('')", pace, fails_at=50)
    assert result.returncode == 1 and "MemoryError: the model failed" in result.stderr and "in capture" in result.stderr, result


@pytest.mark.parametrize("pace", PACES)
def test_the_process_ends_with_the_text(pace):
    result = pipeline("train('')\nprint(store.stats().components['b'].served)", pace, passes=100)
    assert (result.stdout, result.stderr) == ("800\n", ""), result
