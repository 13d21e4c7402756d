#!/usr/bin/env bash
# One host: installs, runs one command of the program, keeps its exit code. A machine of its own, or the part of each
# host of a pod.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash launch/host.sh [OPTION ...] -- COMMAND [ARGUMENT ...]
       bash launch/host.sh --install-only | --status | --stop

Installs the package into .venv (skipped when nothing changed), runs `sttts-jax COMMAND ...`, ends with its exit code.
SIGTERM and Ctrl-C are handed on: the program saves its step and ends.

  --extra NAME     installed beside the package: tpu, cuda, aot (compiles for TPUs that are not here) or none
                   (default: what the device here needs)
  --no-install     the environment is ready: take it as it is
  --env-file FILE  lines NAME=VALUE for the program, secrets too; only its owner may read it (chmod 600)
  --port N         of the first process, where the others meet it: sets JAX_COORDINATOR_PORT. 8476 is open in the
                   default firewall of TPU networks, JAX's own 8482 is not, and a start on it hangs there
  --restarts N     start again after a preemption (exit code 42), a hang or a signal (128 and more)  (default: 0). Of a
                   pod all hosts must do the same
  --run-dir DIR    log, process id and exit code  (default: ~/.sttts_jax/run)
  --detach         run in the background, with the log in DIR/log; ends once it has started. Again: nothing happens
  --install-only   install and end
  --status         print one line: `sttts_jax HOST STATE`, a state is an exit code, running or none
  --stop           end what was started here before, and nothing else: SIGTERM, after GRACE_S seconds SIGKILL; then say
                   who else holds the TPU, if anyone does
  --dry-run        print every command and run none
  --help           print this text

environment:
  PYTHON, STTTS_VENV   the Python that makes the environment, and its folder  (default: .venv)
  BACKOFF_S, GRACE_S   seconds before the first restart (30), and to end after SIGTERM (120)
TEXT
}

# Where no Python is new enough (images of TPU VMs have 3.10), uv brings one.
ensure_python() {
  if [[ -e "$VENV/bin/python" ]] || PYTHON="$(find_python 2>/dev/null)"; then return 0; fi
  run python3 -m pip install --quiet --user uv
  run python3 -m uv python install 3.12
  PYTHON="$(python3 -m uv python find 3.12 2>/dev/null || echo python3.12)"
}

device_extra() {
  if compgen -G "/dev/accel*" >/dev/null || compgen -G "/dev/vfio/[0-9]*" >/dev/null; then
    echo tpu
  elif command -v nvidia-smi >/dev/null; then
    echo cuda
  fi
}

alive() { [[ -f "$run_dir/pid" ]] && grep -qs "launch/host.sh" "/proc/$(cat "$run_dir/pid")/cmdline"; }

state() {
  if [[ -f "$run_dir/exit_code" ]]; then
    cat "$run_dir/exit_code"
  elif alive; then
    echo running
  elif [[ -f "$run_dir/pid" ]]; then
    echo 137 # it ended without a word: killed, or the host started anew
  else
    echo none
  fi
}

# Its own group of processes where it leads one, which what `--detach` starts does.
stop() {
  local pid waited=0
  if alive; then
    pid="$(cat "$run_dir/pid")"
    run kill -TERM "$pid" || true
    while [[ "$DRY_RUN" != 1 ]] && alive && ((waited < GRACE_S * 5)); do
      sleep 0.2
      waited=$((waited + 1))
    done
    if alive && [[ "$(ps -o pgid= -p "$pid" | tr -d ' ')" == "$pid" ]]; then run kill -KILL -- "-$pid" || true; fi
  fi
  if [[ "$DRY_RUN" != 1 ]]; then say_holders; fi
}

# A process of anyone that holds the TPU makes the next start fail; libtpu's lock file of a dead one does too.
say_holders() {
  local holders
  compgen -G "/dev/accel*" >/dev/null || compgen -G "/dev/vfio/[0-9]*" >/dev/null || return 0
  holders="$(find /proc/[0-9]*/fd -lname '/dev/accel*' -o -lname '/dev/vfio/[0-9]*' 2>/dev/null |
    cut -d/ -f3 | sort -u)"
  [[ -z "$holders" ]] ||
    die "the TPU of $(hostname) is held by process ${holders//$'\n'/, }, which was not started here; end it"
  rm -f /tmp/libtpu_lockfile 2>/dev/null || true
}

detach() {
  if alive && [[ ! -f "$run_dir/exit_code" ]]; then return 0; fi
  run mkdir -p "$run_dir"
  if [[ "$DRY_RUN" == 1 ]]; then return 0; fi
  rm -f "$run_dir/pid" "$run_dir/exit_code"
  setsid nohup bash launch/host.sh "$@" >>"$run_dir/log" 2>&1 </dev/null &
  for _ in {1..100}; do
    if [[ -f "$run_dir/pid" ]]; then return 0; fi
    sleep 0.1
  done
  die "$(hostname) did not start; see $run_dir/log"
}

# The program, from this folder: what was copied here is what runs.
program() {
  local command="$1"
  shift
  start "$VENV/bin/python" -m "sttts_jax.cli.$command" "$@"
  children=("$child")
  wait_for "$child"
}

main() {
  local code=0
  if [[ "$DRY_RUN" == 1 ]]; then
    run "$VENV/bin/python" -m "sttts_jax.cli.$1" "${@:2}"
    return 0
  fi
  mkdir -p "$run_dir"
  rm -f "$run_dir/exit_code"
  echo "$$" >"$run_dir/pid"
  forward_signals
  until_done "$restarts" program "$@" || code=$?
  echo "$code" >"$run_dir/exit_code.part"
  mv "$run_dir/exit_code.part" "$run_dir/exit_code"
  return "$code"
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/lib.sh

extra="$(device_extra)"
action=run
install=1
restarts=0
run_dir="$HOME/.sttts_jax/run"
words=() # that a detached start hands on
while [[ $# -gt 0 ]]; do
  case "$1" in
    --extra) needs_value "$@" && extra="$2" && shift ;;
    --no-install) install=0 ;;
    --env-file) needs_value "$@" && load_env "$2" && shift ;;
    --port) needs_value "$@" && needs_count "$@" && export JAX_COORDINATOR_PORT="$2" && shift ;;
    --restarts) needs_value "$@" && needs_count "$@" && restarts="$2" && words+=("$1" "$2") && shift ;;
    --run-dir) needs_value "$@" && run_dir="$2" && words+=("$1" "$2") && shift ;;
    --detach | --install-only | --status | --stop) action="${1#--}" ;;
    --dry-run) DRY_RUN=1 ;;
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    *) die "unknown argument $1; the command of the program comes after --; see bash launch/host.sh --help" ;;
  esac
  shift
done
case "$extra" in
  tpu | cuda | aot | "") ;;
  none) extra="" ;;
  *) die "--extra takes tpu, cuda, aot or none, not '$extra'" ;;
esac
case "$action" in
  status) echo "sttts_jax $(hostname) $(state)" && exit 0 ;;
  stop) stop && exit 0 ;;
  run | detach) [[ $# -gt 0 ]] || die "what shall run? bash launch/host.sh -- train --config demo ..." ;;
esac
if [[ "$install" == 1 ]]; then
  ensure_python
  ensure_venv "$extra"
elif [[ "$DRY_RUN" != 1 ]]; then
  [[ -x "$VENV/bin/python" ]] || die "there is no $VENV; bash launch/host.sh --install-only makes it"
fi
case "$action" in
  run) main "$@" ;;
  detach) detach --no-install ${words[@]+"${words[@]}"} -- "$@" ;;
esac
