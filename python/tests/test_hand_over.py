"""`activations` and `record` hand the passes of a batch over once the model has returned."""

import threading

import pytest

torch = pytest.importorskip("torch")

from activation_store import Recording, activations, record  # noqa: E402


class Locks(torch.nn.Module):
    """Holds a lock in `forward`, which runs its layer `times` times."""

    def __init__(self, times):
        super().__init__()
        self.layer, self.times = torch.nn.Identity(), times
        self.lock = threading.Lock()
        self.failing_call = self.calls = -1

    def forward(self, x):
        self.calls += 1
        with self.lock:
            for number in range(self.times):
                rows = x + 10 * number
                self.layer(rows)
                rows.zero_()  # what follows in the forward pass changes nothing
            if self.calls == self.failing_call:
                raise MemoryError("the model failed")


def rows_from(first):
    return torch.arange(first, first + 10, dtype=torch.float32)[:, None].repeat(1, 3)


@pytest.mark.parametrize("times", [1, 4])
def test_a_lock_that_the_model_and_the_loop_share_stops_neither(times):
    model = Locks(times)
    batches = [rows_from(10 * times * number) for number in range(40)]
    rows = []
    # The ring, the queue and the ready minibatches have room for a part of the rows. With one minibatch as its window, the ring keeps their order.
    for minibatch in activations(model, batches, "layer", batch_size=10, window=10):
        assert model.lock.acquire(timeout=30), "a pass waits for room inside the model"
        rows += minibatch[:, 0].sort().values.tolist()
        model.lock.release()
    assert rows == list(range(400 * times))


def test_passes_before_an_error_of_the_model_count():
    model = Locks(3)
    model.failing_call = 1
    rows = []
    with pytest.raises(MemoryError):
        for minibatch in activations(model, [rows_from(0), rows_from(30), rows_from(60)], "layer", batch_size=10, window=10, stop_early=False):
            rows += minibatch[:, 0].tolist()
    assert sorted(rows) == list(range(60))


def test_a_recording_has_the_rows_as_they_were_at_the_hook(tmp_path):
    record(Locks(1), [rows_from(0), rows_from(10)], "layer", tmp_path / "recording")
    minibatches = Recording(tmp_path / "recording", batch_size=10, window=10)
    assert sorted(row for minibatch in minibatches for row in minibatch[:, 0].tolist()) == list(range(20))


def test_a_batch_that_runs_the_model_twice_leaves_nothing_in_a_recording(tmp_path):
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Identity()

        def forward(self, x):
            return self.layer(x) + (self.layer(x) if x[0, 0] == 10 else 0)

    batches = [rows_from(0), rows_from(10), rows_from(20)]
    with pytest.raises(ValueError, match="batch 1 ran the model 2 times"):
        record(Twice(), batches, "layer", tmp_path / "recording", stop_early=False)
    record(Locks(1), batches, "layer", tmp_path / "recording", resume=True)
    assert Recording(tmp_path / "recording").rows == sum(len(batch) for batch in batches)
