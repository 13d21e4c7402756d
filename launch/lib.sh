# Shared by the scripts of this folder; source it, do not run it.
# shellcheck shell=bash
# Needs a checkout and Python 3.11 or newer, nothing else.

VENV="${STTTS_VENV:-.venv}"
DRY_RUN="${DRY_RUN:-0}"
NEWEST="${NEWEST:-0}"

die() {
  echo "error: $*" >&2
  exit 2
}

# Prints a command as it could be typed, then runs it, unless this is a dry run.
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  if [[ "$DRY_RUN" == 1 ]]; then return 0; fi
  "$@"
}

# $PYTHON, or the first Python on PATH that is new enough, tested versions first. A name that does not run is passed over.
find_python() {
  local candidate candidates=(python3.12 python3.11 python3 python)
  if [[ -n "${PYTHON:-}" ]]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return 0
    fi
  done
  die "no Python 3.11 or newer in: ${PYTHON:-PATH}; install one, or name it: PYTHON=/path/to/python3.12 bash $0"
}

# The Python of version $1: $PYTHON, one on PATH, or one that pyenv keeps without putting it there.
python_of_version() {
  local candidate
  for candidate in "${PYTHON:-}" "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" >/dev/null 2>&1; then
      echo "$candidate"
      return 0
    fi
  done
  die "no Python $1 on PATH or in pyenv; install one, or name it: PYTHON=/path/to/python$1 bash $0"
}

# What the installed state depends on: the two files that name the dependencies, and the interpreter.
install_key() {
  cat pyproject.toml launch/constraints.txt | cksum
  echo "newest: $NEWEST"
  "$VENV/bin/python" -V 2>&1 || true
}

# Makes $VENV if there is none, installs the package with the extras $1, and skips both when nothing changed. The
# versions are the tested ones, or with NEWEST=1 the newest that the ranges allow.
ensure_venv() {
  local python extras="$1" stamp="$VENV/.installed-${1//,/-}" constraint=(--constraint launch/constraints.txt)
  if [[ "$NEWEST" == 1 ]]; then constraint=(--upgrade --upgrade-strategy eager); fi
  if [[ ! -e "$VENV/bin/python" ]]; then
    python="$(find_python)"
    run "$python" -m venv "$VENV" ||
      die "$python could not make $VENV; on Debian and Ubuntu the package python3-venv brings what is missing"
  fi
  if [[ "$DRY_RUN" != 1 ]] && ! "$VENV/bin/python" -c '' 2>/dev/null; then
    die "$VENV/bin/python does not run; delete $VENV and start again"
  fi
  if [[ -f "$stamp" && "$(install_key)" == "$(cat "$stamp")" ]]; then return 0; fi
  run "$VENV/bin/python" -m pip install --quiet "${constraint[@]}" --editable ".[$extras]"
  if [[ "$DRY_RUN" != 1 ]]; then install_key >"$stamp"; fi
}
