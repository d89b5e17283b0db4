"""A resumed store serves what the uninterrupted one would have served."""

import io
import threading

import numpy as np
import pytest

from activation_store import RingStore, Snapshots, StoreClosedError, activations, capture

PASSES = 40


def rows(number: int) -> dict[str, np.ndarray]:
    """Passes of different lengths."""
    length = 5 + number * 7 % 11
    ids = number * 100 + np.arange(length)
    return {"a": np.repeat(ids[:, None], 3, axis=1).astype(np.float32), "id": ids[:, None].astype(np.int64)}


def store(**settings) -> RingStore:
    return RingStore({"a": 3, "id": (1, "i64")}, batch_size=8, window=64, seed=3, output="numpy", **settings)


def feed(target, first: int = 0) -> threading.Thread:
    """Writes the passes from `first` on and closes the store, on a thread."""

    def write() -> None:
        try:
            for number in range(first, PASSES):
                target.extend_pass(rows(number), value=b"%d" % (number + 1))
        except StoreClosedError:
            return
        target.close()

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def served(loop) -> list[list[int]]:
    minibatches = []
    for batch in loop:
        assert (batch["a"][:, 0] == batch["id"][:, 0]).all()
        minibatches.append(batch["id"][:, 0].tolist())
    return minibatches


@pytest.fixture(scope="module")
def whole() -> list[list[int]]:
    uninterrupted = store()
    thread = feed(uninterrupted)
    minibatches = served(uninterrupted)
    thread.join()
    return minibatches


def stopped_after(k: int, save) -> tuple[list[list[int]], object]:
    """The first k minibatches of a store, and what `save` makes of it then."""
    first = store()
    thread = feed(first)
    minibatches = [next(first)["id"][:, 0].tolist() for _ in range(k)]
    saved = save(first)
    first.abort()
    thread.join()
    return minibatches, saved


@pytest.mark.parametrize("form", ["light", "full"])
@pytest.mark.parametrize("k", [0, 1, 7, 30])
def test_from_a_folder(tmp_path, whole, form, k):
    minibatches, folder = stopped_after(k, lambda first: first.snapshot(tmp_path, form=form))
    assert folder == tmp_path / f"snapshot-{k}"
    resumed = RingStore.resume(tmp_path, output="numpy")
    [at] = resumed.resume_at or [None]
    assert at is None or at.value == (b"%d" % at.passes if at.passes else None)
    assert (resumed.batch_size, resumed.window, resumed.component_names) == (8, 64, ("a", "id"))
    thread = feed(resumed, at.passes if at else 0)
    assert minibatches + served(resumed) == whole
    thread.join()
    counts = resumed.stats().components["a"]
    assert counts.accepted == counts.served == sum(map(len, whole))


def test_from_a_state_dict(whole):
    minibatches, state = stopped_after(9, lambda first: first.state_dict())
    other = store()
    other.load_state_dict(state)
    thread = feed(other, other.resume_at[0].passes)
    assert minibatches + served(other) == whole
    thread.join()
    with pytest.raises(RuntimeError, match="before the first"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="not the state of a store"):
        store().load_state_dict({"dataset": 3})
    with pytest.raises(ValueError, match="batch_size is 4, but the snapshot was taken with 8"):
        RingStore({"a": 3, "id": (1, "i64")}, batch_size=4, window=64).load_state_dict(state)
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == state


def test_a_lane_that_has_ended_is_told_from_a_new_one():
    first = store()
    assert first.resume_point() is first.resume_point("open") is None
    lanes = [first.producer(name) for name in ("open", "ended")]
    for lane in lanes:
        lane.extend_pass(rows(0))
    lanes[1].close()
    first.flush()
    again = RingStore.resume(first.state_dict()).resume_point("ended")
    assert (again.name, again.passes, again.ends_at) == ("ended", 0, 5)
    first.empty()
    resumed = RingStore.resume(first.state_dict())
    assert resumed.resume_point() is resumed.resume_point("other") is None
    assert resumed.resume_point("open") == resumed.resume_at[0]
    with pytest.raises(StoreClosedError, match="lane 'ended' had ended before the snapshot"):
        resumed.resume_point("ended")


def test_a_lane_may_be_sent_again_from_its_start(whole):
    minibatches, state = stopped_after(20, lambda first: first.state_dict())
    resumed = RingStore.resume(state, output="numpy")
    resumed.send_again()
    thread = feed(resumed)
    assert minibatches + served(resumed) == whole
    thread.join()
    assert resumed.stats().components["a"].resent > 0


def test_what_does_not_match_is_named(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        RingStore.resume(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has no complete snapshot"):
        RingStore.resume(tmp_path)
    stopped_after(1, lambda first: first.snapshot(tmp_path))
    with pytest.raises(ValueError, match="seed is 4, but the snapshot was taken with 3"):
        RingStore.resume(tmp_path, seed=4)
    with pytest.raises(ValueError, match="components is"):
        RingStore.resume(tmp_path, components=3)
    (tmp_path / "snapshot-1" / "snapshot.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="is not a snapshot"):
        RingStore.resume(tmp_path)
    with pytest.raises(ValueError, match='use "light" or "full"'):
        store().snapshot(tmp_path, form="heavy")
    with pytest.raises(ValueError, match='when_full="wait"'):
        store(when_full="drop_oldest").state_dict()


def test_old_snapshots_are_pruned(tmp_path):
    first = store()
    thread = feed(first)
    for _ in range(4):
        next(first)
        first.snapshot(tmp_path)
    assert Snapshots(tmp_path).prune(2) == [1, 2]
    assert [k for k, _ in Snapshots(tmp_path).list()] == [3, 4]
    assert Snapshots(tmp_path).resume_at()[0].number == 0
    first.abort()
    thread.join()


def test_a_folder_that_is_no_whole_snapshot_is_named_once_and_stays(tmp_path):
    first = store()
    thread = feed(first)
    for _ in range(3):
        next(first)
        first.snapshot(tmp_path)
    first.abort()
    thread.join()
    damaged = tmp_path / "snapshot-3"
    (damaged / "snapshot.jsonl").unlink()
    with pytest.warns(RuntimeWarning, match="not counted as one: .*snapshot.jsonl") as said:
        assert [k for k, _ in Snapshots(tmp_path).list()] == [1, 2]
    assert [(str(damaged) in str(warning.message), warning.filename) for warning in said] == [(True, __file__)]
    ((path, reason),) = Snapshots(tmp_path).not_whole()
    assert path == damaged
    assert "snapshot.jsonl" in reason
    other = tmp_path / "snapshot-7"
    other.mkdir()
    with pytest.warns(RuntimeWarning) as said:
        assert Snapshots(tmp_path).prune(1) == [1]
    assert [str(other) in str(warning.message) for warning in said] == [True]
    assert damaged.is_dir()


def test_a_folder_with_snapshots_of_another_run_or_with_later_ones_is_refused(tmp_path):
    stopped_after(2, lambda first: first.snapshot(tmp_path))
    other = store()
    with pytest.raises(ValueError, match="has snapshots of another run, up to snapshot-2"):
        other.snapshot(tmp_path)
    resumed = RingStore.resume(tmp_path, output="numpy")
    thread = feed(resumed)
    state = resumed.state_dict()
    next(resumed)
    resumed.snapshot(tmp_path)
    resumed.abort()
    thread.join()
    with pytest.raises(ValueError, match="snapshot-3 is later than this snapshot"):
        RingStore.resume(state).snapshot(tmp_path)


def test_a_minibatch_of_a_cancelled_task_must_be_served_first(tmp_path):
    first = store()
    thread = feed(first)
    first._returned.put(first._own._native.next(10))  # noqa: SLF001, as a cancelled task does
    with pytest.raises(RuntimeError, match="1 minibatches that cancelled tasks have returned"):
        first.state_dict()
    with pytest.raises(RuntimeError, match="would be lost"):
        first.snapshot(tmp_path)
    next(first)
    assert RingStore.resume(first.state_dict()).stats().minibatches_served == 1
    first.abort()
    thread.join()


class Text(list):
    """Batches that can be indexed; notes which were asked for."""

    def __init__(self, batches):
        super().__init__(batches)
        self.asked: list[int] = []

    def __getitem__(self, index):
        self.asked.append(index)
        return super().__getitem__(index)


@pytest.mark.parametrize("form", ["light", "full", "state"])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("indexed", [True, False])
def test_activations_go_on(tmp_path, form, replicas, indexed):
    def run(batches, resume=None):
        settings = {"merge": "round_robin"} if replicas > 1 else {}
        return activations([rows] * replicas, batches, batch_size=8, window=64, seed=5, output="numpy", resume=resume, **settings)

    uninterrupted = served(run(range(PASSES)))
    loop = run(range(PASSES))
    minibatches = [next(loop)["id"][:, 0].tolist() for _ in range(20)]
    saved = loop.state_dict() if form == "state" else loop.snapshot(tmp_path, form=form).parent
    loop.close()
    text = Text(range(PASSES))
    if indexed:
        resumed = run(text, saved)
        assert minibatches + served(resumed) == uninterrupted
        assert text.asked[0] > 5
    else:
        with pytest.warns(RuntimeWarning, match="cannot be indexed"):
            resumed = run(iter(text), saved)
            assert minibatches + served(resumed) == uninterrupted
    if replicas == 2:
        with pytest.raises(ValueError, match="replicas: give as many models as before"):
            activations(rows, range(PASSES), batch_size=8, window=64, seed=5, resume=saved)


def test_a_model_that_runs_twice_for_a_batch_goes_on():
    torch = pytest.importorskip("torch")

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Identity()

        def forward(self, number):
            for half in range(2):
                self.inner(torch.full((6, 3), float(number * 2 + half)))

    def run(resume=None):
        return activations(Twice(), list(range(PASSES)), "inner", batch_size=8, window=64, resume=resume)

    uninterrupted = [batch[:, 0].tolist() for batch in run()]
    for k in range(0, 50, 7):
        loop = run()
        minibatches = [next(loop)[:, 0].tolist() for _ in range(k)]
        if k == 0:
            loop.next()
            loop.close()
            continue
        state = loop.state_dict()
        loop.close()
        assert minibatches + [batch[:, 0].tolist() for batch in run(state)] == uninterrupted


def test_a_capture_starts_where_the_store_says():
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 4))
    torch.manual_seed(0)
    text = [torch.randn(5 + number % 7, 3) for number in range(PASSES)]

    def run(target, inputs) -> threading.Thread:
        def write() -> None:
            with torch.no_grad(), capture(model, {"0": 0}, target) as captured:
                for batch in inputs:
                    if captured.stopped:
                        break
                    model(batch)
            target.close()

        thread = threading.Thread(target=write)
        thread.start()
        return thread

    uninterrupted = RingStore(4, batch_size=8, window=64, queue_rows=16)
    thread = run(uninterrupted, text)
    whole = list(uninterrupted)
    thread.join()
    first = RingStore(4, batch_size=8, window=64, queue_rows=16)
    thread = run(first, text)
    minibatches = [next(first) for _ in range(20)]
    state = first.state_dict()
    first.close()
    first.abort()
    thread.join()
    resumed = RingStore.resume(state)
    [at] = resumed.resume_at
    assert at.name == "capture 0"
    assert 0 < at.passes < PASSES
    thread = run(resumed, text[at.passes :])
    minibatches += list(resumed)
    thread.join()
    assert len(minibatches) == len(whole)
    assert all(torch.equal(one, other) for one, other in zip(minibatches, whole, strict=True))
