"""`activations` and `record` run a view of the model: what others do to the model meanwhile does not change the rows."""

import contextlib
import functools
import gc
import os
import re
import threading
import warnings
import weakref

import pytest
from conftest import run

torch = pytest.importorskip("torch")

from activation_store import Recording, RingStore, activations, capture, record  # noqa: E402
from activation_store._hooks.view import view_of  # noqa: E402

nn = torch.nn
VOCABULARY = 60
TOKENS = [torch.randint(1, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(number)) for number in range(16)]
SETTINGS = {"batch_size": 12, "window": 24, "seed": 1}
"""Each text has as many rows as a minibatch."""
DISTURBED = int(os.environ.get("DISTURBED_PASSES", "32"))
"""Passes of each model that are disturbed: more in `scripts/soak`."""
TEXTS = [TOKENS[number % len(TOKENS)] for number in range(DISTURBED)]


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=3, n_head=2, n_embd=16, vocab_size=VOCABULARY, n_positions=16, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config), ["transformer.h.0", "transformer.h.1"], "transformer.h.0.mlp"


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=3, hidden_size=16, intermediate_size=32, num_attention_heads=2, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2
    )
    return LlamaForCausalLM(config), ["model.layers.0", "model.layers.1"], "model.layers.0.mlp"


def mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        num_hidden_layers=3, hidden_size=16, intermediate_size=16, num_attention_heads=2, num_key_value_heads=2, vocab_size=VOCABULARY,
        num_local_experts=4, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return MixtralForCausalLM(config), ["model.layers.0", "model.layers.1"], "model.layers.0.self_attn"


def hooked_transformer():
    transformer_lens = pytest.importorskip("transformer_lens")
    config = transformer_lens.HookedTransformerConfig(
        n_layers=3, d_model=16, n_ctx=16, d_head=8, n_heads=2, d_mlp=32, d_vocab=VOCABULARY, act_fn="gelu", seed=0, device="cpu"
    )
    return transformer_lens.HookedTransformer(config), ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"], "blocks.0.hook_mlp_out"


def bridge():
    bridges = pytest.importorskip("transformer_lens.model_bridge")
    from transformer_lens.config import TransformerBridgeConfig

    config = TransformerBridgeConfig(d_model=16, d_head=8, n_heads=2, d_mlp=32, n_layers=3, n_ctx=16, d_vocab=VOCABULARY, act_fn="gelu", seed=0)
    return bridges.TransformerBridge.boot_native(config), ["blocks.0.hook_out", "blocks.1.hook_out"], "blocks.0.mlp.hook_out"


def dispatched():
    accelerate = pytest.importorskip("accelerate")
    model, paths, spliced = llama()
    return accelerate.dispatch_model(model.eval(), device_map={"": "cpu"}, force_hooks=True), paths, spliced


def offloaded():
    accelerate = pytest.importorskip("accelerate")
    model, paths, spliced = gpt2()
    return accelerate.cpu_offload(model.eval(), execution_device=torch.device("cpu")), paths, spliced


MODELS = [gpt2, llama, mixtral, hooked_transformer, bridge, dispatched, offloaded]


def rows(batches):
    return [{name: each.clone() for name, each in batch.items()} for batch in batches]


def are_equal(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(one, other, strict=True)
    )


def hooks_on(model):
    return [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]


@pytest.fixture
def quietly():
    """No warning: each of these models has a view."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*the model itself runs")
        yield


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_rows_are_those_of_a_quiet_run_whatever_is_done_to_the_model_meanwhile(make, quietly):
    torch.manual_seed(0)
    model, paths, spliced = make()
    model.eval()
    with torch.no_grad():
        model(TOKENS[0])  # TransformerBridge puts hooks of its own on in its first pass
    before = hooks_on(model)
    quiet = rows(activations(model, TEXTS, paths, **SETTINGS))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if not tensor.is_meta}
    module = model.get_submodule(spliced)
    begun, ended = threading.Event(), threading.Event()

    def text():
        yield TOKENS[0]
        assert begun.wait(60)
        yield from TEXTS[1:]

    def zero(module, args, output):
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    batches = activations(model, text(), paths, queue_rows=max(1000, 12 * DISTURBED), **SETTINGS)

    @torch.no_grad()
    def disturb():
        while not ended.is_set():
            handle = module.register_forward_hook(zero)
            model.train()
            # Two threads cannot run a model at once of which accelerate puts the weights in and takes them out.
            with batches.paused() if make is offloaded else contextlib.nullcontext():
                model(TOKENS[1])
            begun.set()
            handle.remove()
            model.eval()
            if hasattr(model, "run_with_cache"):
                model.run_with_cache(TOKENS[0])
                model.reset_hooks()
            model.load_state_dict(state, strict=False)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        disturbed = rows(batches)
    finally:
        ended.set()
        thread.join(60)
    assert len(quiet) == DISTURBED and are_equal(disturbed, quiet)
    assert hooks_on(model) == before and not model.training


class Tiny(nn.Module):
    """Three layers, and what a module may hold that is neither a parameter nor a module of the tree."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.tied = self.layers[0]
        self.in_order = [self.layers[1], (self.layers[2],), {"first": functools.partial(self.call, 0)}]
        self.method, self.lock = self.layers[1].forward, threading.Lock()
        self.layers[0].__dict__["parent"] = self
        self.weakly = weakref.ref(self.layers[2])
        self.dropout = nn.Dropout(0.5)

    def call(self, number, x):
        return self.layers[number](x)

    def forward(self, x):
        with self.lock:
            x = self.in_order[2]["first"](x)
            x = self.tied.parent.layers[1](x)
            return self.dropout(self.weakly()(x) + self.in_order[1][0](x) + self.method(x))


def rows_of(batches):
    return torch.cat([batch.clone() for batch in batches])


def text(count=10):
    return [torch.randn(4, 4, generator=torch.Generator().manual_seed(number)) for number in range(count)]


def test_a_thousand_passes_are_undisturbed(quietly):
    model = Tiny().eval()
    quiet = rows_of(activations(model, text(1000), "dropout", batch_size=4, window=8))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    begun, ended = threading.Event(), threading.Event()

    def disturbed():
        for number, batch in enumerate(text(1000)):
            if number == 1:
                assert begun.wait(60)
            yield batch

    def disturb():
        while not ended.is_set():
            with model.layers[1].register_forward_hook(lambda module, args, output: torch.zeros_like(output)):
                model.train()
                begun.set()
                model(text(1)[0])
            model.eval()
            model.load_state_dict(state)

    thread = threading.Thread(target=disturb)
    batches = activations(model, disturbed(), "dropout", batch_size=4, window=8)
    thread.start()
    try:
        served = rows_of(batches)
    finally:
        ended.set()
        thread.join(60)
    assert len(quiet) == 4000 and torch.equal(served, quiet)


def test_a_view_shares_parameters_and_buffers_and_nothing_else():
    model = Tiny()
    view = view_of(model)
    assert not set(map(id, model.modules())) & set(map(id, view.modules()))
    assert view.tied is view.layers[0] and view.tied.parent is view and view.weakly() is view.layers[2]
    assert view.in_order[0] is view.layers[1] and view.in_order[1][0] is view.layers[2] and view.lock is model.lock
    assert view.method.__self__ is view.layers[1] and view.in_order[2]["first"].func.__self__ is view
    model.double()
    model.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}, assign=True)
    assert all(tensor.dtype == torch.float64 and not tensor.any() for tensor in view.parameters())
    model.eval()
    assert view.training and view.layers[0].training


def test_a_deep_model_has_a_view():
    model = nn.Linear(2, 2)
    for _ in range(2000):
        outer = nn.Module()
        outer.__dict__["inner"] = model
        model = outer
    each, depth = view_of(model), 0
    while not isinstance(each, nn.Linear):
        each, depth = each.inner, depth + 1
    assert depth == 2000


def test_dropout_is_off_unless_the_mode_is_kept(quietly):
    model = Tiny().train()
    assert rows_of(activations(model, text(), "dropout", batch_size=4, window=8)).all()
    assert model.training
    kept = rows_of(activations(model, text(), "dropout", mode="keep", batch_size=4, window=8))
    assert 0.2 < (kept == 0).float().mean() < 0.8


def test_hooks_that_were_on_at_the_start_stay_on_the_view(quietly):
    model = Tiny()
    handle = model.layers[1].register_forward_hook(lambda module, args, output: torch.ones_like(output))
    batches = activations(model, text(), "layers.1", batch_size=4, window=8)
    handle.remove()
    assert (rows_of(batches) == 1).all()


def test_record_runs_a_view(tmp_path, quietly):
    model = Tiny().train()

    def spliced():
        for number, batch in enumerate(text()):
            if number:
                model.layers[1].register_forward_hook(lambda module, args, output: torch.zeros_like(output))
            yield batch

    record(model, text(), "dropout", tmp_path / "quiet")
    record(model, spliced(), "dropout", tmp_path / "spliced")
    quiet, other = (rows_of(Recording(tmp_path / name, batch_size=4, window=8)) for name in ("quiet", "spliced"))
    assert quiet.all() and torch.equal(quiet, other)


def with_closure():
    model = Tiny()
    layers = model.layers
    model.forward = lambda x: layers[2](layers[1](layers[0](x)))
    return model


def scripted():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0] = torch.jit.script(model[0])
    return nn.Sequential(nn.Sequential(), model, nn.Linear(4, 4)), "2"


def sharded():
    fsdp = type("FSDPModule", (), {"__module__": "torch.distributed.fsdp"})
    model = Tiny()
    model.layers[0].__class__ = type("FSDPLinear", (nn.Linear, fsdp), {})
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "why"),
    [(lambda: (with_closure(), "layers.1"), "its view ran module 'layers.0' of the model itself"), (scripted, "torch.jit"),
     (lambda: (sharded(), "layers.1"), "sharded by FSDP2")],
)  # fmt: skip
def test_without_a_view_the_model_runs_and_a_changed_hook_is_an_error(make, why):
    model, path = make()
    model.eval()
    captured = model.get_submodule(path)

    def hooked(change):
        for number, batch in enumerate(text()):
            if number == 5:
                change()
            yield batch

    settings = {"batch_size": 4, "window": 8}
    with pytest.warns(RuntimeWarning, match=f"the model itself runs: there is no view of .*{why}"):
        assert len(rows_of(activations(model, text(), path, **settings))) == 40

    for change, what in [(lambda: captured.register_forward_hook(lambda *_: None), f"the hooks of module '{path}' changed"), (model.train, "train mode")]:
        served = 0
        with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match=what):
            for batch in activations(model, hooked(change), path, **settings):
                served += len(batch)
        assert served == 20
    with pytest.warns(RuntimeWarning):
        assert len(rows_of(activations(model, hooked(model.eval), path, hooks="allow", **settings))) == 40
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_a_compiled_model_runs_uncompiled_and_says_so():
    model = Tiny().eval()
    expected = rows_of(activations(model, text(), "layers.1", batch_size=4, window=8))
    compiled = torch.compile(model, backend="eager")
    for path in ("_orig_mod.layers.1", "layers.1:output"):
        with pytest.warns(RuntimeWarning, match="view of the uncompiled modules") as said:
            assert torch.equal(rows_of(activations(compiled, text(), path, batch_size=4, window=8)), expected)
        assert len(said) == 1


def test_capture_says_that_compiled_code_skips_hooks():
    # In a process of its own: with many compiled models in one process, torch stops compiling.
    result = run("""
    compiled = torch.compile(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)), backend="eager")
    store = RingStore(4, batch_size=4, window=8, queue_rows=1000)
    with torch.no_grad():
        compiled(torch.zeros(2, 4))
        try:
            with capture(compiled, {"_orig_mod.0": 0}, store):
                compiled(torch.zeros(2, 4))
        except ValueError as error:
            print(error)
    store.abort()
    """, torch=True)
    assert re.search("did not run '_orig_mod.0' at all.*compiled by torch.compile.*`activations`", result.stdout), result


def test_capture_refuses_hooks_that_change_between_passes():
    model = Tiny().eval()
    store = RingStore(4, batch_size=4, window=8, queue_rows=1000)
    model.layers[0].register_forward_hook(lambda *_: None)
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match="the hooks of module 'layers.0' changed.*hooks=\"allow\""), capture(model, {"layers.1": 0}, store) as captured:
        model(text()[0])
        model(text()[0])
        with model.layers[0].register_forward_hook(lambda *_: None):
            model(text()[0])
    assert captured.passes == 2
    with capture(model, {"layers.1": 0}, store, hooks="allow") as captured:
        model(text()[0])
        model.dropout = nn.Dropout(0.1)
        model(text()[0])
    assert captured.passes == 2
    with pytest.raises(ValueError, match="hooks is 'no'"):
        capture(model, {"layers.1": 0}, store, hooks="no")
    store.abort()


def test_a_view_is_freed_with_its_run(quietly):
    model = Tiny()
    refs = []

    class Seen(nn.Module):
        def forward(self, x):
            refs.append(weakref.ref(self))
            return x

    model.layers[1] = Seen()
    assert len(rows_of(activations(model, text(2), "dropout", batch_size=4, window=8))) == 8
    gc.collect()
    assert refs and all(ref() is None for ref in refs)
