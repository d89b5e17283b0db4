"""`activations` over torch models."""

import asyncio
import gc
import io
import threading
import warnings

import pytest
from conftest import run

torch = pytest.importorskip("torch")

from activation_store import Activations, activations, record  # noqa: E402

SETTINGS = {"batch_size": 8, "window": 16}


class Log:
    """What a model notes of its passes. The model and its views share it."""

    fails_at, calls, grad, training = -1, 0, None, None


class Model(torch.nn.Module):
    """Two layers; a row holds its number, and twice that after the second."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Identity()
        self.second = Doubles()
        self.log = Log()

    fails_at = property(lambda self: self.log.fails_at, lambda self, call: setattr(self.log, "fails_at", call))
    calls = property(lambda self: self.log.calls, lambda self, calls: setattr(self.log, "calls", calls))

    def forward(self, x, scale=1, mask=None):
        self.calls += 1
        self.log.grad, self.log.training = torch.is_grad_enabled(), self.training
        if self.calls == self.fails_at:
            raise MemoryError("the model failed")
        return self.second(self.first(x * scale))


class Doubles(torch.nn.Module):
    def forward(self, x):
        return x + x


def left(*models):
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("activation-store-model")]
    modules = [module for model in models for module in model.modules()]
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)
    return threads, hooks


CLEAN = ([], 0)


@pytest.fixture
def model():
    model = Model()
    yield model
    gc.collect()
    assert left(model) == CLEAN


def numbered(rows, first=0, features=3):
    return (torch.arange(first, first + rows, dtype=torch.float32)[:, None]).repeat(1, features)


def endless():
    while True:
        yield numbered(8)


def sorted_rows(batches):
    return sorted(row for batch in batches for row in batch[:, 0].tolist())


def test_a_path_alone_gives_tensors_a_list_or_mapping_gives_dicts(model):
    def text():
        return (numbered(10, first=10 * number).reshape(2, 5, 3) for number in range(10))

    assert sorted_rows(activations(model, text(), "second", **SETTINGS)) == [2.0 * row for row in range(100)]
    for one, name in ((["second"], "second"), (("second",), "second"), ({"second": "b"}, "b")):
        served = list(activations(model, text(), one, **SETTINGS))
        assert all(tuple(batch) == (name,) for batch in served)
        assert sorted_rows(batch[name] for batch in served) == [2.0 * row for row in range(100)]
    with pytest.raises(AttributeError, match="a minibatch of 1 component is a dict, .* name one module or component alone"):
        served[0].sum()
    for several, names in [(["first", "second"], ("first", "second")), ({"first": "a", "second": "b"}, ("a", "b"))]:
        served = list(activations(model, text(), several, **SETTINGS))
        assert all(tuple(batch) == names and torch.equal(batch[names[0]] * 2, batch[names[1]]) for batch in served)
        assert sorted_rows(batch[names[0]] for batch in served) == list(range(100))
    assert sorted_rows(activations(model, text(), "second:input", **SETTINGS)) == list(range(100))
    assert sorted_rows(activations(model, text(), "second", point="input", **SETTINGS)) == list(range(100))
    stacked = list(activations(model, text(), ["first", "second"], stacked=True, output="numpy", **SETTINGS))
    assert stacked[0].shape == (8, 2, 3)


@pytest.mark.parametrize(("mask", "said"), [("keep", "mask='keep' is False"), (lambda args, kwargs: kwargs["keep"], "the mask is False")])
def test_a_run_of_which_the_mask_keeps_no_row_says_so(mask, said, tmp_path):
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Identity()

        def forward(self, x, keep):
            return self.inner(x)

    batches = [{"x": torch.zeros(2, 5, 3), "keep": torch.zeros(2, 5, dtype=torch.long)}] * 7
    with pytest.raises(ValueError, match=f"the model ran 7 batches, and no row was kept: {said}"):
        list(activations(Masked(), batches, "inner", mask=mask, **SETTINGS))
    with pytest.raises(ValueError, match=f"the model ran 7 batches, and no row was kept: {said}"):
        record(Masked(), batches, "inner", tmp_path, mask=mask)
    with pytest.raises(ValueError, match="the model ran 1 batch, and no row was kept: the activations had none"):
        list(activations(dict, [{"x": torch.zeros(0, 3)}], **SETTINGS))
    assert list(activations(Masked(), [], "inner", mask=mask, **SETTINGS)) == []


def test_batches_are_tensors_dicts_tuples_and_lists(model):
    ten = numbered(10)
    for batch, scale in [(ten, 1), ({"x": ten, "scale": 2}, 2), ((ten, 3), 3), ([ten, torch.tensor(4)], 4)]:
        assert sorted_rows(activations(model, [batch], "first", **SETTINGS)) == [float(scale * row) for row in range(10)]

    class OfLists(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Identity()

        def forward(self, words):
            return self.embed(torch.tensor([[float(len(word))] for word in words]))

    assert sorted_rows(activations(OfLists(), [["a", "bb", "ccc"]], "embed", **SETTINGS)) == [1, 2, 3]


def test_masks(model):
    keep = torch.arange(10) % 2 == 0
    served = activations(model, [{"x": numbered(10), "mask": keep}] * 2, ["first", "second"], mask="mask", **SETTINGS)
    assert sorted_rows(batch["first"] for batch in served) == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]


def test_it_runs_without_gradients_and_in_eval_mode(model):
    for training in (True, False):
        model.train(training)
        for mode in ("eval", "keep"):
            for batch in activations(model, [numbered(8)] * 3, "first", mode=mode, **SETTINGS):
                assert torch.is_grad_enabled() and not batch.requires_grad
            assert (model.log.grad, model.log.training, model.training) == (False, training and mode == "keep", training)
    with pytest.raises(ValueError, match="mode is 'train'"):
        activations(model, endless(), "first", mode="train", **SETTINGS)


def test_dtypes_are_those_of_the_activations_unless_given(model):
    half = [numbered(16).to(torch.bfloat16)]
    assert next(activations(model, half, "first", **SETTINGS)).dtype == torch.bfloat16
    for dtype in ("f16", torch.float16):
        assert next(activations(model, half, "first", dtype=dtype, **SETTINGS)).dtype == torch.float16


def test_what_the_model_changes_afterwards_does_not_matter():
    class InPlace(Model):
        def forward(self, x):
            first = self.first(x.clone())
            second = self.second(first)
            first.zero_()
            return second

    for batch in activations(InPlace(), [numbered(8, first=1)] * 4, ["first", "second"], **SETTINGS):
        assert torch.equal(batch["first"] * 2, batch["second"]) and batch["first"].all()


def test_an_error_of_the_model_comes_after_the_rows(model):
    model.fails_at = 11
    rows = 0
    with pytest.raises(MemoryError, match="the model failed") as raised:
        for batch in activations(model, endless(), "first", **SETTINGS):
            rows += len(batch)
    assert rows == 80
    assert "forward" in [entry.name for entry in raised.traceback]
    assert left(model) == CLEAN, "while the error is handled"


def test_an_error_of_a_hook_comes_without_a_warning():
    class Skips(Model):
        def forward(self, x):
            self.calls += 1
            return self.second(x) if self.calls == 5 else super().forward(x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="did not run 'first'"):
            list(activations(Skips(), endless(), ["first", "second"], **SETTINGS))
        with pytest.raises(TypeError, match="gives int"):
            list(activations(torch.nn.Sequential(GivesInt()), [numbered(8)], "0", **SETTINGS))


class GivesInt(torch.nn.Module):
    def forward(self, x):
        return 3


def test_a_wrapper_that_runs_its_copies_on_other_threads_is_refused(model):
    class Threaded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            outputs = []
            thread = threading.Thread(target=lambda: outputs.append(self.model(x)))
            thread.start()
            thread.join()
            return outputs[0]

    with pytest.raises(ValueError, match="did not run 'model.first' at all"):
        list(activations(Threaded(), endless(), "model.first", **SETTINGS))


def test_what_is_wrong_with_the_modules_is_said_at_the_call(model):
    for modules, error, message in [
        ("third", ValueError, "no module 'third'"),
        (["first", "first:output"], ValueError, "of one module"),
        ({"first": "a", "second": "a"}, ValueError, "a name of its own"),
        ([], ValueError, "nothing to capture"),
        (None, TypeError, "name the modules"),
    ]:
        with pytest.raises(error, match=message):
            activations(model, endless(), modules, **SETTINGS)
    with pytest.raises(ValueError, match="no argument 'masque'"):
        activations(model, endless(), "first", mask="masque", **SETTINGS)


def test_what_the_trainer_runs_meanwhile_is_not_captured(model):
    go_on = threading.Event()

    def text():
        for number in range(10):
            go_on.wait(30)
            yield numbered(10, first=10 * number)

    with activations(model, text(), ["first", "second"], **SETTINGS) as batches:
        for _ in range(5):
            model(numbered(100, first=-1000))
        go_on.set()
        served = []
        for batch in batches:
            model(numbered(10, first=-1000))
            model.first(numbered(10, first=-1000))
            served.append(batch["first"])
    assert sorted_rows(served) == list(range(100))


def test_replicas_repeat(model):
    def served():
        models = [Model() for _ in range(3)]
        text = (numbered(10, first=10 * number) for number in range(40))
        batches = list(activations(models, text, "second", merge="round_robin", seed=1, **SETTINGS))
        assert [each.calls for each in models] == [14, 13, 13]
        assert left(*models) == CLEAN
        return torch.cat(batches)

    first = served()
    assert len(first) == 400
    assert all(torch.equal(served(), first) for _ in range(3))
    assert sorted_rows(activations([model, model], [numbered(10)] * 4, "first", **SETTINGS)) == sorted(list(range(10)) * 4)


def test_an_error_of_one_replica_ends_the_others():
    models = [Model(), Model()]
    models[1].fails_at = 5
    with pytest.raises(MemoryError):
        list(activations(models, endless(), "first", **SETTINGS))
    assert left(*models) == CLEAN


def test_tasks(model):
    async def count(batches):
        return sum([len(batch) async for batch in batches])

    async def main():
        assert await count(activations(model, [numbered(8)] * 10, "first", **SETTINGS)) == 80
        assert await count(activations(model, [], "first", **SETTINGS)) == 0
        model.fails_at = model.calls + 3
        with pytest.raises(MemoryError):
            await count(activations(model, endless(), "first", **SETTINGS))
        async for _ in activations(model, endless(), "first", **SETTINGS):
            break
        assert left(model) == CLEAN

        go_on = threading.Event()

        def waits():
            go_on.wait(30)
            yield from [numbered(8)] * 10

        batches = activations(model, waits(), "first", **SETTINGS)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(batches), 0.05)  # before the first pass
        go_on.set()
        assert await count(batches) == 80

    asyncio.run(asyncio.wait_for(main(), 60))


def test_progress_shows_passes_rows_and_who_waits(model, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr("activation_store._run.progress._INTERVAL", 0)
    monkeypatch.setattr("sys.stderr", shown := io.StringIO())
    assert sum(map(len, activations(model, [numbered(8)] * 20, "first", progress=True, **SETTINGS))) == 160
    last = shown.getvalue().split("\r")[-1]
    assert "20/20" in last and "rows/s, ring" in last, last
    shown.truncate(0)
    list(activations(model, iter([numbered(8)] * 20), "first", progress=True, **SETTINGS))
    assert "20pass" in shown.getvalue()


def test_a_finished_run_lets_go_of_the_model_and_the_ring():
    import weakref

    model = Model()
    gone = weakref.ref(model)
    batches = activations(model, [numbered(8)] * 4, "first", **SETTINGS)
    assert isinstance(batches, Activations)
    assert sum(map(len, batches)) == 32
    assert batches.stats().components["first"].served == 32
    del model
    gc.collect()
    assert gone() is None


MODEL = """
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.calls = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), 0
    def forward(self, x):
        self.calls += 1
        if self.calls == FAILS_AT:
            raise MemoryError("the model failed")
        time.sleep(PACE)
        return self.second(self.first(x))

model = Model()

def endless():
    while True:
        yield torch.zeros(8, 4)

def left():
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("activation-store-model")]
    return threads, sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())

def train(leave):
    for number, batch in enumerate(activations(model, endless(), ["first", "second"], batch_size=8, window=16)):
        if number == 5 and leave == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
        if number == 5 and leave == "raise":
            raise KeyError("the trainer failed")
        if number == 5 and leave == "return":
            return

for leave in LEAVE:
    try:
        train(leave)
    except BaseException as raised:
        print(type(raised).__name__, left())
    else:
        print(leave, left())
batches = activations(model, endless(), "first", batch_size=8, window=16)
next(batches)
"""


@pytest.mark.parametrize(
    ("pace", "fails_at", "leave", "printed"),
    [(pace, 10**9, ["return", "raise", "Ctrl-C"], ["return", "KeyError", "KeyboardInterrupt"]) for pace in (0, 0.01)]
    + [(0, 50, ["never"], ["MemoryError"])],
)
def test_a_process_ends_with_nothing_left(pace, fails_at, leave, printed):
    result = run(f"PACE, FAILS_AT, LEAVE = {pace}, {fails_at}, {leave}" + MODEL, torch=True, timeout=100)
    assert (result.stdout.splitlines(), result.stderr, result.returncode) == ([f"{line} {CLEAN}" for line in printed], "", 0), result
