#!/usr/bin/env bash
# Lint, types and tests, from a bare clone. Ends with the summary line of pytest.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash launch/test.sh [--fast] [--python VERSION] [--newest] [--dry-run] [--help] [PYTEST ARGUMENT ...]

Makes .venv if there is none, installs the package, its dev tools, libtpu, and PyTorch with transformers, against which
the models are compared (some minutes, once; a CPU build of PyTorch installed in .venv before is kept), then runs
ruff (check and format), mypy, deptry, vulture, codespell, shellcheck and pytest. The first that fails ends the run with
its exit code.

  --fast             leave out the tests marked slow, multiprocess and aot_tpu
  --python VERSION   use this Python, such as 3.12, in a virtual environment of its own: .venv-3.12
  --newest           install the newest releases that pyproject.toml allows, not those of launch/constraints.txt;
                     in an environment of its own, whose name ends in -newest
  --dry-run          print every command and run none
  --help             print this text

Anything else goes to pytest: bash launch/test.sh tests/pruning -k budget

environment:
  PYTHON          the Python that makes .venv                     (default: one on PATH, 3.11 or newer)
  STTTS_VENV      the virtual environment                         (default: .venv, or as said above)
  TEST_WORKERS    pytest processes                                (default: one a core, at most 4)
  JAX_PLATFORMS   where tests run: cpu, cuda or tpu               (default: cpu)
TEXT
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/lib.sh

fast=0
version=""
pytest_args=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --fast) fast=1 ;;
    --newest) NEWEST=1 ;;
    --python)
      [[ "${2:-}" =~ ^3\.[0-9]+$ ]] || die "--python takes a version such as 3.12, not '${2:-}'"
      version="$2"
      shift
      ;;
    --dry-run) DRY_RUN=1 ;;
    --help | -h) usage && exit 0 ;;
    *) pytest_args+=("$1") ;;
  esac
  shift
done
if [[ "$fast" == 1 ]]; then pytest_args+=(-m "not slow and not multiprocess and not aot_tpu"); fi

cores="$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)"
workers="${TEST_WORKERS:-$((cores < 4 ? cores : 4))}"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

if [[ -n "$version" ]]; then PYTHON="$(python_of_version "$version")"; fi
if [[ -z "${STTTS_VENV:-}" ]]; then
  if [[ -n "$version" ]]; then VENV="$VENV-$version"; fi
  if [[ "$NEWEST" == 1 ]]; then VENV="$VENV-newest"; fi
fi
ensure_venv dev,aot,parity
run "$VENV/bin/ruff" check .
run "$VENV/bin/ruff" format --check .
run "$VENV/bin/mypy"
run "$VENV/bin/deptry" sttts_jax configs
# Tests may import what the dev extra brings.
run "$VENV/bin/deptry" tests --exclude .venv --ignore DEP002,DEP004
run "$VENV/bin/vulture"
run "$VENV/bin/codespell"
run "$VENV/bin/shellcheck" --external-sources launch/*.sh launch/slurm.sbatch .ci/run
# worksteal: each worker has a stretch of files, which share what jit compiled; who ends first takes of the others'.
run "$VENV/bin/python" -m pytest --quiet -n "$workers" --dist worksteal --durations 10 ${pytest_args[@]+"${pytest_args[@]}"}
