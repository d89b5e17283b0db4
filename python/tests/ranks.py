"""What the ranks of `test_equally.py` do, each in a forked process: `python ranks.py CASE:RANKS ...` prints what came of each case."""

import atexit
import json
import os
import signal
import socket
import sys
import tempfile
import traceback
import warnings

import torch
import torch.distributed as dist

from activation_store import Recorder, Recording, RingStore, activations, equally

torch.set_num_threads(1)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Identity()

    def forward(self, x, attention_mask=None):
        return self.a(x)


def captured(rank):
    """A run over texts of which this rank keeps more or fewer rows than the others."""
    lengths = torch.tensor([[8], [16], [24], [32 if rank == 0 else 9]])
    texts = [{"x": torch.randn(4, 32, 8), "attention_mask": (torch.arange(32)[None] < lengths).long()} for _ in range(40)]
    return activations(Model(), texts, "a", mask="attention_mask", batch_size=64, window=512, drop_last=True)


def of_a_ring(rank):
    store = RingStore(4, batch_size=8, window=16, queue_rows=1000)
    store.extend(torch.zeros(64 + 8 * rank, 4))
    store.close()
    return store


def numbers(count):
    yield from (torch.full((2,), float(number)) for number in range(count))


def loop(batches, **settings):
    """Trains, in step with the others."""
    steps = 0
    for _ in equally(batches, **settings):
        dist.all_reduce(torch.ones(1))
        steps += 1
    return steps


def case(name, rank, world_size):
    if name == "activations":
        run = captured(rank)
        print("steps", loop(run))
        print("has ended", next(run, None) is None)
    elif name == "sources":
        print("generator", loop(numbers(5 + rank)))
        print("at once", loop(numbers(10 + rank), at_once=4), loop(numbers(8 + rank), at_once=4))
        print("list", loop([torch.zeros(1)] * (6 - rank)))
        print("ring", loop(of_a_ring(rank)))
        print("group", loop(numbers(3 + rank), group=dist.group.WORLD))
        folder = os.environ["FOLDER"]
        if rank == 0:
            with Recorder(folder, 4) as recorder:
                recorder.extend_pass({"0": torch.zeros(100, 4)})
        dist.barrier()
        print("recording", loop(Recording(folder, batch_size=16, window=64, rank=rank, world_size=world_size)))
        print("nothing", loop([]))
    elif name == "counts":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            equal = equally(numbers(5 + 2 * rank))
            print("served", sum(1 for _ in equal), equal.minibatches, "left over", equal.left_over)
            print("said", [str(warning.message) for warning in caught])
    elif name in ("raises", "raises in with", "breaks", "loader fails", "killed", "hangs"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fails(name, rank)
    elif name == "both break":
        for _ in range(2):
            for step, _batch in enumerate(equally(numbers(9 + rank))):
                if step == 3:
                    break
        print("steps after", loop(numbers(4 + rank)))


def fails(name, rank):
    """Rank 1 fails at its fourth minibatch. The others go on."""

    def batches():
        for number in range(20):
            if rank == 1 and number == 3 and name == "loader fails":
                raise OSError("the texts are gone")
            if rank == 1 and number == 3 and name == "hangs":
                os.read(os.open(os.environ["GATE"], os.O_RDONLY), 1)  # until the other has ended
            yield number

    def body(number):
        if rank == 1 and number == 3:
            if name == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyError("no such latent")

    try:
        if name == "raises in with":
            with equally(batches()) as equal:
                for number in equal:
                    body(number)
        elif name == "breaks":
            for number in equally(batches()):
                if rank == 1 and number == 3:
                    break
        else:
            for number in equally(batches(), timeout=2.0 if name == "hangs" else 60.0):
                body(number) if name in ("raises", "killed") else None
    except Exception as error:
        print(type(error).__name__, error)
    else:
        print("no error")
    if name == "hangs":
        os.close(os.open(os.environ["GATE"], os.O_WRONLY))


def run(name, world_size):
    """Forks the ranks of a case; what each prints, and how it ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outputs, children = [tempfile.TemporaryFile("w+") for _ in range(world_size)], []  # noqa: SIM115
    for rank, output in enumerate(outputs):
        child = os.fork()
        if not child:
            signal.alarm(100)
            os.dup2(output.fileno(), 1)
            try:
                dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
                case(name, rank, world_size)
            except BaseException:
                traceback.print_exc()
            # As the interpreter does at its end: what is named still says that it leaves.
            atexit._run_exitfuncs()
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    lines = []
    for output in outputs:
        output.seek(0)
        lines.append(output.read().splitlines())
    return {"lines": lines, "codes": codes}


if __name__ == "__main__":
    results = {name: run(name, int(world_size)) for name, world_size in (argument.split(":") for argument in sys.argv[1:])}
    print(json.dumps(results))
