"""The files of the package import each other one way, and none is long."""

import ast
from pathlib import Path

import activation_store

PACKAGE = Path(activation_store.__file__).parent
ORDER = [
    "errors", "_native", "_rows", "_ring", "future", "producer", "snapshots", "base_store", "ring_store", "tensor_store", "recorder", "recording",
    "_hooks", "capture", "_run", "activations", "record", "caches", "equally", "hooks", "__init__", "__main__",
]  # fmt: skip
"""Files and folders. Each imports only what is before it, and a file in a folder also others of its folder."""

FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imported(file):
    """The files and folders of the package that a file imports, also for type checkers alone."""
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            here = file.parent.parts[: len(file.parts) - node.level]
            for name in [node.module] if node.module else [alias.name for alias in node.names]:
                yield [*here, *name.split(".")][0]
        else:
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[0] == "activation_store" for name in names), "imports within the package are relative"


def test_each_file_and_folder_has_its_place():
    assert sorted({file.parts[0].removesuffix(".py") for file in FILES} | {"_native"}) == sorted(ORDER)


def test_imports_go_one_way():
    for file in FILES:
        own = file.parts[0].removesuffix(".py")
        for other in imported(file):
            assert ORDER.index(other) < ORDER.index(own) or (other == own and len(file.parts) == 2), f"{file} imports {other}, which comes after it"


def test_no_file_is_long():
    for file in FILES:
        assert len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) <= 500, file


def test_each_folder_says_what_happens_in_it():
    for folder in (name for name in ORDER if (PACKAGE / name).is_dir()):
        assert ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8"))), folder
