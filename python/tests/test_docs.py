"""The documentation: its snippets run as printed, and everything public is documented."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import activation_store

HERE = Path(__file__).parent
# The tests run in a copy of this folder that has the pages beside it, or in the repository.
PAGES = HERE / "pages" if (HERE / "pages").is_dir() else HERE.parents[1]
WITH_SNIPPETS = ["README.md", "python/README.md", "docs/python.md", "docs/resume.md", "docs/jupyter.md", "docs/recording.md"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", WITH_SNIPPETS)
def test_snippets_run_as_printed_and_the_process_exits(page):
    """In a process of its own, which must end: no snippet leaves a thread that keeps it."""
    for needed in ("torch", "transformers", "tqdm"):
        pytest.importorskip(needed)
    if page == "docs/python.md":
        for needed in ("sae_lens", "transformer_lens", "dictionary_learning"):
            pytest.importorskip(needed)
    command = [sys.executable, str(HERE / "run_snippets.py"), str(PAGES / page)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False, cwd=HERE)
    print(result.stdout, result.stderr)
    assert result.returncode == 0
    written = (PAGES / page).read_text(encoding="utf-8").count("```python\n")
    assert result.stdout.count("ran ") == written > 0


def test_every_page_with_snippets_is_run():
    pages = [PAGES / "README.md", PAGES / "python/README.md", *sorted((PAGES / "docs").glob("*.md"))]
    with_snippets = [str(page.relative_to(PAGES)) for page in pages if "```python\n" in page.read_text(encoding="utf-8")]
    assert sorted(with_snippets) == sorted(WITH_SNIPPETS)


def modules():
    return [importlib.import_module(module.name) for module in pkgutil.walk_packages(activation_store.__path__, "activation_store.")]


@pytest.mark.timeout(200)
def test_examples_in_docstrings_run():
    """In a process of its own, as above."""
    pytest.importorskip("transformers")
    command = [sys.executable, "-c", "import test_docs; test_docs.run_examples()"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=190, check=False, cwd=HERE)
    print(result.stdout, result.stderr)
    assert result.returncode == 0
    assert "in activation_store.ring_store.RingStore\n" in result.stdout


def run_examples():
    from world import world_of_docstrings

    runner = doctest.DocTestRunner(verbose=False)
    for test in [test for module in modules() for test in doctest.DocTestFinder(exclude_empty=True).find(module)]:
        if test.examples:
            test.globs |= {name: getattr(activation_store, name) for name in activation_store.__all__} | world_of_docstrings()
            runner.run(test)
            print(f"in {test.name}")
    assert runner.summarize().failed == 0


def public_attributes():
    for name in activation_store.__all__:
        value = getattr(activation_store, name)
        if not inspect.isclass(value):
            continue
        for attribute in dir(value):
            owner = next(each for each in value.__mro__ if attribute in vars(each))
            if not attribute.startswith("_") and owner.__module__.startswith("activation_store"):
                yield value, attribute


def test_everything_public_has_a_docstring():
    lacking = [name for name in activation_store.__all__ if not getattr(activation_store, name).__doc__]
    for value, attribute in public_attributes():
        doc = inspect.getattr_static(value, attribute).__doc__ or ""
        if issubclass(value, tuple):  # its fields are in its own docstring
            doc = doc.replace("Alias for field number", "") if f" {attribute}: " in value.__doc__ else ""
        if not doc.strip():
            lacking.append(f"{value.__name__}.{attribute}")
    assert lacking == []
