"""`activations` in the loop's own thread, and on a thread of the model's own."""

import asyncio
import contextlib
import copy
import io
import signal
import sys
import threading

import pytest

torch = pytest.importorskip("torch")

from activation_store import RingStore, activations  # noqa: E402
from activation_store._run.positions import Position  # noqa: E402

SETTINGS = {"batch_size": 8, "window": 32, "seed": 3}


class Log:
    """What a model notes of its passes. The model and its views share it."""

    def __init__(self):
        self.threads, self.contexts = set(), set()
        self.before = lambda: None


class Model(torch.nn.Module):
    """Notes where and how it runs. Row r of the input comes out as itself of `numbers`."""

    def __init__(self):
        super().__init__()
        self.numbers, self.linear = torch.nn.Identity(), torch.nn.Linear(4, 4)
        self.log = Log()

    threads = property(lambda self: self.log.threads)
    contexts = property(lambda self: self.log.contexts)
    before = property(lambda self: self.log.before, lambda self, call: setattr(self.log, "before", call))
    """Called at the begin of each pass."""

    def forward(self, x):
        self.threads.add(threading.get_ident())
        self.contexts.add(context())
        self.before()
        return self.linear(self.numbers(x) + torch.zeros(4))

    @property
    def hooks(self):
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in self.modules())


def context():
    """What torch is set to on this thread."""
    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"),
        torch.get_default_device(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(),
    )  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Model()
    yield model
    assert model.hooks == 0


def text(count=20, rows=10):
    return [torch.arange(number * rows, (number + 1) * rows, dtype=torch.float32)[:, None].repeat(1, 4) for number in range(count)]


def sorted_rows(minibatches):
    return sorted(row for minibatch in minibatches for row in minibatch[:, 0].tolist())


CONTEXTS = {
    "none": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.float16),
    "device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("around", CONTEXTS)
def test_both_ways_give_equal_minibatches_and_leave_the_loop_its_settings(model, around):
    given, served, seen = text(), {}, {}
    with CONTEXTS[around]():
        own = context()
        for overlap in (True, False):
            model.contexts.clear()
            minibatches = []
            for minibatch in activations(model, given, ["numbers", "linear"], overlap=overlap, **SETTINGS):
                assert context() == own
                minibatches.append(minibatch)
            served[overlap], seen[overlap] = minibatches, set(model.contexts)
            assert context() == own
        model.before = lambda: 1 / 0
        with pytest.raises(ZeroDivisionError):
            list(activations(model, given, "linear", overlap=False, **SETTINGS))
        assert context() == own
    assert seen[True] == seen[False]
    assert len(served[True]) == 25
    for one, other in zip(served[True], served[False], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("numbers", "linear"))


def test_auto_runs_a_model_on_the_cpu_in_the_loop_and_others_on_threads(model):
    here = {threading.get_ident()}

    def is_here(models, batches=None, **settings):
        model.threads.clear()
        list(activations(models, text() if batches is None else batches, **settings, **SETTINGS))
        return model.threads == here

    assert is_here(model, modules="linear")
    assert is_here([model], modules="linear")
    assert is_here(model, iter(text()), modules="linear")
    assert not is_here(model, modules="linear", overlap=True)
    assert not is_here([model, copy.deepcopy(model)], modules="linear")
    assert not is_here(model, modules="linear", when_full="reject")
    assert not is_here(lambda batch: {"x": model(batch)}), "what a function computes on is not known"
    assert is_here(lambda batch: {"x": model(batch)}, overlap=False)
    del model.linear
    model.linear = torch.nn.Identity()
    assert not is_here(model, modules="linear"), "no parameter says where it computes"
    assert is_here(model, modules="linear", overlap=False)
    model.register_buffer("elsewhere", torch.zeros(1, device="meta"))
    model.linear = torch.nn.Linear(4, 4)
    assert not is_here(model, modules="linear")


def test_what_one_thread_cannot_do_is_refused_at_the_call(model):
    for models, settings, message in [
        ([model, copy.deepcopy(model)], {"overlap": False}, "2 models"),
        (model, {"overlap": False, "when_full": "drop_oldest"}, "lags behind"),
        (model, {"overlap": "never"}, "overlap is 'never'"),
    ]:
        with pytest.raises(ValueError, match=message):
            activations(models, text(), "linear", **settings, **SETTINGS)


def test_handing_over_never_waits_and_at_most_one_batch_is_kept_aside(model):
    aside = []
    batches = activations(model, text(10, rows=300), "numbers", overlap=False, queue_rows=8, **SETTINGS)

    def note():
        stats = batches.stats()
        aside.append(stats.components["numbers"].queued if stats else 0)

    model.before = note
    rows = list(next(batches)[:, 0])
    assert 0 < batches.stats().components["numbers"].queued < 300
    for minibatch in batches:
        rows += minibatch[:, 0].tolist()
    assert sorted(rows) == list(range(3000))
    assert aside == [0] * 10, "a batch runs when nothing of the one before is aside"


def test_several_passes_of_one_batch_come_in_order(model):
    class Often(Model):
        def forward(self, x):
            for number in range(5):
                super().forward(x + 10 * number)

    served = [list(activations(Often(), text(10, rows=50), "numbers", overlap=overlap, **SETTINGS)) for overlap in (True, False)]
    assert all(torch.equal(one, other) for one, other in zip(*served, strict=True))


def test_what_the_loop_runs_itself_is_not_captured(model):
    served = []
    with activations(model, text(), "numbers", overlap=False, **SETTINGS) as batches:
        for minibatch in batches:
            model(torch.full((9, 4), -1.0))
            model.numbers(torch.full((9, 4), -1.0))
            served.append(minibatch)
    assert sorted_rows(served) == list(range(200))


@pytest.mark.parametrize("which", ["model", "loader", "hook"])
def test_an_error_comes_after_the_minibatches(model, which):
    def loader():
        yield from text(10)
        if which == "loader":
            raise ZeroDivisionError
        if which == "model":
            model.before = lambda: 1 / 0
        yield torch.zeros(10, 5 if which == "hook" else 4)

    if which == "hook":
        model.linear = torch.nn.Identity()
        model.register_parameter("some", torch.nn.Parameter(torch.zeros(1)))
        model.forward = lambda x: model.numbers(x)
    rows = 0
    batches = activations(model, loader(), "numbers", overlap=False, **SETTINGS)
    with pytest.raises(ValueError if which == "hook" else ZeroDivisionError):  # noqa: PT012
        for minibatch in batches:
            rows += len(minibatch)
    assert rows == 100
    assert model.hooks == 0, "while the error is handled"
    assert list(batches) == [], "told once"


def test_an_error_of_the_first_pass(model):
    model.before = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        next(activations(model, text(), "numbers", overlap=False, **SETTINGS))
    assert list(activations(model, [], "numbers", overlap=False, **SETTINGS)) == []


def test_ctrl_c_in_a_pass_ends_the_run(model):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        batches = activations(model, text(), "numbers", overlap=False, **SETTINGS)
        next(batches)
        own = context()
        model.before = lambda: signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            list(batches)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (context(), model.hooks) == (own, 0)
    assert list(batches) == []


def test_it_ends_with_its_last_reference_and_with_close(model):
    batches = activations(model, text(), "numbers", overlap=False, **SETTINGS)
    next(batches)
    run = batches._run
    assert not run.opening.has_ended
    del batches
    assert run.opening.has_ended
    batches = activations(model, text(), "numbers", overlap=False, **SETTINGS)
    next(batches)
    batches.close()
    assert list(batches) == []
    batches.close()
    assert batches.stats().components["numbers"].served == 8


def test_another_thread_ends_it_in_the_middle_of_a_pass(model, monkeypatch):
    monkeypatch.setattr("activation_store._run.run.BOUND", 0.05)
    batches = activations(model, text(), "numbers", overlap=False, **SETTINGS)
    next(batches)

    def end():
        thread = threading.Thread(target=batches.close)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()

    model.before = end
    with pytest.warns(RuntimeWarning, match="has not returned within"):
        assert list(batches) == []
    assert model.hooks == 0


def test_a_timeout_counts_between_passes(model):
    batches = activations(model, text(count=8, rows=4), "numbers", overlap=False, **SETTINGS)
    rows, given_up = 0, 0
    while True:
        try:
            rows += len(batches.next(timeout=0))
        except TimeoutError:
            given_up += 1
        except StopIteration:
            break
    assert rows == 32
    assert given_up >= 3, "the ring has no minibatch before the window is half full"


def test_threads_share_the_loop(model, in_thread):
    batches, served = activations(model, text(60), "numbers", overlap=False, **SETTINGS), []
    threads = [in_thread(lambda: served.extend(batches)) for _ in range(3)]
    for thread in threads:
        thread.join(30)
    assert sorted_rows(served) == list(range(600))


def test_tasks_go_on_while_a_pass_runs(model):
    async def main():
        go_on = threading.Event()
        model.before = lambda: go_on.wait(30) or pytest.fail("the event loop stands still")
        batches = activations(model, text(), "numbers", overlap=False, **SETTINGS)
        first = asyncio.ensure_future(anext(batches))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(batches), 0.01)  # cancelled in the first pass
        go_on.set()
        served = [await first] + [minibatch async for minibatch in batches]
        assert sorted_rows(served) == list(range(200))
        model.before = lambda: 1 / 0
        batches = activations(model, text(), "numbers", overlap=False, **SETTINGS)
        with pytest.raises(ZeroDivisionError):
            await anext(batches)
        assert [minibatch async for minibatch in activations(model, [], "numbers", overlap=False, **SETTINGS)] == []

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("form", ["light", "full", "state"])
def test_it_goes_on_from_a_snapshot(model, tmp_path, form):
    def run(resume=None):
        return activations(model, text(30), "linear", overlap=False, resume=resume, **SETTINGS)

    whole = list(run())
    for k in (1, 5, 20, 30):
        loop = run()
        served = [next(loop) for _ in range(k)]
        saved = loop.state_dict() if form == "state" else loop.snapshot(tmp_path / str(k), form=form).parent
        loop.close()
        served += list(run(saved))
        assert all(torch.equal(one, other) for one, other in zip(served, whole, strict=True))


def test_the_progress_line_says_that_they_take_turns(model, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr("activation_store._run.progress._INTERVAL", 0)
    monkeypatch.setattr("sys.stderr", shown := io.StringIO())
    list(activations(model, text(), "numbers", overlap=False, progress=True, **SETTINGS))
    last = shown.getvalue().split("\r")[-1]
    assert "20/20" in last and "the model and the loop take turns" in last, last


def test_a_resumed_run_tells_modules_by_their_names(model):
    def run(modules, **more):
        return activations(model, text(), modules, overlap=False, **more, **SETTINGS)

    with run(["numbers", "linear"]) as batches:
        taken = [next(batches) for _ in range(3)]
        state = batches.state_dict()
        rest = list(batches)
    assert len(taken) == 3
    again = list(run(["linear", "numbers"], resume=state))
    assert len(again) == len(rest)
    assert all(torch.equal(one[name], other[name]) for one, other in zip(rest, again, strict=True) for name in ("numbers", "linear"))
    with pytest.raises(ValueError, match=r"the rows are of \['other'\], and the store, from a snapshot .* has \['linear', 'numbers'\]"):
        next(run({"linear": "other"}, resume=state))


def test_a_timeout_names_the_lane_that_a_resumed_store_waits_for(model, monkeypatch):
    store = RingStore({"numbers": 4}, queue_rows=1000, merge="round_robin", **SETTINGS)
    for name in ("replica 0", "other"):
        store.producer(name).extend(text(1, 100)[0])
    next(store)
    state = store.state_dict()
    store.abort()
    # A snapshot of a run has no other lanes. A run refuses a snapshot of another store.
    monkeypatch.setattr(sys.modules["activation_store.activations"], "resumed_positions", lambda *_: [Position(0, 0)])
    batches = activations(model, text(), "numbers", overlap=False, merge="round_robin", resume=state, **SETTINGS)
    with batches, pytest.raises(TimeoutError, match='within 0.1 s: the resumed store waits for lane "other"'):
        while True:
            batches.next(timeout=0.1)
