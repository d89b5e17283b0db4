"""What type checkers say: they accept right uses, and find each mistake where it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

FILES = Path(__file__).parent / "typing"


def mypy(path: Path, cache: Path) -> set[int]:
    """The lines with errors."""
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--output", "json", "--cache-dir", str(cache), str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode in (0, 1), result.stdout + result.stderr
    print(result.stdout)
    reports = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return {report["line"] for report in reports if report["severity"] == "error"}


def pyright(path: Path, cache: Path) -> set[int]:
    """The lines with errors. (basedpyright is pyright with all it needs in its wheel.)"""
    pytest.importorskip("basedpyright")
    settings = cache / "pyrightconfig.json"
    settings.write_text(json.dumps({"typeCheckingMode": "standard", "include": [str(path)]}))
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson", "--project", str(settings)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode in (0, 1), result.stdout + result.stderr
    errors = [report for report in json.loads(result.stdout)["generalDiagnostics"] if report["severity"] == "error"]
    for error in errors:
        print(error["range"]["start"]["line"] + 1, error["message"])
    assert json.loads(result.stdout)["summary"]["filesAnalyzed"] == 1
    return {error["range"]["start"]["line"] + 1 for error in errors}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_right_uses_are_accepted(checker, tmp_path):
    assert checker(FILES / "right.py", tmp_path) == set()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_mistakes_are_found(checker, tmp_path):
    path = FILES / "wrong.py"
    mistakes = {number for number, line in enumerate(path.read_text().splitlines(), 1) if line.endswith("# mistake")}
    assert len(mistakes) > 10
    assert checker(path, tmp_path) == mistakes
