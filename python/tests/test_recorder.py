"""How a recorder ends, and what its waits let happen meanwhile."""

import gc
import sys

import numpy as np
import pytest
from conftest import numbered, run

from activation_store import Recorder, Recording, RingStore, StoreClosedError, Tee, capture, record

STALL = """
    def stall():
        # Puts a full pipe in the place of the file that is being written, so that the recorder's thread waits until it is emptied.
        [fd] = [int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")
                and os.readlink(f"/proc/self/fd/{fd}").endswith("0.safetensors")]
        full, end = os.pipe()
        os.set_blocking(end, False)
        try:
            while True:
                os.write(end, bytes(4096))
        except BlockingIOError:
            os.set_blocking(end, True)
        os.dup2(end, fd)
        os.close(end)
        return full
    rows = np.zeros((1024, 512), np.float32)
    recorder = Recorder("rows", {"a": 512}, shard_rows=10**9)
    recorder.extend_pass({"a": rows[:1]}).result()
    pipe = stall()
    store = RingStore({"a": 512}, batch_size=64, window=8192, queue_rows=8192)
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def recorded(folder):
    """The rows of a recording, and whether its lane is finished."""
    return Recording(folder).rows, (folder / "lane.end.json").exists()


@pytest.mark.parametrize("error", [RuntimeError("the model failed"), KeyboardInterrupt(), SystemExit()])
def test_an_error_that_leaves_a_recorder_keeps_the_rows_and_does_not_finish_the_lane(tmp_path, error):
    with pytest.raises(type(error)), Recorder(tmp_path, {"a": 4}, shard_rows=20) as recorder:
        for first in range(0, 50, 10):
            recorder.extend_pass({"a": numbered(10, 4, first)})
        raise error
    assert recorder.closed
    assert recorded(tmp_path) == (50, False)
    with Recorder(tmp_path, {"a": 4}, resume=True) as recorder:
        assert recorder.resumed == (5, 50)
    assert recorded(tmp_path) == (50, True)


def test_a_recorder_that_is_closed_unfinished_or_collected_does_not_finish_the_lane(tmp_path):
    recorder = Recorder(tmp_path, {"a": 4})
    recorder.extend_pass({"a": numbered(10, 4)})
    recorder.close(finished=False)
    recorder.close()  # does nothing
    assert recorded(tmp_path) == (10, False)
    recorder = Recorder(tmp_path, {"a": 4}, resume=True)
    recorder.extend_pass({"a": numbered(10, 4)})
    del recorder
    gc.collect()
    assert recorded(tmp_path) == (20, False)


def test_a_recorder_that_is_dropped_says_if_its_last_passes_could_not_be_written(tmp_path):
    recorder = Recorder(tmp_path / "rows", {"a": 4})
    (tmp_path / "rows").rmdir()
    recorder.extend_pass({"a": numbered(1, 4)}).exception()
    with pytest.warns(RuntimeWarning, match="a recorder was dropped, .* and its last passes could not be written: .*rows"):
        del recorder
        gc.collect()


def test_a_tee_keeps_its_recorder(tmp_path):
    store = RingStore({"a": 4}, batch_size=8, window=16)
    tee = Tee(store, Recorder(tmp_path, {"a": 4}))
    tee.extend_pass({"a": numbered(10, 4)})
    del tee
    gc.collect()
    assert recorded(tmp_path) == (10, False)


@pytest.mark.parametrize("kept_by", ["recorder.self = recorder", "threading.Thread(target=time.sleep, args=(600,), kwargs={}, daemon=True).start()", "pass"])
def test_the_end_of_the_program_keeps_what_an_open_recorder_has(tmp_path, kept_by, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(f"""
        recorder = Recorder("rows", {{"a": 4}})
        recorder.extend_pass({{"a": np.zeros((10, 4), np.float32)}})
        {kept_by}
    """)
    assert (result.returncode, result.stderr) == (0, "")
    assert recorded(tmp_path / "rows") == (10, False)


def test_a_run_that_fails_before_its_first_pass_does_not_finish_the_lane(tmp_path):
    passes = [{"x": numbered(10, 3, first)} for first in range(0, 50, 10)]

    def fails_at(number):
        def run_model(rows):
            if rows is passes[number]:
                raise RuntimeError("killed")
            return rows

        return run_model

    for number in (3, 3, 4):
        with pytest.raises(RuntimeError, match="killed"):
            record(fails_at(number), passes, None, tmp_path, resume=True)
        assert recorded(tmp_path) == (10 * number, False)
    # This run records everything, and is killed before it says so.
    with Recorder(tmp_path, {"x": 3}, resume=True) as recorder:
        recorder.extend_pass(passes[4])
        recorder.close(finished=False)
    assert recorded(tmp_path) == (50, False)
    assert record(lambda rows: rows, passes, None, tmp_path, resume=True) == (5, 50)
    assert recorded(tmp_path) == (50, True)


def test_ctrl_c_in_record_does_not_finish_the_lane(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("""
        def model(number):
            if number == 3:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)
            return {"x": np.full((10, 3), number, np.float32)}
        try:
            record(model, range(10), None, "rows", resume=True)
        except KeyboardInterrupt:
            print("interrupted")
    """)
    assert result.stdout.split() == ["interrupted"], result
    assert recorded(tmp_path / "rows") == (30, False)


def test_a_recorder_that_is_closed_says_why_it_takes_no_more(tmp_path):
    recorder = Recorder(tmp_path / "rows", {"a": 4})
    (tmp_path / "rows").rmdir()
    with pytest.raises(OSError, match="rows"):
        recorder.extend_pass({"a": numbered(1, 4)}).result()
    assert not recorder.closed
    with pytest.raises(OSError, match="rows") as first:
        recorder.close()
    assert recorder.closed
    recorder.close()
    for call in (recorder.flush, lambda: recorder.extend_pass({"a": numbered(1, 4)})):
        with pytest.raises(OSError, match="rows") as again:
            call()
        assert str(again.value) == str(first.value)


@pytest.mark.parametrize("end", ["close", "fail"])
def test_a_tee_that_waits_for_the_store_gives_it_nothing_if_the_recorder_ends(tmp_path, end, in_thread):
    store = RingStore({"a": 4}, batch_size=8, window=16, queue_rows=8, output="numpy")
    recorder = Recorder(tmp_path / "rows", {"a": 4}, shard_rows=1)
    tee = Tee(store, recorder)
    taken = 0
    try:
        while True:
            tee.extend_pass({"a": np.full((8, 4), taken, np.float32)}, timeout=0.5)
            taken += 1
    except TimeoutError:
        pass
    errors = []

    def waits():
        with pytest.raises((StoreClosedError, OSError)) as error:
            tee.extend_pass({"a": np.full((8, 4), 100, np.float32)})
        errors.append(error.type)

    thread = in_thread(waits)
    if end == "close":
        recorder.close()
    else:
        recorder.flush()
        for path in sorted((tmp_path / "rows").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "rows").rmdir()
        with pytest.raises(OSError, match="rows"):
            recorder.extend_pass({"a": np.zeros((8, 4), np.float32)}).result()
    thread.join(30)  # the store has no room yet
    assert errors == [StoreClosedError if end == "close" else FileNotFoundError]
    store.close()
    rows = np.concatenate(list(store))[:, 0]
    assert sorted(rows) == [float(number) for number in range(taken) for _ in range(8)]
    if end == "close":
        assert Recording(tmp_path / "rows").get("a", range(8 * taken))[:, 0].tolist() == sorted(rows)


def test_several_threads_may_use_one_tee(tmp_path, in_thread):
    store = RingStore({"a": 4, "b": 1}, batch_size=8, window=16, queue_rows=16, seed=0, output="numpy")
    seen = []
    consumer = in_thread(lambda: seen.extend(batch for batch in store))
    with Recorder(tmp_path, {"a": 4, "b": 1}, shard_rows=64) as recorder, store:
        tee = Tee(store, recorder)

        def capture(first):
            for start in range(first, first + 200, 5):
                tee.extend_pass({"a": numbered(5, 4, start), "b": numbered(5, 1, start)})

        for thread in [in_thread(lambda first=first: capture(first)) for first in range(0, 800, 200)]:
            thread.join(60)
        assert recorder.passes == 160
    consumer.join(30)
    assert sorted(np.concatenate([batch["a"] for batch in seen])[:, 0]) == list(range(800))
    recording = Recording(tmp_path)
    a, b = (np.asarray(recording.get(name, range(800)))[:, 0] for name in ("a", "b"))
    assert (a == b).all()
    assert sorted(a) == list(range(800))


@linux
def test_other_threads_run_and_closed_answers_while_a_flush_waits_for_the_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # If `closed` kept the GIL or waited for the flush, no thread could empty the pipe: the process would hang until it is killed.
    result = run(STALL + """
    def flush():
        try:
            recorder.flush()
        except OSError as error:
            print("Illegal seek" in str(error))
    flushing = threading.Thread(target=flush)
    flushing.start()
    flushing.join(0.2)  # by now it waits, most likely
    print(recorder.closed, recorder.passes, flushing.is_alive())
    recorder.extend_pass({"a": rows})
    print(Tee(store, recorder).closed)
    os.set_blocking(pipe, False)
    while flushing.is_alive():
        try:
            os.read(pipe, 1 << 20)
        except BlockingIOError:
            pass
    try:
        recorder.close()
    except OSError:
        print("closed", recorder.closed)
    """)
    assert result.stdout.split() == ["False", "1", "True", "False", "True", "closed", "True"], result


BLOCKED = [
    "recorder.flush()", "recorder.close()", "recorder.__exit__(ValueError, None, None)", "fill(recorder)",
    "fill(Tee(store, recorder))",
]  # fmt: skip


@linux
@pytest.mark.parametrize("blocked", BLOCKED)
def test_ctrl_c_interrupts_a_call_that_waits_for_the_disk(tmp_path, monkeypatch, blocked):
    monkeypatch.chdir(tmp_path)
    result = run(STALL + f"""
    def fill(sink):
        while True:
            sink.extend_pass({{"a": rows}})
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        {blocked}
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    os._exit(0)
    """)
    assert result.stdout.split() == ["interrupted"], result


@linux
def test_closing_again_after_ctrl_c_waits_for_the_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(STALL + """
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        recorder.close()
    except KeyboardInterrupt:
        print("interrupted", recorder.closed)
    def empty():
        while os.read(pipe, 1 << 20):
            pass
    threading.Thread(target=empty, daemon=True).start()
    try:
        recorder.close()
    except OSError as error:
        print("Illegal seek" in str(error))
    recorder.close()
    """)
    assert result.stdout.split() == ["interrupted", "True", "True"], result


@pytest.mark.parametrize("kind", ["recorder", "tee"])
def test_capturing_too_few_modules_is_refused_at_the_start(tmp_path, kind):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    recorder = Recorder(tmp_path, {"a": 4, "b": 4, "c": 4})
    sink = recorder if kind == "recorder" else Tee(RingStore({"a": 4, "b": 4, "c": 4}, batch_size=8, window=16), recorder)
    with pytest.raises(ValueError, match=f"into 'a', 'c', so no pass would be whole, as a {type(sink).__name__} needs it; capture it too, or make"):
        capture(model, {"0": "b"}, sink)
