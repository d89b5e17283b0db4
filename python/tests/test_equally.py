"""Ranks of a data-parallel training that end together, or hear from each other why not: real processes, and gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from activation_store import equally  # noqa: E402

pytestmark = [
    pytest.mark.timeout(600),  # the first test waits for all ranks of all tests
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
]
HERE = Path(__file__).parent
FAILURES = ["raises", "raises in with", "breaks", "loader fails"]
CASES = ["activations:2", "sources:2", "counts:3", *(f"{name}:3" for name in FAILURES), "killed:2", "hangs:2", "both break:2"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank of each case prints, and how it ends. One process imports torch, which takes long, and forks the ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    os.mkfifo(folder / "gate")
    environment = {**os.environ, "FOLDER": str(folder / "recording"), "GATE": str(folder / "gate"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "ranks.py"), *CASES]
    result = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=550, check=False)
    print(result.stdout, result.stderr)
    results = json.loads(result.stdout)
    return lambda case: (results[case]["lines"], results[case]["codes"])


def test_ranks_with_texts_of_their_own_end_with_the_same_minibatch(ranks):
    lines, codes = ranks("activations")
    assert codes == [0, 0]
    assert lines == [["steps 35", "has ended True"]] * 2


def test_anything_that_gives_minibatches_will_do(ranks):
    lines, codes = ranks("sources")
    assert codes == [0, 0]
    assert lines == [["generator 5", "at once 10 8", "list 5", "ring 8", "group 3", "recording 4", "nothing 0"]] * 2


def test_what_is_left_over_is_counted_and_said(ranks):
    lines, codes = ranks("counts")
    assert codes == [0, 0, 0]
    assert lines[0] == ["served 5 5 left over 0", "said []"]
    for line in lines[1:]:
        assert line[0] == "served 5 5 left over 1"
        assert "rank 0 has no more minibatches, so all ranks end after 5. This rank leaves out 1 minibatches that it had taken" in line[1]


@pytest.mark.parametrize(("case", "own", "others"), [
    ("raises", "KeyError 'no such latent'", "RuntimeError rank 1 left the loop after 4 minibatches, by `break` or an error"),
    ("raises in with", "KeyError 'no such latent'", "RuntimeError rank 1 left the loop after 4 minibatches: KeyError: 'no such latent'"),
    ("breaks", "no error", "RuntimeError rank 1 left the loop after 4 minibatches, by `break` or an error"),
    ("loader fails", "OSError the texts are gone", "RuntimeError rank 1 left the loop after 3 minibatches: OSError: the texts are gone"),
])  # fmt: skip
def test_a_rank_that_leaves_ends_the_others_with_an_error_that_names_it(case, own, others, ranks):
    lines, codes = ranks(case)
    assert codes == [0, 0, 0]
    assert lines == [[others], [own], [others]]


def test_a_rank_that_is_killed_ends_the_others(ranks):
    lines, codes = ranks("killed")
    assert (codes[1], lines[1]) == (-9, [])
    assert lines[0][0].startswith("RuntimeError rank 1 has died, or cannot be reached, after 4 minibatches here")


def test_a_rank_that_hangs_ends_the_others_in_time(ranks):
    lines, _ = ranks("hangs")
    assert lines[0][0].startswith("TimeoutError the other ranks have not come to minibatch 4 within 2 s")


def test_ranks_that_leave_together_are_not_told(ranks):
    lines, codes = ranks("both break")
    assert codes == [0, 0]
    assert lines == [["steps after 4"]] * 2


def test_without_a_group_it_says_what_to_call():
    with pytest.raises(RuntimeError, match="init_process_group"):
        equally([])
