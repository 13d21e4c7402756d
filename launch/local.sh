#!/usr/bin/env bash
# Several processes on this machine that train as one run, as the hosts of a pod do: to try a pod's config without one.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash launch/local.sh -n N [OPTION ...] -- COMMAND [ARGUMENT ...]

Starts `sttts-jax COMMAND ...` N times, tells each who the others are, and ends with one exit code for all. The first
process writes to the terminal, each into LOGS/process_I.log. SIGTERM and Ctrl-C go to all of them: they save and end.

  -n N              processes
  --devices N       of the CPU in each process  (default: 1)
  --gpu-each        process I computes on GPU I alone; without it each sees the devices that it finds
  --port N          where the processes meet  (default: one that is free)
  --env-file FILE   lines NAME=VALUE for the program, secrets too; only its owner may read it (chmod 600)
  --restarts N      start all again after a preemption (exit code 42), a hang or a signal (128 and more)  (default: 0)
  --logs DIR        (default: runs/logs)
  --dry-run         print every command and run none
  --help            print this text

Needs an environment that `bash launch/host.sh --install-only` or another script of this folder made.

environment:
  STTTS_VENV           its folder  (default: .venv)
  BACKOFF_S, GRACE_S   seconds before the first restart (30), and for the others to end once one has failed (120)
TEXT
}

free_port() {
  local port
  for _ in {1..100}; do
    port=$((20000 + RANDOM % 12000)) # below the range that systems give away themselves
    if ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "$port"
      return 0
    fi
  done
  die "no port is free on 127.0.0.1; name one: --port N"
}

# Puts the variables of process $1 into `settings`.
settings_of() {
  settings=("JAX_COORDINATOR_ADDRESS=127.0.0.1:$meeting" "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$1")
  if [[ "$gpu_each" == 1 ]]; then settings+=("JAX_LOCAL_DEVICE_IDS=$1"); fi
  if [[ -n "$devices" ]]; then
    settings+=("XLA_FLAGS=${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices")
  fi
}

attempt() { # COMMAND ...
  local number command="$1" settings meeting
  shift
  meeting="${port:-$(free_port)}"
  children=()
  for ((number = 0; number < processes; number++)); do
    settings_of "$number"
    if [[ "$DRY_RUN" == 1 ]]; then
      run env "${settings[@]}" "$VENV/bin/python" -m "sttts_jax.cli.$command" "$@"
    else
      start env "${settings[@]}" "$VENV/bin/python" -m "sttts_jax.cli.$command" "$@" > >(keep "$number") 2>&1
      children+=("$child")
    fi
  done
  if [[ "$DRY_RUN" != 1 ]]; then await_all; fi
}

# The lines of process $1, into its log; of the first one on the terminal as well.
keep() {
  if [[ "$1" == 0 ]]; then tee -ia "$logs/process_$1.log"; else cat >>"$logs/process_$1.log"; fi
}

# Once one has failed the others have GRACE_S to end by themselves.
await_all() {
  local number codes=() left since="" code
  while :; do
    left=0
    for number in "${!children[@]}"; do
      if [[ -n "${codes[$number]:-}" ]]; then continue; fi
      if kill -0 "${children[$number]}" 2>/dev/null; then
        left=$((left + 1))
        continue
      fi
      code=0
      wait "${children[$number]}" || code=$?
      codes[number]="$code"
      if [[ "$code" != 0 ]]; then
        echo "process $number ended with exit code $code"
        since="${since:-$SECONDS}"
      fi
    done
    if [[ "$left" == 0 ]]; then break; fi
    if [[ -n "$since" ]] && ((SECONDS - since >= GRACE_S)); then end_rest "${!codes[@]}"; fi
    sleep 0.2
  done
  return "$(final_code "${codes[@]}")"
}

end_rest() { # NUMBER ... of those that ended
  local number
  for number in "${!children[@]}"; do
    if [[ " $* " != *" $number "* ]]; then
      echo "process $number goes on after $GRACE_S s without the others: it is killed"
      kill -KILL "${children[$number]}" 2>/dev/null || true
    fi
  done
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/lib.sh

processes=""
devices=1
gpu_each=0
port=""
restarts=0
logs=runs/logs
while [[ $# -gt 0 ]]; do
  case "$1" in
    -n) needs_value "$@" && needs_count "$@" && processes="$2" && shift ;;
    --devices) needs_value "$@" && needs_count "$@" && devices="$2" && shift ;;
    --gpu-each) gpu_each=1 && devices="" ;;
    --port) needs_value "$@" && needs_count "$@" && port="$2" && shift ;;
    --env-file) needs_value "$@" && load_env "$2" && shift ;;
    --restarts) needs_value "$@" && needs_count "$@" && restarts="$2" && shift ;;
    --logs) needs_value "$@" && logs="$2" && shift ;;
    --dry-run) DRY_RUN=1 ;;
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    *) die "unknown argument $1; the command of the program comes after --; see bash launch/local.sh --help" ;;
  esac
  shift
done
[[ "$processes" =~ ^[1-9] ]] || die "how many processes? bash launch/local.sh -n 2 -- train ..."
[[ $# -gt 0 ]] || die "what shall run? bash launch/local.sh -n 2 -- train --config demo --workdir runs/demo"
if [[ "$DRY_RUN" == 1 ]]; then
  attempt "$@"
  exit 0
fi
[[ -x "$VENV/bin/python" ]] || die "there is no $VENV; bash launch/host.sh --install-only makes it"
mkdir -p "$logs"
for ((number = 0; number < processes; number++)); do : >"$logs/process_$number.log"; done
forward_signals
code=0
until_done "$restarts" attempt "$@" || code=$?
exit "$code"
