"""What a type checker says of `activations`."""

import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("mypy")
pytest.importorskip("torch")

USES = """
from typing import Any, assert_type
import torch
from activation_store import Activations, activations

model = torch.nn.Linear(4, 4)
batches = [torch.zeros(8, 4)]

assert_type(activations(model, batches, "0"), Activations[torch.Tensor])
assert_type(activations([model, model], batches, ("0",), merge="round_robin"), Activations[torch.Tensor])
assert_type(activations(model, batches, ["0", "1"], batch_size=8), Activations[dict[str, torch.Tensor]])
assert_type(activations(model, batches, ("0", "1"), mask="mask"), Activations[dict[str, torch.Tensor]])
assert_type(activations(model, batches, {"0": "a", "1": "b"}, seed=1), Activations[dict[str, torch.Tensor]])
assert_type(activations(model, batches, ["0", "1"], stacked=True), Activations[Any])

def rows(batch: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"a": batch}

assert_type(activations(rows, batches), Activations[Any])
for batch in activations(model, batches, "0"):
    assert_type(batch, torch.Tensor)
with activations(model, batches, ["0"]) as opened:
    assert_type(opened.next(timeout=1), dict[str, torch.Tensor])

async def train() -> None:
    async for batch in activations(model, batches, "0"):
        assert_type(batch, torch.Tensor)

activations(model, batches, "0", windows=3)  # type: ignore[call-overload]
"""


def test_one_module_is_a_tensor_several_are_a_dict(tmp_path):
    uses = tmp_path / "uses.py"
    uses.write_text(textwrap.dedent(USES))
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(uses)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
