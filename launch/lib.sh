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

# Prints a command as it could be typed, then runs it, unless this is a dry run. One write: several may run at a time.
run() {
  printf '+%s\n' "$(printf ' %q' "$@")"
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
  run "$VENV/bin/python" -m pip install --quiet "${constraint[@]}" --editable ".${extras:+[$extras]}"
  if [[ "$DRY_RUN" != 1 ]]; then install_key >"$stamp"; fi
}

needs_value() { # FLAG [VALUE ...], as they stand on the command line
  [[ $# -ge 2 ]] || die "$1 needs a value; see bash launch/${0##*/} --help"
}

# Whole numbers of 0 or more. FLAG VALUE
needs_count() { [[ "$2" =~ ^[0-9]+$ ]] || die "$1 takes a whole number of 0 or more, not '$2'"; }

# Exports the lines NAME=VALUE of a file that only its owner reads, as they stand: nothing is expanded.
load_env() { # FILE
  local line number=0
  if [[ ! -f "$1" ]]; then die "there is no file $1"; fi
  [[ -z "$(find "$1" \( -perm -g=r -o -perm -g=w -o -perm -o=r -o -perm -o=w \))" ]] ||
    die "$1 may hold secrets and others can read it: chmod 600 $1"
  while IFS= read -r line || [[ -n "$line" ]]; do
    number=$((number + 1))
    if [[ -z "$line" || "$line" == \#* ]]; then continue; fi
    [[ "$line" =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die "$1, line $number is not NAME=VALUE"
    export "${line?}"
  done <"$1"
}

# --- Exit codes of the program, and what a launcher does about them; docs/pods.md has the table ---

BACKOFF_S="${BACKOFF_S:-30}" # before the first restart; each next one waits twice as long
POLL_S="${POLL_S:-30}"       # from one look to the next
GRACE_S="${GRACE_S:-120}"    # for the other processes to end after the first has failed

# done, again or stop. 42 is a preemption that saved, 128 and more a hang or a signal, 130 a Ctrl-C: that was meant.
verdict() { # CODE
  if [[ "$1" == 0 ]]; then
    echo "done"
  elif [[ "$1" == 42 ]] || (($1 >= 128 && $1 != 130)); then
    echo again
  else
    echo stop
  fi
}

# One code for all processes of a run: the first that says stop, else a preemption's, else the highest.
final_code() { # CODE ...
  local code highest=0
  for code in "$@"; do
    if [[ "$(verdict "$code")" == stop ]]; then
      echo "$code"
      return 0
    fi
    if ((code > highest)); then highest="$code"; fi
  done
  for code in "$@"; do
    if [[ "$code" == 42 ]]; then highest=42; fi
  done
  echo "$highest"
}

# Seconds before restart number $1: doubled each time, ten minutes at most.
backoff() {
  local seconds="$BACKOFF_S" number
  for ((number = 1; number < $1 && seconds < 600; number++)); do seconds=$((seconds * 2)); done
  echo $((seconds < 600 ? seconds : 600))
}

stop_asked=0 # by a signal to this script: no restart after it

# Runs a command, again where its exit code asks for that, at most RESTARTS times. Returns the last exit code.
until_done() { # RESTARTS COMMAND ...
  local restarts="$1" number=0 code seconds
  shift
  while :; do
    code=0
    "$@" || code=$?
    if [[ "$(verdict "$code")" != again || "$stop_asked" == 1 ]]; then return "$code"; fi
    number=$((number + 1))
    if ((number > restarts)); then
      if ((restarts > 0)); then echo "exit code $code; no restart is left of $restarts" >&2; fi
      return "$code"
    fi
    seconds="$(backoff "$number")"
    echo "exit code $code: starts again in $seconds s (restart $number of $restarts)"
    sleep "$seconds"
  done
}

# Starts a command in the background; its process id is in `child`. No shell stands between it and a signal.
# shellcheck disable=SC2034 # read by the scripts
start() { # COMMAND ...
  "$@" &
  child=$!
}

# Waits for a process that `start` started, also when a signal with a trap comes in between. Returns its exit code.
wait_for() { # PID
  local code=0 seen
  while :; do
    seen="$signals"
    wait "$1" && code=0 || code=$?
    if [[ "$seen" == "$signals" ]]; then return "$code"; fi
  done
}

signals=0   # how many came
children=() # whom they go to

# From here on SIGTERM, SIGHUP and Ctrl-C go to `children` as SIGTERM, on which the program saves and ends.
forward_signals() { trap _forward TERM HUP INT; }

_forward() {
  local pid
  signals=$((signals + 1))
  stop_asked=1
  for pid in ${children[@]+"${children[@]}"}; do kill -TERM "$pid" 2>/dev/null || true; done
}

# Builds the image of launch/Dockerfile and puts it where the machines find it.
build_image() { # IMAGE
  run docker build --file launch/Dockerfile --tag "$1" .
  run docker push "$1"
}
