"""Recording to disk and replaying: exact, complete, resumable, readable by others."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import numbered, run

from activation_store import Recorder, Recording, RingStore, StoreClosedError, Tee, activations, record


def recorded(folder, rows=500, per_pass=50, **settings):
    with Recorder(folder, {"a": 4, "token": (1, "i64")}, shard_rows=120, **settings) as recorder:
        for first in range(0, rows, per_pass):
            a = numbered(per_pass, 4, first)
            recorder.extend_pass({"token": np.arange(first, first + per_pass)[:, None], "a": a})
    return Recording(folder, batch_size=32, window=128, output="numpy")


def test_each_row_comes_once_an_epoch_aligned_and_in_another_order(tmp_path):
    recording = recorded(tmp_path)
    assert (recording.rows, len(recording)) == (500, 16)
    assert recording.components == {"a": (4, "f32"), "token": (1, "i64")}
    orders = []
    for _ in range(2):
        batches = list(recording)
        tokens = np.concatenate([batch["token"] for batch in batches])[:, 0]
        assert (np.concatenate([batch["a"] for batch in batches]) == numbered(500, 4)[tokens]).all()
        assert sorted(tokens) == list(range(500))
        assert [len(batch["a"]) for batch in batches] == [32] * 15 + [20]
        orders.append(tokens.tolist())
    assert orders[0] != orders[1]
    recording.set_epoch(0)
    assert np.concatenate([batch["token"] for batch in recording])[:, 0].tolist() == orders[0]


def test_ranks_share_the_rows_and_get_as_many_minibatches(tmp_path):
    recorded(tmp_path, rows=330, per_pass=33)
    seen, counts = [], []
    for rank in range(4):
        part = Recording(tmp_path, components="token", batch_size=3, window=12, rank=rank, world_size=4, output="numpy")
        batches = [batch for _ in range(3) for batch in part]
        counts.append(len(batches))
        seen += np.concatenate(batches)[:, 0].tolist()
    assert len(set(counts)) == 1
    assert sorted(seen) == sorted(list(range(330)) * 3)
    with pytest.raises(ValueError, match="world_size is 331; it must be at most the 330 rows"):
        list(Recording(tmp_path, rank=0, world_size=331))


def test_rows_are_got_in_any_order(tmp_path):
    recording = recorded(tmp_path)
    rows = [499, 0, 120, 119, 0]
    assert (recording.get("a", rows) == numbered(500, 4)[rows]).all()
    assert recording.get(1, np.array(rows))[:, 0].tolist() == rows
    for wrong in ([500], [-1]):
        with pytest.raises(IndexError, match="out of range: there are 500"):
            recording.get("a", wrong)
    with pytest.raises(IndexError, match="no component 'b'; this recording has 'a', 'token'"):
        recording.get("b", [0])


def test_other_programs_read_the_shards(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    recorded(tmp_path, metadata={"model": "tiny"})
    rows = []
    for shard in sorted(tmp_path.glob("lane.0*")):
        info = json.loads((shard / "shard.json").read_text())["shard"]
        assert info["metadata"]["model"] == "tiny"
        [component] = [component for component in info["components"] if component["name"] == "a"]
        rows.append(safetensors.load_file(shard / component["file"])["rows"])
        assert len(rows[-1]) == info["rows"]
    assert (np.concatenate(rows) == numbered(500, 4)).all()


def test_a_killed_recorder_goes_on_behind_what_is_safe(tmp_path):
    code = f"""
    recorder = Recorder({str(tmp_path)!r}, 4, shard_rows=30, resume=True)
    for index in range(recorder.resumed.passes, 1000):
        recorder.extend_pass({{"0": np.full((10, 4), index, np.float32)}})
        if index == recorder.resumed.passes + 11:
            print(recorder.flush().passes, flush=True)
            recorder.extend_pass({{"0": np.zeros((10, 4), np.float32)}})
            os.kill(os.getpid(), signal.SIGKILL)
    """
    for attempt in range(1, 4):
        result = run(code)
        assert int(result.stdout) == 12 * attempt, result.stderr
    with Recorder(tmp_path, 4, shard_rows=30, resume=True) as recorder:
        assert recorder.resumed == (36, 360)
    recording = Recording(tmp_path, output="numpy")
    recording.verify()
    assert recording.get(0, range(0, 360, 10))[:, 0].tolist() == list(range(36))


def test_damage_is_named_and_refusals_say_what_would_work(tmp_path):
    recorded(tmp_path / "a")
    with pytest.raises(ValueError, match="resume it, or use another lane"):
        Recorder(tmp_path / "a", {"a": 4, "token": (1, "i64")})
    with pytest.raises(ValueError, match="holds other components than"):
        Recorder(tmp_path / "a", {"a": 8}, resume=True)
    with pytest.raises(FileNotFoundError, match="No such file"):
        Recording(tmp_path / "none")
    with pytest.raises(ValueError, match="letters, digits, - and _"):
        Recorder(tmp_path / "b", 4, lane="../up")
    path = sorted((tmp_path / "a").glob("lane.0*"))[1] / "0.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    progress = []
    with pytest.raises(ValueError, match="its checksum does not match") as error:
        Recording(tmp_path / "a").verify(lambda done, of: progress.append((done, of)))
    assert str(path) in str(error.value)
    assert progress == [(1, 4)]
    with pytest.raises(RuntimeError, match="its checksum does not match"):
        for _ in Recording(tmp_path / "a", batch_size=8, window=16, output="numpy"):
            pass
    recorder = Recorder(tmp_path / "c", 4)
    recorder.close()
    with pytest.raises(StoreClosedError, match="the recorder is closed; resume the lane with another recorder to go on"):
        recorder.extend_pass({"0": np.zeros((1, 4), np.float32)})


def test_a_tee_gives_the_same_rows_to_both(tmp_path):
    store = RingStore({"a": 4}, batch_size=16, window=64, output="numpy")
    with pytest.raises(ValueError, match="give both the same components"):
        Tee(store, Recorder(tmp_path / "other", {"a": 8}))
    with Recorder(tmp_path / "tee", {"a": 4}) as recorder, store:
        tee = Tee(store, recorder)
        for first in range(0, 100, 10):
            tee.extend_pass({"a": numbered(10, 4, first)}, mask=np.arange(10) % 2 == 0)
    trained = np.concatenate(list(store))
    recording = Recording(tmp_path / "tee", output="numpy")
    assert sorted(trained[:, 0]) == recording.get("a", range(50))[:, 0].tolist() == list(range(0, 100, 2))
    with pytest.raises(StoreClosedError):
        tee.extend_pass({"a": numbered(10, 4)})


def test_a_tee_gives_the_store_nothing_that_the_disk_cannot_take(tmp_path):
    store = RingStore({"a": 4}, batch_size=16, window=64, output="numpy")
    recorder = Recorder(tmp_path / "tee", {"a": 4})
    tee = Tee(store, recorder)
    tee.extend_pass({"a": numbered(10, 4)}).result()
    recorder.extend_pass({"a": numbered(10, 4)}).result()
    shutil.rmtree(tmp_path / "tee")
    with pytest.raises(OSError, match="tee"):
        recorder.flush()
    with pytest.raises(OSError, match="tee"):
        tee.extend_pass({"a": numbered(10, 4)})
    store.extend_pass({"a": numbered(7, 4, 100)})
    store.close()
    assert sum(len(batch) for batch in store) == 17


def test_a_replaying_store_goes_on_from_its_snapshot(tmp_path):
    recording = recorded(tmp_path / "rows")
    whole = [batch["token"][:, 0].tolist() for batch in recording.replay(3)]
    store = recording.replay(3)
    first = [next(store)["token"][:, 0].tolist() for _ in range(17)]
    store.snapshot(tmp_path / "snapshots")
    state = store.state_dict()
    store.abort()
    for source in (tmp_path / "snapshots", state):
        resumed = recording.replay(3, resume=source)
        assert first + [batch["token"][:, 0].tolist() for batch in resumed] == whole
    with pytest.raises(ValueError, match="filled the snapshot's store is another"):
        Recording(tmp_path / "rows", batch_size=32, window=128, rank=1, world_size=2).replay(3, resume=state)


@pytest.fixture
def model():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6)).eval()


def test_a_model_is_recorded_and_the_rows_are_those_it_gives(model, tmp_path):
    import torch

    batches = [torch.randn(20, 4) for _ in range(12)]
    safe = record(model, batches, {"0": "first", "2": "last"}, tmp_path, shard_rows=64, metadata={"data set": "noise"})
    assert safe == (12, 240)
    recording = Recording(tmp_path, batch_size=16, window=64)
    assert recording.metadata["data set"] == "noise"
    assert json.loads(recording.metadata["hooks"]) == {"0": "first", "2": "last"}
    with torch.no_grad():
        expected = model(torch.cat(batches))
    assert torch.equal(recording.get("last", range(240)), expected)
    assert sum(len(batch["first"]) for batch in recording) == 240


@pytest.mark.parametrize(("modules", "named"), [("0", False), (["0"], True), ({"0": "a"}, True)])
def test_minibatches_are_named_as_the_modules_were(model, tmp_path, modules, named):
    import torch

    record(model, [torch.randn(20, 4)], modules, tmp_path)
    [name] = Recording(tmp_path).components
    for components, is_dict in ((None, named), (name, False), ([name], True), ((name,), True)):
        recording = Recording(tmp_path, components=components, batch_size=8, window=16)
        for batch in (*recording, *recording.replay()):
            rows = batch[name] if is_dict else batch
            assert isinstance(batch, dict) == is_dict and rows.shape[1] == 8
        assert next(iter(Recording(tmp_path, components=components, batch_size=8, window=16, stacked=True))).shape == (8, 1, 8)


def test_a_recording_that_failed_goes_on_where_it_stopped(model, tmp_path):
    import torch

    batches = [torch.randn(20, 4) for _ in range(12)]

    class Fails(list):
        def __getitem__(self, index):
            if index == 7:
                raise OSError("the loader is gone")
            return super().__getitem__(index)

        def __iter__(self):
            return (self[index] for index in range(len(self)))

    with pytest.raises(OSError, match="the loader is gone"):
        record(model, Fails(batches), "0", tmp_path, resume=True)
    assert record(model, batches, "0", tmp_path, resume=True) == (12, 240)
    with torch.no_grad():
        assert torch.equal(Recording(tmp_path).get(0, range(240)), model[0](torch.cat(batches)))
    with pytest.raises(ValueError, match="batch 0 ran the model 2 times"):
        record(lambda batch: (model(batch), model(batch)) and {"x": batch}, batches, None, tmp_path / "f")  # one pass: fine
        record(torch.nn.Sequential(*[model[0]]), [batches[0]], "0", tmp_path / "g")

        class Twice(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = model[0]

            def forward(self, batch):
                self.inner(batch)
                return self.inner(batch)

        record(Twice(), batches, "inner", tmp_path / "h")


def test_a_function_is_recorded(tmp_path):
    passes = [{"x": numbered(10, 3, first)} for first in range(0, 50, 10)]
    assert record(lambda rows: rows, passes, None, tmp_path, dtype="f16", lane="rank-0") == (5, 50)
    assert Recording(tmp_path).components == {"x": (3, "f16")}
    assert Recording(tmp_path).lanes == {"rank-0": 50}
    assert Path(tmp_path, "rank-0.000000").is_dir()


def test_two_trainings_from_one_recording_are_those_of_two_captures(model, tmp_path):
    """The recording is as good as the live stream: the same rows, each once."""
    import torch

    batches = [torch.randn(20, 4) for _ in range(12)]
    record(model, batches, "2", tmp_path)
    live = torch.cat(list(activations(model, batches, "2", batch_size=16, window=64)))
    replayed = torch.cat(list(Recording(tmp_path, batch_size=16, window=64)))
    assert torch.equal(live.sort(0).values, replayed.sort(0).values)


def test_a_recording_is_loaded_into_memory(tmp_path):
    recording = recorded(tmp_path)
    with pytest.raises(ValueError, match=r"equally many features, and these have \{'a': 4, 'token': 1\}"):
        recording.load()
    store = Recording(tmp_path, components=["a"]).load(seed=1)
    assert (np.asarray(store[:, 0]) == numbered(500, 4)).all()
    store.shuffle()
    assert sorted(np.asarray(store[:, 0])[:, 0]) == sorted(numbered(500, 4)[:, 0])


def test_the_program_inspects_and_verifies(tmp_path):
    recorded(tmp_path)
    program = [sys.executable, "-m", "activation_store"]
    shown = subprocess.run([*program, "inspect", "--json", tmp_path], check=True, capture_output=True, text=True).stdout
    assert json.loads(shown)["lanes"] == {"lane": {"rows": 500, "passes": 10, "shards": 4, "finished": True}}
    assert "all 4 shards are whole" in subprocess.run([*program, "verify", tmp_path], check=True, capture_output=True, text=True).stdout
    file = tmp_path / "lane.000001" / "0.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    failed = subprocess.run([*program, "verify", tmp_path], check=False, capture_output=True, text=True)
    assert failed.returncode == 1
    assert str(file) in failed.stderr


def test_whole_shards_are_salvaged(tmp_path):
    recorded(tmp_path)
    file = tmp_path / "lane.000001" / "0.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(RuntimeError, match="0.safetensors is damaged"):
        list(Recording(tmp_path, output="numpy"))
    with pytest.warns(RuntimeWarning, match="left out: .*lane.000001/0.safetensors is damaged: its checksum does not match"):
        rest = Recording(tmp_path, components="token", batch_size=32, window=128, output="numpy", salvage=True)
    tokens = sorted(np.concatenate(list(rest))[:, 0].tolist())
    assert tokens == [*range(150), *range(300, 500)]


def test_the_disk_may_have_the_rows_at_flush_only(tmp_path):
    with Recorder(tmp_path, {"a": 4}, shard_rows=10, sync="at_flush") as recorder:
        for first in range(0, 50, 10):
            recorder.extend_pass({"a": numbered(10, 4, first)}).result()
        assert not list(tmp_path.glob("lane.0*"))
        assert recorder.flush() == (5, 50)
        assert len(list(tmp_path.glob("lane.0*"))) == 5
    with pytest.raises(ValueError, match="sync is 'never'; it must be 'each_shard' or 'at_flush'"):
        Recorder(tmp_path, {"a": 4}, sync="never")


def test_record_does_not_fail_because_of_another_lane(tmp_path):
    passes = [{"a": np.ones((30, 4), np.float32)}] * 3
    record(dict, passes, None, tmp_path, lane="one", shard_rows=50)
    (next(iter(sorted(tmp_path.glob("one.0*")))) / "shard.json").write_text("{}")
    assert record(dict, passes, None, tmp_path, lane="two", shard_rows=50).rows == 90
    assert record(dict, passes * 2, None, tmp_path, lane="two", shard_rows=50, resume=True) == (6, 180)
    assert record(dict, passes * 2, None, tmp_path, lane="three", shard_rows=50, resume=True) == (6, 180)
    with pytest.raises(ValueError, match="one.000000.*shard.json is damaged"):
        record(dict, passes, None, tmp_path, lane="one", shard_rows=50, resume=True)
