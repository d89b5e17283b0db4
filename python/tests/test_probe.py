"""The first pass shows whether a view stands for its model; if not, none of its rows are served."""

import re
import warnings

import pytest

torch = pytest.importorskip("torch")

from activation_store import activations  # noqa: E402

nn = torch.nn


class Calls:
    count = 0


class Knows(nn.Module):
    """Knows whether it is the model or a copy."""

    def __init__(self):
        super().__init__()
        self.layer, self.me, self.calls = nn.Identity(), id(self), Calls()

    def forward(self, x):
        self.calls.count += 1
        return self.layer(x if id(self) == self.me else -x)


def text(count=10):
    return [torch.full((4, 3), 1.0 + number) for number in range(count)]


def firsts(batches):
    return sorted(row for batch in batches for row in batch[:, 0].tolist())


def test_rows_of_a_view_that_gives_another_output_are_not_served():
    model = Knows().eval()
    with pytest.warns(RuntimeWarning, match="because its view gave another output for the first batch"):
        served = firsts(activations(model, text(), "layer", batch_size=4, window=8))
    assert served == sorted([1.0 + number for number in range(10)] * 4)
    assert model.calls.count == 13, "on the first batch the model, its view, the model to see whether it repeats, and the model"


def test_a_model_that_does_not_repeat_has_a_view():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.calls = nn.Identity(), Calls()

        def forward(self, x):
            self.calls.count += 1
            return self.layer(x), torch.tensor(self.calls.count)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(firsts(activations(Counts().eval(), text(), "layer", batch_size=4, window=8))) == 40


def test_the_first_error_is_the_models_own():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, x):
            raise MemoryError("the model failed")

    for training in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(MemoryError, match="the model failed"):
                list(activations(Fails().train(training), text(), "layer", batch_size=4, window=8))


class Hungry(nn.Module):
    """Has memory for some passes, and for no other: says so in one of the ways in which torch does."""

    def __init__(self, fails_in, error):
        super().__init__()
        self.layer, self.calls, self.fails_in, self.error = nn.Identity(), Calls(), fails_in, error

    def forward(self, x):
        self.calls.count += 1
        rows = self.layer(x)
        if self.calls.count in self.fails_in:
            raise self.error
        return rows


NO_MEMORY = [MemoryError("no memory"), torch.cuda.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]


@pytest.mark.parametrize("error", NO_MEMORY, ids=["python", "device", "cpu"])
@pytest.mark.parametrize("fails_in", [[1], [2]], ids=["model", "view"])
def test_a_comparison_that_finds_no_memory_is_left_out(fails_in, error):
    model = Hungry(fails_in, error).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with activations(model, text(), "layer", batch_size=4, window=8) as batches:
            served = [batches.next()]
            with batches.paused():
                model.layer.register_forward_hook(lambda module, args, output: output * 0)  # the view has hooks of its own
            served += list(batches)
    assert firsts(served) == sorted([1.0 + number for number in range(10)] * 4)


@pytest.mark.parametrize("error", NO_MEMORY, ids=["python", "device", "cpu"])
@pytest.mark.parametrize("training", [True, False])
def test_a_view_without_memory_is_an_error_and_not_a_reason_to_run_the_model(training, error):
    model = Hungry(range(1, 4), error).train(training)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(type(error), match=re.escape(str(error))):
            list(activations(model, text(), "layer", batch_size=4, window=8))


def test_paused_does_not_wait_for_room_in_the_ring():
    model = nn.Sequential(nn.Identity(), nn.Identity())

    def endless():
        while True:
            yield torch.ones(4, 3)

    with activations(model, endless(), "0", batch_size=4, window=8, queue_rows=8) as batches:
        for _ in range(30):
            next(batches)
            with batches.paused():
                pass
