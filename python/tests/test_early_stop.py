"""Passes of a view end behind the last captured module."""

import gc
import threading
import warnings
import weakref

import pytest

torch = pytest.importorskip("torch")

from activation_store import activations, record  # noqa: E402

nn = torch.nn
SETTINGS = {"batch_size": 4, "window": 8, "queue_rows": 1000}


class Counted(nn.Module):
    """Adds one, and counts its calls in a list that all copies share."""

    def __init__(self):
        super().__init__()
        self.calls = Calls()

    def forward(self, x):
        self.calls.count += 1
        return x + 1


class Calls:
    count = 0


class Chain(nn.Module):
    """Runs its layers in an order that may depend on the pass."""

    def __init__(self, *orders, layers=4):
        super().__init__()
        self.layers = nn.ModuleList(Counted() for _ in range(layers))
        self.orders, self.passes = orders, Calls()

    def forward(self, x):
        order = self.orders[min(self.passes.count, len(self.orders) - 1)]
        self.passes.count += 1
        for number in order:
            x = self.layers[number](x)
        return x

    def counts(self):
        return [layer.calls.count for layer in self.layers]


def text(count=10):
    return [torch.full((4, 3), 10.0 * number) for number in range(count)]


def served(model, paths, count=10, **more):
    return sum(len(batch[paths[0]] if isinstance(batch, dict) else batch) for batch in activations(model, text(count), paths, **SETTINGS, **more))


def test_only_the_first_pass_runs_to_its_end(tmp_path):
    for stop_early, last in [(True, 1), (False, 10)]:
        model = Chain([0, 1, 2, 3])
        assert served(model, ["layers.0", "layers.1"], stop_early=stop_early) == 40
        assert model.counts() == [10, 10, last, last]
    model = Chain([0, 1, 2, 3])
    assert served(model, ["layers.2:input", "layers.0"]) == 40
    assert model.counts() == [10, 10, 1, 1], "the input is there before the module runs"
    model = Chain([0, 1, 2, 3])
    assert record(model, text(), "layers.1", tmp_path / "recorded").rows == 40
    assert model.counts() == [10, 10, 1, 1]


def test_a_module_that_runs_twice_is_left_after_its_last_call():
    model = Chain([0, 1, 0, 2])
    assert served(model, ["layers.0"]) == 80
    assert model.counts() == [20, 10, 1, 0]


def test_a_pass_of_another_order_runs_to_its_end():
    model = Chain([0, 1, 2], [0, 1, 2], [1, 0, 2], [0, 1, 2])
    assert served(model, ["layers.0", "layers.1"]) == 40
    assert model.counts() == [10, 10, 2, 0]


def test_a_number_of_calls_that_varies_is_an_error_if_rows_may_lack():
    model = Chain([0, 0, 1], [0, 0, 1], [0, 1])
    with pytest.raises(ValueError, match="ran the captured modules 1 times in all, and the first pass 2 times.*stop_early=False"):
        served(model, ["layers.0"])
    assert served(Chain([0, 0, 1], [0, 0, 1], [0, 1]), ["layers.0"], stop_early=False) == 4 * 12


def test_an_exception_that_the_model_catches_is_an_error():
    class Catches(Chain):
        def forward(self, x):
            try:
                x = self.layers[0](x)
            except Exception:
                x = torch.zeros_like(x)
            return self.layers[1](x)

    with pytest.raises(ValueError, match="caught the exception.*stop_early=False"):
        served(Catches(), ["layers.0"])
    assert served(Catches(), ["layers.0"], stop_early=False) == 40


def test_generate_runs_to_its_end():
    class Generates(nn.Module):
        def __init__(self):
            super().__init__()
            self.lm, self.passes = LM(), Calls()

        def forward(self, x):
            self.passes.count += 1
            return self.lm.generate(x, self.passes.count)

    class LM(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Counted()

        def forward(self, x):
            return self.layer(x)

        def generate(self, x, tokens):
            for _ in range(tokens):
                x = self(x)
            return x

    assert served(Generates(), ["lm.layer"], 5) == 4 * (1 + 2 + 3 + 4 + 5)


def test_always_call_hooks_run_and_what_forward_opened_is_closed():
    model, opened, seen = Chain([0, 1, 2, 3]), [], []

    class Opens(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            opened.append(1)
            try:
                with torch.enable_grad():
                    return self.inner(x)
            finally:
                opened.pop()

    outer = Opens(model)
    outer.register_forward_hook(lambda module, args, output: seen.append(torch.is_grad_enabled()), always_call=True)
    model.layers[0].register_forward_hook(lambda module, args, output: seen.append("inner"))
    assert served(outer, ["inner.layers.0"]) == 40
    assert not opened and seen == ["inner", False] * 10
    assert model.counts() == [10, 1, 1, 1]


def test_nothing_is_kept_for_a_pass_and_nothing_is_left_on_the_model():
    model, refs = Chain([0, 1, 2]), []

    class Keeps(nn.Module):
        def forward(self, x):
            local = torch.zeros(3)
            refs.append(weakref.ref(local))
            return self.inner(x + local)

    outer = Keeps()
    outer.inner = model
    gc.disable()
    try:
        batches = activations(outer, text(50), "inner.layers.0", **SETTINGS)
        assert sum(map(len, batches)) == 200
        assert len(refs) == 50 and sum(ref() is not None for ref in refs) == 0, "without the garbage collector"
    finally:
        gc.enable()
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in outer.modules())
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("activation-store-model")] == []


def test_accelerates_hooks_run_to_the_end():
    accelerate = pytest.importorskip("accelerate")
    model = nn.Sequential(nn.Linear(3, 3), Counted(), nn.Linear(3, 3)).eval()
    calls = model[1].calls
    model = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert served(model, ["0"]) == 40
    assert calls.count == 11, "once more for the probe"
    assert all(parameter.is_meta for parameter in model.parameters())
