"""Caches that other programs wrote are trained on and recorded, whole and aligned."""

import numpy as np
import pytest
from conftest import numbered

from activation_store import Recording, activations, read_cache, record


def served(cache):
    """The rows that a loop gets, in the order of their first number."""
    batches = list(activations(dict, cache, batch_size=16, window=64, output="numpy"))
    if not isinstance(batches[0], dict):
        return np.concatenate(sorted(np.concatenate(batches).tolist())).reshape(-1, batches[0].shape[1])
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    order = np.argsort(next(iter(rows.values()))[:, 0])
    return {name: values[order] for name, values in rows.items()}


def test_npy_files_are_read_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 1):
        np.save(tmp_path / f"part-{number}.npy", numbered(30, 4, {1: 0, 2: 30, 10: 60}[number]))
    cache = read_cache(tmp_path, name="mlp", pass_rows=20)
    assert cache.components == {"mlp": (4, "f32")}
    assert (cache.rows, len(cache)) == (90, 6)
    assert [len(each["mlp"]) for each in cache] == [20, 10] * 3
    assert (np.concatenate([each["mlp"] for each in cache]) == numbered(90, 4)).all()
    assert (cache[-1]["mlp"] == numbered(10, 4, 80)).all()
    assert [len(each["mlp"]) for each in cache[1:3]] == [10, 20]
    with pytest.raises(IndexError, match="pass 6 is out of range: there are 6"):
        cache[6]
    assert (served(cache) == numbered(90, 4)).all()


def test_folders_of_npy_files_are_components(tmp_path):
    for name, features in (("layer.1", 4), ("layer.2", 3)):
        (tmp_path / name).mkdir()
        for part in range(2):
            np.save(tmp_path / name / f"{part}.npy", numbered(24, features, 24 * part).reshape(4, 6, features))
    cache = read_cache(tmp_path, pass_rows=10)
    rows = served(cache)
    assert (rows["layer.1"] == numbered(48, 4)).all()
    assert (rows["layer.2"] == numbered(48, 3)).all()
    np.save(tmp_path / "layer.2" / "2.npy", numbered(24, 3))
    with pytest.raises(ValueError, match=r"equally many .npy files; they have \{'layer.1': 2, 'layer.2': 3\}"):
        read_cache(tmp_path)


def test_safetensors_of_sequences_with_token_ids(tmp_path):
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    for part in range(3):
        a = torch.arange(40 * part, 40 * part + 40).repeat_interleave(4).reshape(5, 8, 4)
        save_file({"a": a.to(torch.bfloat16), "tokens": a[..., 0].int().contiguous()}, tmp_path / f"{part}.safetensors")
    cache = read_cache(tmp_path, pass_rows=13)
    assert cache.components == {"a": (4, "bf16"), "tokens": (1, "i64")}
    assert [len(each["a"]) for each in cache] == [13, 13, 13, 1] * 3
    for _ in range(2):  # resuming skips what is safe
        safe = record(dict, cache, None, tmp_path / "recorded", resume=True)
        assert safe.rows == 120
    recording = Recording(tmp_path / "recorded")
    assert recording.get("tokens", range(120))[:, 0].tolist() == list(range(120))
    assert (recording.get("a", range(120)) == torch.arange(120).to(torch.bfloat16)[:, None]).all()
    with pytest.raises(FileNotFoundError, match=r"is a recording of this library: open it with Recording\("):
        read_cache(tmp_path / "recorded")


@pytest.mark.timeout(600)  # the imports take most of it, where the disk is slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_cache_of_saelens_is_replayed(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("sae_lens")
    import datasets
    from sae_lens import cache_activations_runner as saelens
    from test_trainers import tiny_transformer

    model = tiny_transformer()
    tokens = torch.randint(64, (64, 32), generator=torch.Generator().manual_seed(1))
    hook = "blocks.0.hook_resid_post"
    monkeypatch.setattr(saelens, "load_model", lambda **_: model)
    config = saelens.CacheActivationsRunnerConfig(
        dataset_path="in memory", model_name="tiny", model_batch_size=4, hook_name=hook, d_in=16, training_tokens=48 * 32,
        context_size=32, dtype="float32", device="cpu", buffer_size_gb=4e-5, prepend_bos=False, shuffle=False,
        new_cached_activations_path=str(tmp_path / "cached"),
    )  # fmt: skip
    written = saelens.CacheActivationsRunner(config, override_dataset=datasets.Dataset.from_dict({"tokens": tokens.numpy()})).run()
    assert len(list((tmp_path / "cached").glob("*.arrow"))) > 1

    cache = read_cache(tmp_path / "cached", pass_rows=100)
    assert cache.components == {hook: (16, "f32"), "token_ids": (1, "i64")}
    assert cache.rows == 32 * len(written)
    assert record(dict, cache, None, tmp_path / "recorded").rows == cache.rows
    recording = Recording(tmp_path / "recorded", batch_size=64, window=256)
    ids = recording.get("token_ids", range(cache.rows)).reshape(-1, 32)
    assert (ids == tokens[: len(ids)]).all()
    expected = model.run_with_cache(tokens[: len(ids)])[1][hook].detach().reshape(-1, 16)
    assert torch.allclose(recording.get(hook, range(cache.rows)), expected, atol=1e-5)
    assert sum(len(batch[hook]) for batch in recording) == cache.rows


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_cache(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"no Arrow data set \(dataset_info.json and state.json\), no .safetensors and no .npy"):
        read_cache(tmp_path)
    np.save(tmp_path / "0.npy", numbered(3, 4))
    np.save(tmp_path / "1.npy", numbered(3, 5))
    with pytest.raises(ValueError, match=r"1.npy has the components \{'activations': \(5, 'f32'\)\}, and .*0.npy has"):
        read_cache(tmp_path)
    np.save(tmp_path / "1.npy", np.float32(3))
    with pytest.raises(ValueError, match=r"1.npy holds no rows"):
        read_cache(tmp_path)
    np.save(tmp_path / "1.npy", np.zeros((3, 4), bool))
    with pytest.raises(TypeError, match=r"rows of bool cannot be stored"):
        read_cache(tmp_path)
    with pytest.raises(ValueError, match="pass_rows is 0; it must be 1 or more"):
        read_cache(tmp_path, pass_rows=0)
    (tmp_path / "1.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match="1.npy cannot be read as .npy"):
        read_cache(tmp_path)
