"""Hooking models up."""

import asyncio
import re
import threading
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from activation_store import ActivationStore, RingStore, StoreClosedError, TensorActivationStore, capture  # noqa: E402


class Block(nn.Module):
    """A block that gives a tuple and then works in place, as real ones do."""

    def __init__(self, width):
        super().__init__()
        self.attention = nn.Linear(width, width)
        self.mlp = nn.Linear(width, width)

    def forward(self, hidden, fail=False):
        hidden = hidden + self.attention(hidden)
        if fail:
            raise RuntimeError("the model failed")
        hidden += self.mlp(hidden)
        return hidden, "weights"


class Model(nn.Module):
    def __init__(self, width=6, depth=3):
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, inputs, attention_mask=None, fail=False, depth=None):
        hidden = self.embed(inputs)
        for number, block in enumerate(self.blocks[:depth]):
            hidden, _ = block(hidden, fail=fail and number == 1)
        return hidden


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


PATHS = {"blocks.0": "first", "blocks.2": "last"}


def store_of(**settings):
    return RingStore({"first": 6, "last": 6}, batch_size=8, window=32, max_skew=10_000, queue_rows=10_000, **settings)


def hooks_of(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def by_first(rows):
    return rows[rows[:, 0].argsort()]


def served(store, name):
    store.close()
    return torch.cat([batch[name] for batch in store])


def expected(model, inputs, number):
    with torch.no_grad():
        hidden = model.embed(inputs)
        for block in model.blocks[: number + 1]:
            hidden, _ = block(hidden)
    return hidden.reshape(-1, 6)


def test_outputs_of_several_modules(model):
    store = store_of()
    parts = torch.rand(10, 4, 6).split(3)
    plain = [model(part) for part in parts]
    with capture(model, PATHS, store) as captured:
        results = [model(part) for part in parts]
        assert captured.passes == 4
    # Part by part: a matrix product over another number of rows may differ in the last bits.
    assert all(map(torch.equal, results, plain)), "the results are what they were"
    assert hooks_of(model) == 0
    store.close()
    batches = list(store)
    first, last = (torch.cat([batch[name] for batch in batches]) for name in ("first", "last"))
    order = first[:, 0].argsort()
    wanted = [torch.cat([expected(model, part, number) for part in parts]) for number in (0, 2)]
    wanted_order = wanted[0][:, 0].argsort()
    torch.testing.assert_close(first[order], wanted[0][wanted_order])
    torch.testing.assert_close(last[order], wanted[1][wanted_order])


def test_gradients_flow_as_before():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    inputs = torch.rand(2, 4, 6, requires_grad=True)
    model(inputs).sum().backward()
    plain = inputs.grad.clone()
    inputs.grad = None
    with capture(model, {"0": "first", "1": "last"}, store_of()):
        model(inputs).sum().backward()
    assert torch.equal(inputs.grad, plain)


def test_inputs(model):
    store = store_of()
    inputs = torch.rand(5, 6)
    with capture(model, {"embed": "first", "blocks.1": "last"}, store, point="input"):
        model(inputs)
    store.close()
    batches = list(store)
    assert torch.equal(by_first(torch.cat([batch["first"] for batch in batches])), by_first(inputs))
    wanted = expected(model, inputs, 0)
    torch.testing.assert_close(by_first(torch.cat([batch["last"] for batch in batches])), by_first(wanted))


def test_input_and_output_of_one_module(model):
    store = store_of()
    with capture(model, {"blocks.1:input": "first", "blocks.1": "last"}, store):
        model(torch.rand(5, 6))
    store.close()
    for batch in store:
        torch.testing.assert_close(model.blocks[1](batch["first"])[0], batch["last"])


def test_the_model_itself_and_an_input_given_by_name(model):
    store = RingStore(6, batch_size=8, window=32)
    with capture(model, {"": 0}, store, point="input"):
        model(inputs=torch.rand(5, 6))
    with capture(model, {"": 0}, store):
        model(inputs=torch.rand(4, 6))
    store.flush()
    assert len(store) == 9


def test_some_components_written_by_hand(model):
    store = store_of()
    with pytest.raises(ValueError, match="nothing is captured into 'last', so no row would be whole"):
        capture(model, {"blocks.0": "first"}, store)
    with store.producer() as producer, capture(model, {"blocks.0": "first"}, producer):
        for _ in range(3):
            model(torch.rand(4, 6))
            producer.extend(torch.rand(4, 6), "last")
    store.flush()
    assert len(store) == 12


MASKS = {
    "by name": lambda mask: ("attention_mask", {"attention_mask": mask}),
    "by name, integers": lambda mask: ("attention_mask", {"attention_mask": mask.long()}),
    "function": lambda mask: (lambda args, kwargs: kwargs["attention_mask"], {"attention_mask": mask}),
    "tensor": lambda mask: (mask, {}),
    "array": lambda mask: (mask.numpy(), {}),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("store", [store_of, lambda: TensorActivationStore(100, 6, 2)], ids=["ring", "tensor"])
def test_masks(model, kind, store):
    store, inputs, keep = store(), torch.rand(5, 4, 6), torch.rand(5, 4) < 0.5
    mask, arguments = MASKS[kind](keep)
    with capture(model, {"blocks.0": 0, "blocks.2": 1}, store, mask=mask):
        model(inputs, **arguments)
    wanted = expected(model, inputs, 2)[keep.reshape(-1)]
    got = served(store, "last") if isinstance(store, RingStore) else store[:, 1]
    torch.testing.assert_close(by_first(got), by_first(wanted))


def test_a_mask_by_position_or_left_out(model):
    store = store_of()
    with capture(model, PATHS, store, mask="attention_mask"):
        model(torch.rand(2, 3, 6), torch.tensor([[1, 0, 0], [1, 1, 0]]))
        model(torch.rand(2, 3, 6))
    store.flush()
    assert store.current_activations_stored_per_component == [9, 9]


@pytest.mark.parametrize("store", [store_of, lambda: TensorActivationStore(100, 6, 2)], ids=["ring", "tensor"])
def test_a_mask_that_keeps_no_row_at_all_is_an_error_where_the_block_ends(model, store):
    with pytest.raises(ValueError, match="ran 2 forward passes, and no row was kept: mask='attention_mask' is False"):  # noqa: SIM117, PT012
        with capture(model, {"blocks.0": 0, "blocks.2": 1}, store(), mask="attention_mask") as captured:
            for _ in range(2):
                model(torch.rand(2, 3, 6), torch.zeros(2, 3).bool())
            assert captured.error is None
    with capture(model, {"blocks.0": 0, "blocks.2": 1}, store(), mask="attention_mask"):
        model(torch.rand(2, 3, 6), torch.zeros(2, 3).bool())
        model(torch.rand(2, 3, 6), torch.ones(2, 3).bool())
    with pytest.raises(KeyError), capture(model, {"blocks.0": 0, "blocks.2": 1}, store(), mask="attention_mask"):
        model(torch.rand(2, 3, 6), torch.zeros(2, 3).bool())
        raise KeyError


def test_a_mask_that_keeps_no_row_is_no_error_if_training_has_ended(model):
    store = store_of()
    with capture(model, PATHS, store, mask="attention_mask") as captured:
        model(torch.rand(2, 3, 6), torch.zeros(2, 3).bool())
        store.abort()
        model(torch.rand(2, 3, 6), torch.zeros(2, 3).bool())
        assert captured.stopped


def test_a_pass_that_fails_leaves_nothing_behind(model):
    store = store_of()
    with capture(model, PATHS, store) as captured:
        model(torch.rand(4, 6))
        with pytest.raises(RuntimeError, match="the model failed"):
            model(torch.rand(100, 6), fail=True)
        model(torch.rand(3, 6))
    assert (captured.passes, captured.passes_dropped) == (2, 1)
    store.flush()
    assert store.current_activations_stored_per_component == [7, 7]


def test_hooks_come_off_after_an_exception(model):
    store = store_of()
    with pytest.raises(RuntimeError, match="the model failed"), capture(model, PATHS, store):
        model(torch.rand(4, 6), fail=True)
    assert hooks_of(model) == 0
    with pytest.raises(KeyError), capture(model, PATHS, store):
        raise KeyError
    assert hooks_of(model) == 0


def test_parts_of_the_model_can_be_called(model):
    store = store_of()
    with capture(model, PATHS, store):
        model.blocks[0](torch.rand(9, 6))  # half a pass
        for _ in range(2):
            hidden = torch.rand(4, 6)
            for block in model.blocks:
                hidden, _ = block(hidden)
    store.flush()
    assert store.current_activations_stored_per_component == [8, 8]


def test_a_store_that_cannot_take_the_rows_does_not_disturb_the_model(model):
    for store, paths, message in (
        (RingStore({"first": 6, "last": 5}, batch_size=8, window=32), PATHS, "takes rows of 5 features, but the batch has 6"),
        (TensorActivationStore(2, 6, 2), {"blocks.0": 0, "blocks.1": 1}, "Activation store is full"),
    ):
        inputs = torch.rand(4, 6)
        plain = model(inputs)
        with pytest.raises((ValueError, IndexError), match=message):  # noqa: SIM117, PT012
            with capture(model, paths, store) as captured, pytest.warns(RuntimeWarning, match="capturing has stopped"):
                assert torch.equal(model(inputs), plain)
                assert torch.equal(model(inputs), plain)
                assert captured.error is not None
        assert hooks_of(model) == 0


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("into", ["store", "producer"])
def test_a_store_closed_by_the_trainer_ends_the_capture_quietly(model, end, into):
    store = store_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with capture(model, PATHS, store if into == "store" else store.producer()) as captured:
            for number in range(1000):
                if captured.stopped:
                    break
                model(torch.rand(4, 6))
                if number == 3:
                    getattr(store, end)()
            model(torch.rand(4, 6))
            assert captured.stopped
    assert number == 4 and captured.passes == 4 and captured.error is None


def test_a_capture_that_waits_ends_quietly_when_the_store_closes(model, in_thread):
    store = RingStore({"first": 6, "last": 6}, batch_size=8, window=32, queue_rows=8)
    ran = []

    def run():
        with capture(model, PATHS, store) as captured:
            while not captured.stopped:
                model(torch.rand(8, 6))
        ran.append(captured)

    thread = in_thread(run)
    assert len(next(store)["first"]) == 8
    store.abort()
    thread.join(30)
    assert ran[0].error is None and ran[0].passes > 0


class TwoStores(ActivationStore):
    """A store of the user's own that writes to two others."""

    def __init__(self, *stores):
        self.stores = stores
        self.closed = False

    n_components = 1
    current_activations_stored_per_component = (0,)

    def extend(self, batch, component):
        for store in self.stores:
            store.extend(batch, component)

    def append(self, item, component):
        """Not called."""

    def empty(self):
        """Not called."""

    def __getitem__(self, index):
        raise NotImplementedError

    def __len__(self):
        return 0


def test_the_end_of_another_store_stops_a_capture_with_its_error(model):
    train, evaluate = (RingStore({"first": 6}, batch_size=8, window=32) for _ in range(2))
    evaluate.close()
    store = TwoStores(train, evaluate)
    with (
        pytest.raises(StoreClosedError, match="the store is closed"),
        pytest.warns(RuntimeWarning, match="capturing has stopped"),
        capture(model, {"embed": 0}, store) as captured,
    ):
        model(torch.randn(4, 6))
        assert captured.stopped
    store.closed = True
    with capture(model, {"embed": 0}, store) as captured:
        model(torch.randn(4, 6))
        assert captured.stopped


def test_a_capture_that_fails_says_that_it_has_stopped(model):
    store = RingStore({"first": 6, "last": 5}, batch_size=8, window=32)
    passes = 0
    with (
        pytest.warns(RuntimeWarning, match="capturing has stopped"),
        pytest.raises(ValueError, match="takes rows of 5 features"),
        capture(model, PATHS, store) as captured,
    ):
        while not captured.stopped:
            model(torch.rand(4, 6))
            passes += 1
    assert passes == 1


def test_a_live_capture_of_the_model_is_named(model, in_thread):
    first, second = store_of(), store_of()
    entered, end = threading.Event(), threading.Event()

    def run():
        with capture(model, PATHS, first):
            entered.set()
            assert end.wait(30)

    thread = in_thread(run)
    assert entered.wait(30)
    message = rf"already has a live capture.*capture of 'blocks.0', 'blocks.2' of Model into RingStore\(.*on thread '{re.escape(thread.name)}'"
    with pytest.raises(ValueError, match=message), capture(model, PATHS, second):
        pass
    with capture(Model(), PATHS, second):  # a replica is another model
        pass
    end.set()
    thread.join(30)
    with capture(model, PATHS, first), capture(model, PATHS, second):
        model(torch.rand(4, 6))
        with pytest.raises(ValueError, match="already has a live capture"), capture(model, PATHS, second):
            pass
    for store in (first, second):
        store.flush()
        assert len(store) == 4
    assert hooks_of(model) == 0


def test_modules_that_do_not_run_are_told(model):
    with pytest.raises(ValueError, match="did not run 'blocks.2'"), pytest.warns(RuntimeWarning), capture(model, PATHS, store_of()):
        model(torch.rand(4, 6), depth=1)


@pytest.mark.parametrize(
    ("paths", "error", "message"),
    [
        ({"blocks.7": "first"}, ValueError, "no module 'blocks.7'; it has 'blocks"),
        ({"blocks.0": "frist"}, IndexError, 'no component "frist"'),
        ({"blocks.0": 2}, IndexError, "no component 2"),
        ({"blocks.0": "first", "blocks.1": 0}, ValueError, "two modules are captured into one component"),
        ({}, ValueError, "nothing to capture"),
    ],
)
def test_what_cannot_be_captured(model, paths, error, message):
    with pytest.raises(error, match=message):
        capture(model, paths, store_of())
    assert hooks_of(model) == 0


def test_what_else_cannot_be(model):
    with pytest.raises(ValueError, match="no argument 'padding' to take the mask from; it has inputs, attention_mask"):
        capture(model, PATHS, store_of(), mask="padding")
    with pytest.raises(ValueError, match="point is 'middle'"):
        capture(model, PATHS, store_of(), point="middle")
    with pytest.raises(IndexError, match="no component 'first'"):
        capture(model, PATHS, TensorActivationStore(8, 6, 2))


@pytest.mark.parametrize("replicas", [1, 4])
def test_threads_do_not_mix_their_rows(in_thread, replicas):
    """One model called by several threads, and several replicas: components stay aligned."""
    width = 6
    models = [nn.Sequential(nn.Identity(), nn.Identity()) for _ in range(replicas)]
    store = RingStore({"a": width, "b": width}, batch_size=16, window=64)
    barrier = threading.Barrier(4)

    def run(number):
        model = models[number % replicas]
        with capture(model, {"0": "a", "1": "b"}, store) if replicas > 1 else barrier_only():
            barrier.wait()
            for call in range(50):
                model(torch.full((5, width), float(1000 * number + call)))

    class barrier_only:  # noqa: N801
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    def all_of_them():
        with capture(models[0], {"0": "a", "1": "b"}, store) if replicas == 1 else barrier_only():
            threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        store.close()

    in_thread(all_of_them)
    rows = 0
    for batch in store:
        assert torch.equal(batch["a"], batch["b"])
        rows += len(batch["a"])
    assert rows == 4 * 50 * 5


def test_capture_waits_for_the_trainer(model, in_thread):
    store = RingStore({"first": 6, "last": 6}, batch_size=8, window=32, queue_rows=8)
    done = threading.Event()

    def run():
        with capture(model, PATHS, store):
            for _ in range(100):
                model(torch.rand(8, 6))
        store.close()
        done.set()

    in_thread(run)
    assert not done.wait(0.3)
    assert sum(len(batch["first"]) for batch in store) == 800
    assert done.wait(10)


def test_on_an_event_loop_it_waits_unless_told_not_to(model, in_thread):
    async def run(**settings):
        with capture(model, PATHS, store, **settings) as captured:
            for _ in range(50):
                model(torch.rand(8, 6))
        return captured.passes

    def small():
        return RingStore({"first": 6, "last": 6}, batch_size=8, window=32, queue_rows=8)

    store = small()
    assert asyncio.run(run(wait=False)) == 50
    assert store.stats().components["first"].queued > 8
    for settings in ({}, {"wait": True}):
        store = small()
        in_thread(lambda store=store, settings=settings: (asyncio.run(run(**settings)), store.close()))
        assert sum(len(batch["first"]) for batch in store) == 400


def test_a_store_of_your_own(model):
    class Lists(ActivationStore):
        def __init__(self):
            self.rows = [[], []]

        def append(self, item, component_idx):
            self.rows[component_idx].append(item)

        def extend(self, batch, component_idx):
            self.rows[component_idx].extend(batch)

        def empty(self):
            self.rows = [[], []]

        n_components = 2

        @property
        def current_activations_stored_per_component(self):
            return [len(rows) for rows in self.rows]

        def __getitem__(self, index):
            return [rows[index] for rows in self.rows]

        def __len__(self):
            return min(map(len, self.rows))

    store = Lists()
    inputs = torch.rand(2, 4, 6)
    with capture(model, {"blocks.0": 0, "blocks.2": 1}, store):
        model(inputs)
    assert len(store) == 8
    torch.testing.assert_close(torch.stack(store.rows[1]), expected(model, inputs, 2))


def test_transformers_model():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    tokens = torch.randint(50, (4, 10))
    mask = (torch.arange(10) < torch.tensor([10, 5, 7, 1])[:, None]).long()
    store = RingStore({"1": 16, "3": 16}, batch_size=4, window=8, queue_rows=1000)
    with torch.no_grad(), capture(model, {"encoder.layer.0": "1", "encoder.layer.2": "3"}, store, mask="attention_mask"):
        out = model(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
    store.close()
    batches = list(store)
    for name in ("1", "3"):
        got = torch.cat([batch[name] for batch in batches])
        torch.testing.assert_close(by_first(got), by_first(out.hidden_states[int(name)][mask.bool()]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transformer_lens_hook_points():
    transformer_lens = pytest.importorskip("transformer_lens")
    config = transformer_lens.HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=12, d_head=8, n_heads=2, d_mlp=32, d_vocab=30, act_fn="gelu", seed=0, device="cpu"
    )
    model = transformer_lens.HookedTransformer(config)
    tokens = torch.randint(30, (3, 12))
    store = RingStore({"resid": 16, "mlp": 32}, batch_size=4, window=8, queue_rows=1000)
    with capture(model, {"blocks.1.hook_resid_post": "resid", "blocks.0.mlp.hook_post": "mlp"}, store):
        _, cache = model.run_with_cache(tokens)
    store.close()
    batches = list(store)
    for name, hook in (("resid", "blocks.1.hook_resid_post"), ("mlp", "blocks.0.mlp.hook_post")):
        got = torch.cat([batch[name] for batch in batches])
        wanted = cache[hook].reshape(-1, got.shape[1])
        torch.testing.assert_close(by_first(got), by_first(wanted))


def test_data_parallel_like_replicas(model):
    """Replicas made by copying the modules, hooks and all, called on threads of their own."""
    import copy

    store = store_of()
    with capture(model, PATHS, store):
        replica = copy.copy(model)
        inputs = [torch.rand(4, 6), torch.rand(3, 6)]
        threads = [threading.Thread(target=part, args=(rows,)) for part, rows in zip((model, replica), inputs, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    store.flush()
    assert store.current_activations_stored_per_component == [7, 7]
    assert np.isfinite(np.asarray(store[:])).all()


class AnyArguments(nn.Module):
    """A wrapper, as DataParallel and compiled models are: its forward names no argument."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def test_a_mask_that_the_call_does_not_give_by_name_is_no_mask(model):
    wrapped = AnyArguments(model)
    mask = torch.tensor([[1, 1, 0, 0]])
    paths = {"inner." + path: component for path, component in PATHS.items()}
    store = store_of()
    with (
        pytest.warns(RuntimeWarning, match="capturing has stopped"),
        pytest.raises(ValueError, match="this call gave no argument 'attention_mask'.*pass it by name"),
        capture(wrapped, paths, store, mask="attention_mask"),
    ):
        wrapped(torch.randn(1, 4, 6), mask)
    store = store_of()
    with capture(wrapped, paths, store, mask="attention_mask"):
        wrapped(torch.randn(1, 4, 6), attention_mask=mask)
    assert len(served(store, "first")) == 2


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_what_checkpointing_runs_again_is_stored_once(use_reentrant):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, inputs):
            return self.b(checkpoint(self.a, inputs, use_reentrant=use_reentrant))

    model = Checkpointed()
    store = store_of()
    with capture(model, {"a": "first", "b": "last"}, store) as captured:
        for _ in range(2):
            model(torch.randn(3, 6, requires_grad=True)).sum().backward()
    assert captured.passes == 2 and captured.passes_dropped == 0
    assert len(served(store, "first")) == 6


def test_inputs_given_by_name_are_told_apart():
    class Attention(nn.Module):
        def forward(self, hidden_states, attention_mask=None):
            return hidden_states

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention()

        def forward(self, inputs):
            return self.attention(attention_mask=torch.zeros(2, 6), hidden_states=inputs)

    store = RingStore(6, batch_size=2, window=2, output="numpy")
    model = Outer()
    with capture(model, {"attention:input": 0}, store):
        model(torch.ones(2, 6))
    store.close()
    assert (next(store) == 1).all()


def test_a_module_that_runs_twice_is_told():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, inputs):
            return self.b(self.a(self.a(inputs)))

    model, store = Twice(), store_of()
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(ValueError, match="module 'a' ran twice in one forward pass"),
        capture(model, {"a": "first", "b": "last"}, store),
    ):
        model(torch.randn(3, 6))
    shared = nn.Linear(6, 6)
    with pytest.raises(ValueError, match="'0' and '1' are the output of one module"):
        capture(nn.Sequential(shared, shared), {"0": "first", "1": "last"}, store_of())


def test_a_pass_that_runs_no_captured_module_is_told(model):
    store = RingStore(6, batch_size=8, window=32)
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(ValueError, match="did not run 'blocks.2' at all"),
        capture(model, {"blocks.2": 0}, store) as captured,
    ):
        model(torch.randn(3, 6), depth=1)
    assert captured.passes == 0 and captured.passes_dropped == 1


def test_rows_of_the_wrong_width_leave_a_lane_of_ones_own_aligned(model):
    store = RingStore({"first": 6, "last": 5}, batch_size=4, window=4, output="numpy")
    lane = store.producer()
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(ValueError, match="takes rows of 5 features"),
        capture(model, PATHS, lane),
    ):
        model(torch.randn(4, 6))
    lane.extend(np.full((4, 6), 2, np.float32), "first")
    lane.extend(np.full((4, 5), 2, np.float32), "last")
    store.close()
    batch = next(store)
    assert (batch["first"] == 2).all() and (batch["last"] == 2).all()


def test_a_pass_that_fails_between_components_closes_its_lane(model):
    store = RingStore({"first": 6, "last": 6, "token": 1}, batch_size=8, window=16, max_skew=16, queue_rows=1000)
    lane = store.producer()
    lane.extend(torch.rand(4, 6), "last")
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(ValueError, match='ahead of component 2 \\("token"\\)'),
        capture(model, PATHS, lane),
    ):
        model(torch.rand(14, 6))  # of "last", rows 4 to 17 are too far ahead
    with pytest.raises(StoreClosedError, match="lane is closed"):
        lane.extend(torch.rand(1, 6), "first")


def test_a_store_that_rejects_loses_whole_passes(model):
    store = RingStore({"first": 6, "last": 6}, batch_size=4, window=8, queue_rows=10, when_full="reject", output="numpy")
    with capture(model, PATHS, store) as captured:
        for number in range(40):
            model(torch.full((5, 6), float(number)))
    assert captured.error is None
    assert captured.passes > 0 and captured.passes_dropped > 0 and captured.passes + captured.passes_dropped == 40
    store.close()
    both = [(batch["first"], batch["last"]) for batch in store]
    assert sum(len(first) for first, _ in both) == captured.passes * 5
    # Rows of one pass are alike, so what the last block makes of a row tells which pass it is from.
    with torch.no_grad():
        known = {}
        for number in range(40):
            hidden = model.embed(torch.full((1, 6), float(number)))
            hidden, _ = model.blocks[0](hidden)
            first = hidden.clone()
            for block in model.blocks[1:]:
                hidden, _ = block(hidden)
            known[number] = (first.numpy()[0], hidden.numpy()[0])
    for first, last in both:
        for row, other in zip(first, last, strict=True):
            number = min(known, key=lambda number: float(np.abs(known[number][0] - row).sum()))
            assert np.allclose(known[number][1], other, atol=1e-3)


def test_a_warning_made_an_error_does_not_reach_the_model(model):
    store = store_of()
    store.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with capture(model, PATHS, store) as captured:
            assert model(torch.randn(3, 6)).shape == (3, 6)
        store = RingStore({"first": 6, "last": 5}, batch_size=8, window=32)
        with pytest.raises(ValueError, match="features"), capture(model, PATHS, store):
            assert model(torch.randn(3, 6)).shape == (3, 6)
    assert captured.stopped


def test_a_mask_over_the_first_axes_goes_for_all_below(model):
    store = store_of()
    mask = torch.tensor([[True, False, True]])
    with capture(model, PATHS, store, mask=mask):
        model(torch.randn(1, 3, 4, 6))  # [batch, position, head, feature]
    assert len(served(store, "first")) == 8


def test_the_former_name_of_the_module_works_and_warns():
    with pytest.warns(DeprecationWarning, match="activation_store.hooks is now activation_store.capture") as said:
        from activation_store.hooks import capture as former
    assert former is capture
    assert said[0].filename == __file__
