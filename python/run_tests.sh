#!/bin/sh
# Builds the wheel and tests it: pytest (with torch, and again with numpy alone), ruff, mypy, and the stubs against the module.
# Where a free-threaded CPython is at hand, pytest runs on that too, with numpy alone (it needs a wheel of its own).
# Needs python3.11 or later (PYTHON names another than python3, FREE_THREADED another than python3.14t), cargo, and PyPI.
# Virtual environments go to target/python, or to VENVS. Arguments go to pytest.
set -eu
cd "$(dirname "$0")"

python=${PYTHON:-python3}
venvs=${VENVS:-../target/python}
mkdir -p "$venvs"
venvs=$(cd "$venvs" && pwd)

# Imports of torch take seconds without their compiled files, and many tests start processes of their own.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX="$venvs/pycache"

step() { echo "== $* ($(date +%T))"; }

step "tools"
[ -x "$venvs/tools/bin/python" ] || "$python" -m venv "$venvs/tools"
"$venvs/tools/bin/python" -m pip install -q --disable-pip-version-check 'uv>=0.5' 'maturin>=1.9.4,<2'
uv() { "$venvs/tools/bin/uv" "$@"; }

# build_wheel PYTHON FOLDER: prints the wheel.
build_wheel() {
    rm -rf "$2"
    "$venvs/tools/bin/maturin" build --release --quiet --interpreter "$1" --out "$2" >&2
    ls "$2"/*.whl
}

# test_with_numpy PYTHON WHEEL VENV [PYTEST ARGUMENT]...
test_with_numpy() {
    venv=$venvs/$3
    [ -x "$venv/bin/python" ] || uv venv -q --python "$1" "$venv"
    uv pip install -q --python "$venv/bin/python" numpy pytest pytest-timeout pytest-xdist
    uv pip install -q --python "$venv/bin/python" --reinstall-package activation-store "$2"
    shift 3
    (cd "$copy" && "$venv/bin/python" -m pytest -p no:cacheprovider -n 2 "$@")
}

step "wheel"
# For the oldest Python it supports: abi3.
wheel=$(build_wheel "$venvs/tools/bin/python" "$venvs/wheels")

# The tests must use the wheel, not the sources beside them.
copy=$venvs/copy-of-tests
rm -rf "$copy"
mkdir -p "$copy/pages/python"
cp -r tests/*.py tests/typing examples "$copy"
cp -r ../README.md ../docs "$copy/pages"
cp README.md "$copy/pages/python"
cp pyproject.toml "$copy/pyproject.toml"
sed -i.bak 's/^testpaths = .*/testpaths = ["."]/' "$copy/pyproject.toml"

step "numpy alone"
test_with_numpy "$python" "$wheel" lean "$@"

free_threaded=${FREE_THREADED:-python3.14t}
if "$free_threaded" -c "" 2>/dev/null; then
    step "free-threaded, numpy alone"
    wheel_free=$(build_wheel "$free_threaded" "$venvs/wheels-free-threaded")
    test_with_numpy "$free_threaded" "$wheel_free" free-threaded "$@"
else
    step "free-threaded SKIPPED: no $free_threaded here"
fi

step "torch, SAELens and the rest (some GB)"
[ -x "$venvs/full/bin/python" ] || uv venv -q --python "$python" "$venvs/full"
uv pip install -q --python "$venvs/full/bin/python" --requirement requirements-test.txt
# Without what they declare: most of it is for other parts of them, and some of it old.
uv pip install -q --python "$venvs/full/bin/python" --no-deps --requirement requirements-test-no-deps.txt
uv pip install -q --python "$venvs/full/bin/python" --reinstall-package activation-store "$wheel"

step "lints"
"$venvs/full/bin/python" -m ruff check --no-cache .

step "types"
(cd "$copy" && "$venvs/full/bin/python" -m mypy --config-file pyproject.toml --package activation_store)
(cd "$copy" && "$venvs/full/bin/python" -m mypy.stubtest activation_store._native)

step "tests"
(cd "$copy" && "$venvs/full/bin/python" -m pytest -p no:cacheprovider -n 2 "$@")
step "done"
