#!/usr/bin/env bash
# A TPU slice, or several, over ssh: makes or takes it, copies this checkout to all hosts, runs one command of the
# program on all of them, and starts it again until it is done.
# shellcheck disable=SC2329 # until_done calls `attempt`
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash launch/tpu_vm.sh --name NAME --zone ZONE --type TYPE [OPTION ...] -- COMMAND [ARGUMENT ...]
       bash launch/tpu_vm.sh --name NAME --zone ZONE --type TYPE --attach | --stop | --delete

Creates the slice if there is none of that name, copies this checkout to every host, installs it, ends what an earlier
start left there, and runs `sttts-jax COMMAND ...` on all hosts in the background. Then it shows the log of the first,
and fetches all logs and exit codes. After a preemption (exit code 42, or a slice that is gone), a hang or a signal (128
and more) it makes the slice anew where needed and starts again. The workdir must be one that all hosts see: gs://...

  --type TYPE       v4-N, v5p-N (N TensorCores, two a chip), v5litepod-N, v6e-N (N chips)
  --project P       (default: that of gcloud)
  --slices N        (default: 1; more are asked for with --queued)
  --spot | --reserved   how it is paid for  (default: on demand)
  --queued          ask by a queued resource, and wait for it
  --version V       image of the VMs  (default: by TYPE)
  --network N, --subnetwork N, --internal-ips, --service-account SA, --tags T   handed to gcloud
  --port N          where the processes meet  (default: 8476, open in the default firewall of TPU networks)
  --env-file FILE   lines NAME=VALUE for the program, secrets too; copied to the hosts, for their user alone (chmod 600)
  --no-install      the hosts have $STTTS_VENV
  --restarts N      (default: 20)
  --logs DIR        (default: runs/logs/NAME)
  --attach          look at what runs there already; it does not depend on this terminal
  --stop            end what was started there; the slice stays
  --delete          delete the slice; with a command: once that has ended, whatever its exit code
  --dry-run         print every command and run none
  --help            print this text

environment: POLL_S, BACKOFF_S, GRACE_S: seconds between two looks (30), before the first restart (30), and for the
other hosts to end once one has failed (120). ssh needs the key: ssh-add ~/.ssh/google_compute_engine
TEXT
}

FOLDER=sttts_jax # of the hosts' user

# --- The slice ---

ensure_slice() {
  local node
  if [[ "$queued" == 1 ]]; then
    if [[ -z "$(queue_state)" ]]; then create_queued || return; fi
    await_queued
    return
  fi
  for node in "${nodes[@]}"; do ensure_node "$node" || return; done
}

ensure_node() {
  local state
  state="$(node_state "$1")"
  case "$state" in
    READY) return 0 ;;
    CREATING | STARTING | RESTARTING | REPAIRING)
      sleep "$POLL_S"
      ensure_node "$1"
      return
      ;;
    unknown) return 42 ;;
    "") ;;
    *)
      echo "$1 is $state"
      tpu_gcloud tpu-vm delete "$1" --quiet || return 42
      ;;
  esac
  tpu_gcloud tpu-vm create "$1" "--accelerator-type=$type" "--version=$version" \
    ${kind[@]+"${kind[@]}"} ${network[@]+"${network[@]}"} || mistake_or_again $?
}

delete_slice() {
  local node
  if [[ "$queued" == 1 ]]; then
    delete_queued
    return
  fi
  for node in "${nodes[@]}"; do tpu_gcloud tpu-vm delete "$node" --quiet; done
}

gone() { # prints the state of the first node that serves no more
  local node state
  for node in "${nodes[@]}"; do
    state="$(node_state "$node")"
    if [[ "$state" != READY && "$state" != unknown ]]; then echo "$node is ${state:-not there}" && return 0; fi
  done
  return 1
}

# --- The hosts ---

read_from() { # NODE WORKER COMMAND
  ask tpu-vm ssh "$1" "--worker=$2" ${tunnel[@]+"${tunnel[@]}"} "--command=$3" 2>/dev/null
}

on_node() { # NODE COMMAND
  tpu_gcloud tpu-vm ssh "$1" --worker=all ${tunnel[@]+"${tunnel[@]}"} "--command=$2"
}

# On every host of every node at the same time, in the copied checkout. Returns the highest exit code.
on_all() { # WORD ...
  local node pids=() pid code highest=0 command
  command="$(printf ' %q' "$@")"
  for node in "${nodes[@]}"; do
    on_node "$node" "cd $FOLDER &&$command" &
    pids+=("$!")
  done
  for pid in "${pids[@]}"; do
    code=0
    wait "$pid" || code=$?
    if ((code > highest)); then highest="$code"; fi
  done
  return "$highest"
}

copy_code() {
  local node
  if [[ "$DRY_RUN" != 1 ]]; then pack_code "$archive" "$env_file"; fi
  for node in "${nodes[@]}"; do
    tpu_gcloud tpu-vm scp "$archive" "$node:$FOLDER.tar.gz" --worker=all ${tunnel[@]+"${tunnel[@]}"} || return
    on_node "$node" "mkdir -p $FOLDER && tar -xzf $FOLDER.tar.gz -C $FOLDER && rm $FOLDER.tar.gz" || return
  done
}

count_hosts() {
  local node count
  hosts=0
  for node in "${nodes[@]}"; do
    count="$(ask tpu-vm describe "$node" "--format=value(networkEndpoints.len())")" || return 42
    hosts=$((hosts + count))
    workers+=("$count")
  done
}

# The states of all hosts, one a line: an exit code, running or none.
host_states() {
  local node
  for node in "${nodes[@]}"; do
    read_from "$node" all "cd $FOLDER && bash launch/host.sh --status" || true
  done | awk '$1 == "sttts_jax" {print $3}'
}

show_news() { # what the first host wrote since the last look
  read_from "${nodes[0]}" 0 "tail -c +$((shown + 1)) .sttts_jax/run/log" >"$news" || true
  cat "$news"
  shown=$((shown + $(wc -c <"$news")))
}

fetch_logs() {
  local number worker folder
  tries=$((tries + 1))
  folder="$logs/$(date +%Y%m%d-%H%M%S)-$tries"
  mkdir -p "$folder"
  for number in "${!nodes[@]}"; do
    for ((worker = 0; worker < ${workers[$number]:-0}; worker++)); do
      read_from "${nodes[$number]}" "$worker" "cat .sttts_jax/run/log" >"$folder/${nodes[$number]}-$worker.log" || true
    done
  done
  echo "logs: $folder"
}

# --- A run on them ---

# Ends with one exit code for all hosts; 42 where a slice was taken away, which is when no host can be asked any more.
watch_hosts() {
  local states codes state lost since="" deaf=0
  while :; do
    sleep "$POLL_S"
    if lost="$(gone)"; then
      echo "$lost: preempted"
      return 42
    fi
    show_news
    states=() codes=()
    for state in $(host_states); do
      states+=("$state")
      if [[ "$state" != running ]]; then codes+=("${state/none/137}"); fi
    done
    if ((${#states[@]} < hosts)); then
      deaf=$((deaf + 1))
      echo "${#states[@]} of $hosts hosts answer"
      ((deaf < 10)) || return 255
      continue
    fi
    deaf=0
    if ((${#codes[@]} == hosts)); then break; fi
    if [[ "$(final_code 0 ${codes[@]+"${codes[@]}"})" != 0 ]]; then since="${since:-$SECONDS}"; fi
    if [[ -n "$since" ]] && ((SECONDS - since >= GRACE_S)); then
      echo "the exit codes are ${codes[*]}, and $((hosts - ${#codes[@]})) hosts go on after $GRACE_S s: they are ended"
      on_all bash launch/host.sh --stop || true
      since=""
    fi
  done
  show_news
  fetch_logs
  echo "exit codes: ${codes[*]}"
  return "$(final_code "${codes[@]}")"
}

attempt() { # COMMAND ...
  local options=(--port "$port")
  workers=()
  shown=0
  ensure_slice || return
  copy_code || return 255
  if [[ -n "$env_file" ]]; then options+=(--env-file .env_file); fi
  if [[ "$install" == 1 ]]; then on_all bash launch/host.sh --install-only || return; fi
  on_all bash launch/host.sh --stop || return
  on_all bash launch/host.sh --no-install "${options[@]}" --detach -- "$@" || return
  if [[ "$DRY_RUN" == 1 ]]; then return 0; fi
  count_hosts || return
  watch_hosts
}

attach() {
  workers=()
  shown=0
  count_hosts || die "$name is not there"
  watch_hosts
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/lib.sh
source launch/lib_tpu.sh

queued=0 install=1 delete=0 action=run port=8476 env_file="" logs="" tries=0
while [[ $# -gt 0 ]]; do
  take_tpu_option "$@"
  if ((taken > 0)); then
    shift "$taken"
    continue
  fi
  case "$1" in
    --queued) queued=1 ;;
    --port) needs_value "$@" && needs_count "$@" && port="$2" && shift ;;
    --env-file) needs_value "$@" && env_file="$2" && shift ;;
    --no-install) install=0 ;;
    --logs) needs_value "$@" && logs="$2" && shift ;;
    --attach | --stop) action="${1#--}" ;;
    --delete) delete=1 ;;
    --dry-run) DRY_RUN=1 ;;
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    *) die "unknown argument $1; the command of the program comes after --; see bash launch/tpu_vm.sh --help" ;;
  esac
  shift
done
check_tpu_options
((slices == 1)) || [[ "$queued" == 1 ]] || die "several slices that know each other come by --queued"
if [[ -n "$env_file" ]]; then (load_env "$env_file"); fi
if [[ $# == 0 && "$action" == run ]]; then
  [[ "$delete" == 1 ]] || die "what shall run? ... -- train --config demo --workdir gs://BUCKET/runs/demo"
  action=nothing
fi
logs="${logs:-runs/logs/$name}"
archive="$FOLDER.tar.gz"
if [[ "$DRY_RUN" != 1 ]]; then
  scratch="$(mktemp -d)"
  archive="$scratch/$archive" news="$scratch/news"
  trap 'rm -r "$scratch"' EXIT
fi
code=0
case "$action" in
  run) until_done "$restarts" attempt "$@" || code=$? ;;
  attach) attach || code=$? ;;
  stop) on_all bash launch/host.sh --stop || code=$? ;;
esac
if [[ "$delete" == 1 ]]; then
  delete_slice || true
elif [[ "$action" == run && "$DRY_RUN" != 1 ]]; then
  echo "$name stays, and costs; --delete in the place of the command gives it back"
fi
exit "$code"
