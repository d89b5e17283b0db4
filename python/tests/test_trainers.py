"""Trainers of other libraries take the store as it is."""

import pytest
from conftest import drain

torch = pytest.importorskip("torch")

from activation_store import RingStore, capture  # noqa: E402


def tiny_transformer():
    transformer_lens = pytest.importorskip("transformer_lens")
    config = transformer_lens.HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=32, d_head=8, n_heads=2, d_mlp=32, d_vocab=64, act_fn="gelu", seed=0, device="cpu"
    )
    return transformer_lens.HookedTransformer(config)


@pytest.mark.timeout(600)  # the imports take most of it, where the disk is slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("store_dtype", ["f32", "bf16"])
def test_saelens(in_thread, store_dtype):
    """A SAELens training run, fed by a transformer that runs at the same time."""
    pytest.importorskip("sae_lens")
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    model = tiny_transformer()
    batch_size, steps = 128, 100
    store = RingStore(16, batch_size=batch_size, window=2048, dtype=store_dtype)

    # Before the capture starts: its hooks run on every thread that calls the model, and this thread has to drain.
    held_out = model.run_with_cache(torch.randint(64, (4, 32)))[1]["blocks.0.hook_resid_post"].detach().reshape(-1, 16)

    @torch.no_grad()
    def run_model():
        tokens = torch.Generator().manual_seed(1)
        with capture(model, {"blocks.0.hook_resid_post": 0}, store):
            for _ in range((steps + 20) * batch_size // (16 * 32)):
                model(torch.randint(64, (16, 32), generator=tokens))
        store.close()

    class AsFloat:
        """SAELens trains in f32; what a bf16 store gives is converted on the way."""

        def __iter__(self):
            return self

        def __next__(self):
            return next(store).float()

    torch.manual_seed(0)
    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=16, d_sae=64, l1_coefficient=0.1))
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * batch_size,
            train_batch_size_samples=batch_size,
            lr=3e-3,
            lr_end=3e-4,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=store if store_dtype == "f32" else AsFloat(),
    )
    in_thread(run_model)

    @torch.no_grad()
    def error():
        return float((sae(held_out) - held_out).pow(2).mean())

    before = error()
    trainer.fit()
    assert trainer.n_training_samples == steps * batch_size
    assert error() < before / 2
    assert store.stats().minibatches_served == steps
    for _ in store:  # so that the model can finish
        pass


def test_an_iterator_of_tensors_as_dictionary_learning_takes_it(in_thread):
    """Its trainer does `for step, activations in enumerate(data)` and leaves the loop when it has had enough."""
    store = RingStore(16, batch_size=64, window=512)
    in_thread(lambda: ([store.extend(torch.randn(100, 16)) for _ in range(40)], store.close()))
    autoencoder = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16))
    optimizer = torch.optim.Adam(autoencoder.parameters(), 1e-2)
    losses = []
    for step, activations in enumerate(store):
        if step >= 50:
            break
        loss = (autoencoder(activations) - activations).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert sum(map(len, store)) == 4000 - 51 * 64


def test_minibatches_can_be_changed_in_place():
    store = RingStore(4, batch_size=8, window=16)
    store.extend(torch.ones(64, 4))
    batch = next(store)
    batch -= batch.mean(0)
    assert float(batch.abs().sum()) == 0
    del batch
    assert (drain(store) == 1).all()
