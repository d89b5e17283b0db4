"""The example notebook, as its user runs it: interrupted in the middle, run again, run with another window."""

import os
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")
nbformat = pytest.importorskip("nbformat")
jupyter_client = pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")

HERE = Path(__file__).parent
# The tests run in a copy of this folder that has the examples in it, or in the repository.
EXAMPLES = HERE / "examples" if (HERE / "examples").is_dir() else HERE.parent / "examples"

LEFTOVERS = """
import gc, threading
from activation_store import RingStore
gc.collect()
print(
    sum(type(thing) is RingStore for thing in gc.get_objects()) <= 1,  # the last traceback may keep one
    [thread.name for thread in threading.enumerate() if thread.name.startswith("activation-store-model")],
    [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks],
    minibatches,
)
"""
SMALL = "ROWS, BATCH_SIZE, WINDOW, LATENTS = 4_000, 64, 1_024, 256; tokenised = tokenised[:30]; torch.set_num_threads(1)"


class Kernel:
    """A Jupyter kernel, and what it says."""

    def __init__(self, client, manager):
        self.client, self.manager = client, manager

    def run(self, code, interrupt_at_output=None):
        """Runs a cell. Returns its reply and its output, and interrupts the kernel at the output of that number."""
        seen, text = 0, []

        def output(message):
            nonlocal seen
            if message["msg_type"] == "stream":
                text.append(message["content"]["text"])
            if message["msg_type"] == "update_display_data":
                seen += 1
                if seen == interrupt_at_output:
                    self.manager.interrupt_kernel()

        reply = self.client.execute_interactive(code, timeout=200, output_hook=output)
        return reply["content"], "".join(text)

    def ok(self, code):
        reply, text = self.run(code)
        assert reply["status"] == "ok", reply
        return text


@pytest.fixture
def kernel():
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline", "TOKENIZERS_PARALLELISM": "false"}
    manager, client = jupyter_client.manager.start_new_kernel(cwd=str(EXAMPLES), env=environment)
    yield Kernel(client, manager)
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.timeout(600)
def test_it_is_run_interrupted_and_run_again(kernel):
    cells = [cell.source for cell in nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4).cells if cell.cell_type == "code"]
    setup, settings, train, result = cells
    kernel.ok(setup)
    kernel.ok(settings)
    kernel.ok(SMALL)

    kernel.ok(train)
    freed, threads, hooks, whole = kernel.ok(LEFTOVERS).split()
    assert (freed, threads, hooks) == ("True", "[]", "[]")
    assert int(whole) > 40
    assert "at the end" in kernel.ok(result)

    for _ in range(3):
        reply, _ = kernel.run(train, interrupt_at_output=2)
        assert reply["status"] == "error"
        assert reply["ename"] == "KeyboardInterrupt"
        freed, threads, hooks, some = kernel.ok(LEFTOVERS).split()
        assert (freed, threads, hooks) == ("True", "[]", "[]")
        assert 20 <= int(some) < int(whole)

    kernel.ok(train)
    assert kernel.ok(LEFTOVERS).split() == ["True", "[]", "[]", whole]
    kernel.ok("WINDOW = 2_048")
    kernel.ok(train)
    assert kernel.ok(LEFTOVERS).split() == ["True", "[]", "[]", whole]
