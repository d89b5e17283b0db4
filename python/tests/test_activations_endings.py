"""How `activations` ends: with a function in place of a model, in processes of their own, without torch."""

import gc
import sys
import threading
import traceback
import warnings

import numpy as np
import pytest
from conftest import numbered, run

from activation_store import RingStore, StoreClosedError, activations

SETTINGS = {"batch_size": 8, "window": 16, "output": "numpy"}


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    gc.collect()
    assert left() == []


def left():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("activation-store-model")]


def rows_of(batch):
    return {"x": batch}


def endless():
    while True:
        yield numbered(8, 4)


class Broken(Exception):
    """The model's or the loader's error."""


def breaks_after(count):
    calls = 0

    def function(batch):
        nonlocal calls
        calls += 1
        if calls > count:
            raise Broken("out of memory")
        return {"x": batch}

    return function


@pytest.fixture
def ended():
    """What a closed store raises at a write."""
    other = RingStore({"x": 4}, batch_size=8, window=16)
    other.close()
    with pytest.raises(StoreClosedError) as raised:
        other.extend_pass({"x": numbered(8, 4)})
    return raised.value


class Rows(dict):
    """Rows of a mapping of the user's own."""

    def items(self):
        raise self["error"]


@pytest.mark.parametrize("where", ["function", "rows", "loader"])
def test_the_end_of_another_store_does_not_end_the_loop_as_if_all_were_well(ended, where):
    calls = 0

    def function(batch):
        nonlocal calls
        calls += 1
        if calls > 3 and where == "function":
            raise ended
        return Rows(error=ended) if calls > 3 and where == "rows" else {"x": batch}

    def loader():
        for _ in range(3 if where == "loader" else 10):
            yield numbered(8, 4)
        raise ended

    served = []
    with pytest.raises(StoreClosedError) as raised:
        served.extend(activations(function, loader(), **SETTINGS))
    assert raised.value is ended
    assert sum(len(batch) for batch in served) == 24


def loader_that_breaks_after(count):
    for _ in range(count):
        yield numbered(8, 4)
    raise Broken("no such file")


def test_a_function_of_your_own_gives_the_rows():
    batches = [numbered(10, 4, first=10 * number) for number in range(10)]
    served = list(activations(rows_of, batches, **SETTINGS))
    rows = np.concatenate(served)
    assert np.array_equal(rows[np.argsort(rows[:, 0])], np.concatenate(batches))
    several = list(activations(lambda batch: {"x": batch, "y": batch[:, :2]}, batches, **SETTINGS))
    assert all(np.array_equal(batch["x"][:, :2], batch["y"]) or batch["y"].shape == (len(batch["x"]), 2) for batch in several)
    assert sum(len(batch["y"]) for batch in several) == 100


@pytest.mark.parametrize("passes", [0, 20])
@pytest.mark.parametrize("which", ["function", "loader"])
def test_an_error_is_raised_in_the_loop_after_the_rows(which, passes):
    served = 0
    function, batches = (breaks_after(passes), endless()) if which == "function" else (rows_of, loader_that_breaks_after(passes))
    loop = activations(function, batches, **SETTINGS)
    with pytest.raises(Broken) as raised:
        for batch in loop:
            served += len(batch)
    assert served == 8 * passes
    names = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert ("function" if which == "function" else "loader_that_breaks_after") in names
    assert left() == []
    assert list(loop) == [], "told once"


def test_no_batches_no_minibatches():
    assert list(activations(rows_of, [], **SETTINGS)) == []


def test_what_is_wrong_with_the_rows_is_raised():
    for function, error, message in [
        (lambda batch: batch, TypeError, "by name"),
        (lambda batch: {"x": 3}, TypeError, "'x' is int"),
        (lambda batch: {"x": batch.astype(np.float64)}, TypeError, "cannot be stored"),
        (lambda batch: {"x": batch, "y": batch[1:]}, ValueError, "rows"),
    ]:
        with pytest.raises(error, match=message):
            list(activations(function, endless(), **SETTINGS))


def test_widths_may_not_change():
    with pytest.raises(ValueError, match="features"):
        list(activations(rows_of, [numbered(8, 4), numbered(8, 5)], **SETTINGS))


def test_settings_are_checked_at_the_call():
    for settings, error in [
        ({"batch_size": 0}, ValueError),
        ({"merge": "no"}, ValueError),
        ({"dtype": "f8"}, ValueError),
        ({"windows": 3}, TypeError),
        ({"mask": True}, TypeError),
    ]:
        with pytest.raises(error):
            activations(rows_of, endless(), **{**SETTINGS, **settings})
    with pytest.raises(TypeError, match="give a torch module"):
        activations(3, endless())
    with pytest.raises(ValueError, match="at least one"):
        activations([], endless())


def test_dtypes_are_those_of_the_rows_unless_given():
    tokens = np.arange(32).reshape(32, 1)

    def function(batch):
        return {"half": batch.astype(np.float16), "token": tokens}

    for dtype, expected in [(None, np.float16), ("f32", np.float32)]:
        for batch in activations(function, [numbered(32, 4)], dtype=dtype, **SETTINGS):
            assert (batch["half"].dtype, batch["token"].dtype) == (expected, np.int64)


def test_it_ends_with_its_last_reference_with_close_and_with_the_block():
    for batch in activations(rows_of, endless(), **SETTINGS):
        assert len(batch) == 8
        break
    assert left() == []
    named = activations(rows_of, endless(), **SETTINGS)
    next(named)
    assert left()
    named.close()
    assert left() == []
    assert list(named) == []
    named.close()
    with activations(rows_of, endless(), **SETTINGS) as batches:
        next(batches)
        assert batches.stats().components["x"].served == 8
    assert left() == []
    assert batches.stats().components["x"].served == 8


def test_an_error_in_the_loop_ends_it_while_the_error_is_handled():
    try:
        for _ in activations(rows_of, endless(), **SETTINGS):
            raise Broken  # noqa: TRY301
    except Broken:
        assert left() == []


def test_next_gives_up_in_time():
    go_on = threading.Event()

    def function(batch):
        go_on.wait(30)
        return {"x": batch}

    batches = activations(function, [numbered(8, 4)] * 4, **SETTINGS)
    with pytest.raises(TimeoutError, match="first forward pass"):
        batches.next(timeout=0.05)
    go_on.set()
    assert sum(map(len, batches)) == 32


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_replicas_get_batches_by_index_and_repeat(replicas):
    def replica(number):
        def function(batch):
            seen[number].append(int(batch[0, 0]) // 10)
            return {"x": batch}

        return function

    runs = []
    for _ in range(3):
        seen = [[] for _ in range(replicas)]
        batches = (numbered(10, 4, first=10 * number) for number in range(50))
        served = activations([replica(number) for number in range(replicas)], batches, merge="round_robin", seed=3, **SETTINGS)
        runs.append(np.concatenate(list(served)))
        assert seen == [list(range(number, 50, replicas)) for number in range(replicas)]
    assert len(runs[0]) == 500
    assert all(np.array_equal(run, runs[0]) for run in runs)


def test_an_error_of_one_replica_ends_the_others():
    with pytest.raises(Broken):
        list(activations([rows_of, breaks_after(5), rows_of], endless(), **SETTINGS))
    assert left() == []


def test_progress_needs_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="needs tqdm"):
        activations(rows_of, endless(), progress=True, **SETTINGS)


def test_a_loop_that_begins_late_is_no_wait_that_nothing_ends(monkeypatch):
    monkeypatch.setattr("activation_store._ring.parties.AFTER", 0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda *said: pytest.fail(str(said))
        batches = activations(rows_of, [numbered(8, 4)] * 20, **SETTINGS)
        assert not threading.Event().wait(0.5)  # several times as long as it takes to say so
        assert sum(map(len, batches)) == 160


PIPELINE = """
def function(batch):
    time.sleep(MODEL)
    return {"x": batch, "y": batch}

def endless():
    number = 0
    while True:
        number += 1
        if number == SIGNAL_AT:
            os.kill(os.getpid(), signal.SIGINT)
        yield np.zeros((8, 4), np.float32)

def left():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("activation-store-model")]

def train(leave):
    for number, batch in enumerate(activations(function, endless(), batch_size=8, window=16)):
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


def pipeline(code, pace, signal_at=-1):
    model, trainer = PACES[pace]
    return run(f"MODEL, TRAINER, SIGNAL_AT = {model}, {trainer}, {signal_at}\n" + PIPELINE + code)


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize(
    ("leave", "error"), [("break", ""), ("return", ""), ("raise", "KeyError"), ("Ctrl-C", "KeyboardInterrupt"), ("signal", "KeyboardInterrupt")]
)
def test_nothing_is_left_however_the_loop_is_left(leave, error, pace):
    code = f"""
try:
    train({leave!r})
except BaseException as raised:
    print(type(raised).__name__, left())
else:
    print("", left())
"""
    result = pipeline(code, pace, signal_at=50 if leave == "signal" else -1)
    assert (result.stdout, result.stderr, result.returncode) == (f"{error} []\n", "", 0), result


@pytest.mark.parametrize("pace", PACES)
def test_the_process_ends_although_the_iterator_is_still_named(pace):
    code = "batches = activations(function, endless(), batch_size=8, window=16)\nfor _ in range(9): next(batches)\nassert left()"
    result = pipeline(code, pace)
    assert (result.returncode, result.stderr) == (0, ""), result


def test_the_process_ends_although_the_iterator_was_never_used():
    result = pipeline("batches = activations(function, endless(), batch_size=8, window=16)", "fast")
    assert (result.returncode, result.stderr) == (0, ""), result


@pytest.mark.parametrize("pace", PACES)
def test_the_process_ends_although_a_traceback_names_the_iterator(pace):
    code = """
def train_named():
    batches = activations(function, endless(), batch_size=8, window=16)
    for batch in batches:
        raise KeyError("the trainer failed")
train_named()
"""
    result = pipeline(code, pace)
    assert (result.returncode, result.stderr.strip().split("\n")[-1]) == (1, "KeyError: 'the trainer failed'"), result


def test_the_process_ends_although_the_loader_never_returns():
    code = """
def stuck():
    yield np.zeros((64, 4), np.float32)
    threading.Event().wait()
batches = activations(function, stuck(), batch_size=8, window=16)
next(batches)
"""
    result = pipeline(code, "fast")
    assert (result.returncode, result.stderr) == (0, ""), result


def test_the_process_ends_with_a_trainer_on_a_thread_of_its_own():
    result = pipeline("threading.Thread(target=train, args=('raise',)).start()", "fast")
    assert (result.returncode, result.stderr.count("Traceback")) == (0, 1), result
    assert result.stderr.strip().split("\n")[-1] == "KeyError: 'the trainer failed'", result


def test_a_forked_child_leaves_the_run_alone():
    code = """
batches = activations(function, endless(), batch_size=8, window=16)
next(batches)
child = os.fork()
if not child:
    del batches
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(next(batches)["x"]))
"""
    result = pipeline(code, "fast")
    assert (result.stdout, result.stderr, result.returncode) == ("0 8\n", "", 0), result
