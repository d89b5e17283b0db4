#!/bin/sh
# Builds the wheel and tests it: pytest (with torch, and again with numpy alone), mypy, and the stubs against the module.
# Needs python3.11 or later (PYTHON names another than python3), cargo, and PyPI. Arguments go to pytest.
set -eu
cd "$(dirname "$0")"

python=${PYTHON:-python3}
venvs=${VENVS:-../target/python}
mkdir -p "$venvs"
venvs=$(cd "$venvs" && pwd)

step() { echo "== $* ($(date +%T))"; }

step "tools"
[ -x "$venvs/tools/bin/python" ] || "$python" -m venv "$venvs/tools"
"$venvs/tools/bin/python" -m pip install -q --disable-pip-version-check 'uv>=0.5' 'maturin>=1.9.4,<2'
uv() { "$venvs/tools/bin/uv" "$@"; }

step "wheel"
rm -rf "$venvs/wheels"
# For the oldest Python it supports: abi3.
"$venvs/tools/bin/maturin" build --release --quiet --interpreter "$venvs/tools/bin/python" --out "$venvs/wheels"
wheel=$(ls "$venvs"/wheels/*.whl)

# The tests must use the wheel, not the sources beside them.
rm -rf "$venvs/tests"
mkdir "$venvs/tests"
cp tests/*.py "$venvs/tests"
cp pyproject.toml "$venvs/tests/pyproject.toml"
sed -i.bak 's/^testpaths = .*/testpaths = ["."]/' "$venvs/tests/pyproject.toml"

step "numpy alone"
[ -x "$venvs/lean/bin/python" ] || uv venv -q --python "$python" "$venvs/lean"
uv pip install -q --python "$venvs/lean/bin/python" numpy pytest pytest-timeout
uv pip install -q --python "$venvs/lean/bin/python" --reinstall-package activation-store "$wheel"
(cd "$venvs/tests" && "$venvs/lean/bin/python" -m pytest -p no:cacheprovider "$@")

step "torch, SAELens and the rest (some GB)"
[ -x "$venvs/full/bin/python" ] || uv venv -q --python "$python" "$venvs/full"
uv pip install -q --python "$venvs/full/bin/python" --requirement requirements-test.txt
uv pip install -q --python "$venvs/full/bin/python" --reinstall-package activation-store "$wheel"

step "types"
(cd "$venvs/tests" && "$venvs/full/bin/python" -m mypy --config-file pyproject.toml --package activation_store)
(cd "$venvs/tests" && "$venvs/full/bin/python" -m mypy.stubtest activation_store._native)

step "tests"
(cd "$venvs/tests" && "$venvs/full/bin/python" -m pytest -p no:cacheprovider "$@")
step "done"
