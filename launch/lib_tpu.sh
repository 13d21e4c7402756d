# TPU VMs through gcloud, shared by tpu_vm.sh and queued.sh; source it after lib.sh, do not run it.
# shellcheck shell=bash disable=SC2034,SC2119,SC2120,SC2154 # what the scripts set, read and call

name="" zone="" type="" project="" version=""
slices=1 restarts=20
kind=()    # how the capacity is paid for
network=() # what both ways to create take
tunnel=()  # how ssh reaches a host

# Takes the options that both scripts have; sets `taken` to how many words, 0 for another word.
take_tpu_option() { # WORD ...
  taken=2
  case "$1" in
    --name) needs_value "$@" && name="$2" ;;
    --zone) needs_value "$@" && zone="$2" ;;
    --type) needs_value "$@" && type="$2" ;;
    --project) needs_value "$@" && project="$2" ;;
    --version) needs_value "$@" && version="$2" ;;
    --slices) needs_value "$@" && needs_count "$@" && slices="$2" ;;
    --restarts) needs_value "$@" && needs_count "$@" && restarts="$2" ;;
    --network | --subnetwork | --service-account | --tags) needs_value "$@" && network+=("$1=$2") ;;
    --internal-ips) network+=("$1") && tunnel=(--internal-ip) && taken=1 ;;
    --spot | --reserved) kind=("$1") && taken=1 ;;
    *) taken=0 ;;
  esac
}

check_tpu_options() {
  [[ "$name" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ && ${#name} -le 50 ]] ||
    die "--name takes a-z, 0-9 and -, from a letter on, at most 50 characters, not '$name'"
  [[ -n "$zone" && -n "$type" ]] || die "--zone and --type are needed; see bash launch/${0##*/} --help"
  ((slices >= 1)) || die "--slices takes 1 or more"
  if [[ -z "$version" ]]; then version="$(version_of "$type")"; fi
  place=("--zone=$zone")
  if [[ -n "$project" ]]; then place+=("--project=$project"); fi
  nodes=("$name")
  if ((slices > 1)); then
    nodes=()
    local number
    for ((number = 0; number < slices; number++)); do nodes+=("$name-$number"); done
  fi
}

# The image of the VMs of accelerator type $1.
version_of() {
  case "$1" in
    v4-[0-9]*) echo tpu-ubuntu2204-base ;;
    v5p-[0-9]*) echo v2-alpha-tpuv5 ;;
    v5litepod-[0-9]*) echo v2-alpha-tpuv5-lite ;;
    v6e-[0-9]*) echo v2-alpha-tpuv6e ;;
    tpu7x*) die "$1 exists on GKE alone: launch/jobset.sh" ;;
    *) die "--type $1 is unknown; it is v4-N or v5p-N (N TensorCores, two a chip), v5litepod-N or v6e-N (N chips)" ;;
  esac
}

# A command of gcloud about slices: KIND VERB WORD ...; `ask` is for those that change nothing.
tpu_gcloud() { run gcloud compute tpus "$@" "${place[@]}"; }
ask() { [[ "$DRY_RUN" == 1 ]] || gcloud compute tpus "$@" "${place[@]}"; }

# The value $3 of KIND NAME; nothing where there is no such thing, `unknown` where nobody answers.
state_of() { # KIND NAME VALUE
  local errors
  errors="$(mktemp)"
  if ! ask "$1" describe "$2" "--format=value($3)" 2>"$errors" && ! grep -q NOT_FOUND "$errors"; then echo unknown; fi
  rm -f "$errors"
}

node_state() { state_of tpu-vm "$1" state; }               # READY, CREATING, PREEMPTED, ...
queue_state() { state_of queued-resources "$name" state.state; } # ACTIVE, PROVISIONING, SUSPENDED, FAILED, ...

# Of a failed gcloud: 2 is a mistake in the words, anything else may pass.
mistake_or_again() { if [[ "$1" == 2 ]]; then return 2; else return 42; fi; }

# Asks for the slices; the words go to gcloud. The names of a resource that is being deleted are free a while later.
create_queued() { # [WORD ...]
  local node=("--node-id=$name")
  if ((slices > 1)); then node=("--node-count=$slices" "--node-prefix=$name"); fi
  tpu_gcloud queued-resources create "$name" "--accelerator-type=$type" "--runtime-version=$version" "${node[@]}" \
    ${kind[@]+"${kind[@]}"} ${network[@]+"${network[@]}"} "$@" --async || mistake_or_again $?
}

delete_queued() { tpu_gcloud queued-resources delete "$name" --force --quiet; }

# Asks how the request stands, into `state`, and says what is new since `said`. Returns 42 where it is gone: one that
# failed, or whose nodes were taken away, is not served again, and deleted.
look_at_queue() {
  state="$(queue_state)"
  if [[ "$state" != "$said" ]]; then echo "$name: ${state:-is not there}"; fi
  said="$state"
  case "$state" in
    FAILED | SUSPENDED)
      delete_queued || true
      return 42
      ;;
    "") return 42 ;;
  esac
}

# Waits until the slices are there.
await_queued() {
  local state="" said=""
  if [[ "$DRY_RUN" == 1 ]]; then return 0; fi
  while [[ "$state" != ACTIVE ]]; do
    if [[ -n "$said" ]]; then sleep "$POLL_S"; fi
    look_at_queue || return
  done
}

# What a host needs of this checkout, in one file that only its owner reads; with the secrets of ENV_FILE.
pack_code() { # FILE [ENV_FILE]
  local folder
  folder="$(mktemp -d)"
  if [[ -n "${2:-}" ]]; then install -m 600 "$2" "$folder/.env_file"; fi
  (
    umask 077
    tar -czf "$1" --exclude __pycache__ pyproject.toml README.md LICENSE sttts_jax configs launch -C "$folder" .
  )
  rm -r "$folder"
}
