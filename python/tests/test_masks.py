"""Masks that fit rows in one way are taken; those that fit in two are refused. A mask that a cache makes grow goes by its last positions."""

import numpy as np
import pytest
from conftest import drain, numbered

from activation_store import RingStore, TensorActivationStore

ROWS = {"ring": lambda: RingStore(3, batch_size=8, window=64, output="numpy"), "fixed": lambda: TensorActivationStore(100, 3, 1)}


def kept(shape, mask):
    """The numbers of the rows that a mask keeps."""
    rows = numbered(int(np.prod(shape)), 3)
    store = ROWS["ring"]()
    store.extend(rows.reshape(*shape, 3), mask=mask)
    return drain(store)[:, 0].tolist()


@pytest.mark.parametrize("make", ROWS)
def test_a_mask_that_can_be_read_in_two_ways_is_refused(make):
    store = ROWS[make]()
    rows, mask = numbered(16, 3).reshape(4, 4, 3), np.array([0, 1, 1, 1])
    with pytest.raises(ValueError, match=r"shape \(4,\), and the rows have \(4, 4\).*two ways.* give mask\[:, None\].* give mask\[None, :\]"):
        store.extend(rows, mask=mask)
    assert len(store) == 0
    assert kept((4, 4), mask[:, None]) == list(range(4, 16)), "one value per sequence"
    assert kept((4, 4), mask[None, :]) == [row for row in range(16) if row % 4], "one value per position"


@pytest.mark.parametrize("shape", [(2, 3, 2), (2, 2, 3)])
def test_an_axis_further_in_makes_it_ambiguous_too(shape):
    axes = "mask[None, None, :]" if shape[2] == 2 else "mask[None, :, None]"
    with pytest.raises(ValueError, match=f"mask\\[:, None, None\\].*{axes.replace('[', chr(92) + '[')}"):
        kept(shape, np.array([0, 1]))


def test_what_fits_in_one_way_is_taken():
    assert kept((2, 3), np.array([0, 1])) == [3, 4, 5], "one value per sequence"
    assert kept((1, 4), np.array([0, 1, 1, 1])) == [1, 2, 3], "one value per row"
    assert kept((4, 1), np.array([0, 1, 1, 1])) == [1, 2, 3]
    assert kept((1, 1), np.array([1])) == [0]
    assert kept((2, 2), np.array([[0, 1], [1, 0]])) == [1, 2]
    assert kept((2, 3, 2), np.array([[0, 1, 0], [1, 0, 0]])) == [2, 3, 6, 7], "for all heads"
    assert kept((2, 2, 2), np.array([[0, 1], [1, 0]])) == [2, 3, 4, 5], "for all heads"


def test_a_mask_of_sequences_goes_for_flattened_rows():
    mask = np.array([[0, 1, 1], [0, 0, 1]])
    assert kept((6,), mask) == [1, 2, 5]
    assert kept((6,), mask[:, :, None]) == [1, 2, 5]


@pytest.mark.parametrize(
    ("shape", "mask", "hint"),
    [
        ((24,), (3,), "one value per row"),
        ((24,), (1,), "one value per row"),
        ((4, 6), (6, 4), r"give mask\.T"),
        ((4, 6), (6,), r"give mask\[None, :\]"),
        ((4, 6), (3, 8), "one value per row"),
        ((8, 3), (4, 6), "one value per row"),
        ((4, 6), (4, 7), "one value per row"),
        ((4, 6), (), "one value per row"),
    ],
)
def test_what_fits_in_no_way_is_refused(shape, mask, hint):
    with pytest.raises(ValueError, match=hint):
        kept(shape, np.ones(mask, bool))


def test_tensors_are_read_alike():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="two ways"):
        kept((4, 4), torch.tensor([0, 1, 1, 1]))
    assert kept((4, 4), torch.tensor([[0, 1, 1, 1]])) == [row for row in range(16) if row % 4]
    assert kept((6,), torch.tensor([[0, 1, 1], [0, 0, 1]])) == [1, 2, 5]


def language_model(kind):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")

    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64
        )
        return transformers.LlamaForCausalLM(config).eval(), "model.layers.0"
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    return transformers.GPT2LMHeadModel(config).eval(), "transformer.h.0"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_generate_with_a_cache_and_left_padding(kind):
    torch = pytest.importorskip("torch")

    from activation_store import capture

    lm, path = language_model(kind)
    prompts = torch.randint(1, 50, (3, 6))
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[0, :4] = mask[1, :1] = 0
    seen = []
    store = RingStore(16, batch_size=4, window=8, queue_rows=1000)
    hook = lm.get_submodule(path).register_forward_hook(lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output))
    with torch.no_grad(), capture(lm, {path: 0}, store, mask="attention_mask") as captured:
        lm.generate(prompts, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    hook.remove()
    assert captured.error is None
    assert [tuple(rows.shape[:2]) for rows in seen] == [(3, 6)] + [(3, 1)] * 4
    # The prompts without their padding, and all rows of the tokens that follow.
    expected = torch.cat([seen[0][mask.bool()], *(rows.reshape(-1, 16) for rows in seen[1:])])
    got = np.sort(drain(store), axis=0)
    assert got.shape == (int(mask.sum()) + 12, 16)
    np.testing.assert_array_equal(got, np.sort(expected.numpy(), axis=0))


def test_a_sequence_that_has_ended_is_left_out_by_the_last_positions():
    torch = pytest.importorskip("torch")

    from activation_store import capture

    class Cached(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 3)

        def forward(self, x, mask=None):
            return self.linear(x)

    model = Cached()
    store = RingStore(3, batch_size=4, window=8)
    with torch.no_grad(), capture(model, {"linear": 0}, store, mask="mask"):
        model(torch.randn(2, 2, 3), torch.tensor([[1, 1, 1, 0, 1], [1, 1, 1, 1, 1]]))
        model(torch.randn(2, 2, 3), mask=torch.tensor([[1, 1, 1, 0, 1], [1, 1, 1, 1, 1]]))
    assert len(drain(store)) == 6


def test_a_mask_that_is_not_the_models_input_is_never_cut():
    torch = pytest.importorskip("torch")

    from activation_store import capture

    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    for mask in (torch.ones(2, 5), lambda args, kwargs: torch.ones(2, 5)):
        store = RingStore(3, batch_size=4, window=8)
        mask = mask.long() if isinstance(mask, torch.Tensor) else (lambda args, kwargs, of=mask: of(args, kwargs).long())
        with pytest.warns(RuntimeWarning, match="capturing has stopped"), pytest.raises(ValueError, match=r"\(2, 5\)"), capture(model, {"0": 0}, store, mask=mask):
            model(torch.randn(2, 1, 3))


def test_the_experts_of_a_mixture_have_flattened_rows():
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")

    from activation_store import capture

    config = transformers.MixtralConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
        num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=32,
    )
    torch.manual_seed(0)
    model = transformers.MixtralModel(config).eval()
    [path] = [name for name, module in model.named_modules() if name.endswith(".gate") or type(module).__name__.endswith("Router")][:1]
    mask = torch.ones(3, 5, dtype=torch.long)
    mask[0, 3:] = 0
    store = RingStore({"layer": 16, "gate": 16}, batch_size=4, window=8, queue_rows=1000)
    with torch.no_grad(), capture(model, {"layers.0": "layer", path + ":input": "gate"}, store, mask="attention_mask") as captured:
        model(input_ids=torch.randint(50, (3, 5)), attention_mask=mask)
    assert captured.error is None
    store.flush()
    assert store.current_activations_stored_per_component == [13, 13]
