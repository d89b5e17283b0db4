"""Several runs and captures of one model at a time, and runs that are paused or left behind."""

import gc
import sys
import threading
import warnings

import pytest
from test_activations import CLEAN, SETTINGS, Model, endless, left, numbered, sorted_rows

torch = pytest.importorskip("torch")

from activation_store import RingStore, activations, capture  # noqa: E402


@pytest.fixture
def model():
    model = Model()
    yield model
    gc.collect()
    assert left(model) == CLEAN


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_second_run_of_a_model_leaves_the_first_alone(model):
    training = activations(model, [numbered(10, first=10 * number) for number in range(40)], "first", **SETTINGS)
    served = [next(training)]
    for _ in range(3):
        held_out = activations(model, [numbered(10)] * 4, "second", **SETTINGS)
        assert sorted_rows(held_out) == sorted([2.0 * row for row in range(10)] * 4)
        served.append(next(training))
    assert sorted_rows([*served, *training]) == list(range(400))


def test_a_capture_of_the_model_by_the_trainer_gets_its_own_passes_only(model):
    store = RingStore(3, batch_size=8, window=16, queue_rows=1000)
    with activations(model, [numbered(8, first=100)] * 20, "first", **SETTINGS) as batches, capture(model, {"first": 0}, store) as captured:
        model(numbered(8))
        assert sorted_rows(batches) == sorted(list(range(100, 108)) * 20)
        model(numbered(8))
    store.close()
    assert captured.passes == 2 and sorted_rows(store) == sorted(list(range(8)) * 2)


def test_a_run_that_begins_in_a_capture_is_not_captured_by_it(model):
    store = RingStore(3, batch_size=8, window=16, queue_rows=1000)
    with capture(model, {"first": 0}, store) as captured:
        assert len(sorted_rows(activations(model, [numbered(8)] * 5, "second", **SETTINGS))) == 40
    assert captured.passes == 0 and captured.error is None
    store.abort()


def test_a_second_run_does_not_wait_for_a_first_that_is_stuck(model, monkeypatch):
    monkeypatch.setattr("activation_store._run.run.BOUND", 0.05)
    go_on = threading.Event()

    def stuck():
        yield numbered(100)
        go_on.wait(30)

    first = activations(model, stuck(), "first", **SETTINGS)
    next(first)
    assert sum(map(len, activations(model, [numbered(8)] * 10, "first", **SETTINGS))) == 80
    go_on.set()
    assert sum(map(len, first)) == 92


def test_a_run_that_only_a_traceback_refers_to_ends_when_the_cell_is_run_again(model):
    def cell():
        batches = activations(model, endless(), "first", **SETTINGS)
        for _ in batches:
            raise KeyError("the trainer failed")

    kept = None
    try:
        cell()
    except KeyError as error:
        kept = error  # as a notebook does, in `sys.last_value`
    assert len(left()[0]) == 1
    assert any("batches" in frame.tb_frame.f_locals for frame in frames(kept)), "as a notebook looks at it"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again = activations(model, endless(), "first", **SETTINGS)
    assert ["only the traceback of an earlier error" in str(warning.message) for warning in said] == [True]
    assert said[0].filename == __file__
    assert len(left()[0]) == 1
    assert len(next(again)) == 8
    again.close()


def frames(error):
    found, each = [], error.__traceback__
    while each is not None:
        found.append(each)
        each = each.tb_next
    return found


def test_a_run_that_a_running_function_or_a_generator_refers_to_goes_on(model):
    def generator():
        batches = activations(model, endless(), "first", **SETTINGS)
        for batch in batches:  # noqa: UP028
            yield batch

    def function(batches):
        sys._getframe()  # noqa: SLF001
        second = activations(model, [numbered(8)] * 3, "first", **SETTINGS)
        assert sum(map(len, second)) == 24
        return len(next(batches))

    outer = generator()
    assert len(next(outer)) == 8
    assert function(activations(model, endless(), "first", **SETTINGS)) == 8
    assert len(next(outer)) == 8
    outer.close()


def test_paused_waits_for_the_pass_under_way_and_holds_the_next():
    inside, go_on, paused = threading.Event(), threading.Event(), threading.Event()

    class Slow(Model):
        def forward(self, x):
            inside.set()
            assert go_on.wait(30)
            self.log.weights = self.log.weights_now
            result = super().forward(x)
            assert self.log.weights == self.log.weights_now, "changed during a pass"
            return result

    model = Slow()
    model.log.weights_now = 0
    batches = activations(model, [numbered(8)] * 20, "second", window=400, batch_size=8, queue_rows=400)
    assert inside.wait(30)

    def change():
        with batches.paused():
            paused.set()
            for _ in range(1000):
                model.log.weights_now += 1
            calls = model.calls
            model.log.calls_seen = calls, model.calls

    thread = threading.Thread(target=change)
    thread.start()
    assert not paused.wait(0.05), "the pass is under way"
    go_on.set()
    thread.join(30)
    assert paused.is_set() and model.log.calls_seen == (1, 1)
    assert sum(map(len, batches)) == 160
    assert model.calls == 20


def test_a_paused_run_can_be_closed(model):
    batches = activations(model, endless(), "first", **SETTINGS)
    next(batches)
    with batches.paused():
        batches.close()
        assert left(model) == CLEAN
    with batches.paused():
        pass


def test_a_function_is_paused_too():
    calls = []

    def function(batch):
        calls.append(1)
        return {"x": batch}

    batches = activations(function, [numbered(8)] * 50, batch_size=8, window=400, queue_rows=400)
    with batches.paused():
        seen = len(calls)
        for _ in range(100):
            assert len(calls) == seen
    assert sum(map(len, batches)) == 400
