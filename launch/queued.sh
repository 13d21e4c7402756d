#!/usr/bin/env bash
# A queued resource whose hosts start by themselves: asks for it, watches it, and asks again when it was taken away.
# shellcheck disable=SC2329 # until_done calls `attempt`
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash launch/queued.sh --name NAME --zone Z --type TYPE --bucket gs://B/DIR [OPTION ...] -- COMMAND [ARGUMENT ...]

Puts this checkout and the command into gs://B/DIR/NAME and asks for the slices. Their hosts run
launch/startup_script.sh: no ssh is needed, and this script may end and be started again at any time. Spot slices that
were taken away are asked for again, until the job's exit code is in its folder.

  --type TYPE       v4-N, v5p-N (N TensorCores, two a chip), v5litepod-N, v6e-N (N chips)
  --bucket gs://..  the hosts' service account reads and writes there
  --project P       (default: that of gcloud)
  --slices N        (default: 1)
  --spot | --reserved   how it is paid for  (default: on demand)
  --valid-until D   give up waiting after this time, as in 6h
  --version V       image of the VMs  (default: by TYPE)
  --network N, --subnetwork N, --internal-ips, --service-account SA, --tags T   handed to gcloud
  --secret NAME=S   NAME for the program, from secret S of Secret Manager; may come again
  --port N          where the processes meet  (default: 8476, open in the default firewall of TPU networks)
  --no-install      the hosts have $STTTS_VENV
  --restarts N      requests after the first, and restarts of the program on one slice  (default: 20)
  --keep            leave the slices when the job has ended
  --dry-run         print every command and run none
  --help            print this text

Ctrl-C ends the watching alone. environment: POLL_S, BACKOFF_S: seconds between two looks (30), before the first new
request (30).
TEXT
}

lines() { if [[ $# -gt 0 ]]; then printf '%s\n' "$@"; fi; }

put_job() { # COMMAND ...
  local word options=(--port "$port" --restarts "$restarts")
  for word in "$@"; do [[ "$word" != *$'\n'* ]] || die "an argument has more than one line: $word"; done
  if [[ "$install" == 0 ]]; then options+=(--no-install); fi
  if [[ "$DRY_RUN" != 1 ]]; then
    pack_code "$scratch/code.tar.gz"
    lines "${options[@]}" >"$scratch/options"
    lines ${secrets[@]+"${secrets[@]}"} >"$scratch/secrets"
    lines "$@" >"$scratch/command"
  fi
  run gcloud storage cp --quiet "$scratch/code.tar.gz" "$scratch/options" "$scratch/secrets" "$scratch/command" "$job/"
}

job_code() { if [[ "$DRY_RUN" != 1 ]]; then gcloud storage cat "$job/exit_code" 2>/dev/null || true; fi; }

# Until the job has an exit code, or its slices are gone.
attempt() {
  local code state said=""
  if [[ -z "$(queue_state)" ]]; then
    if [[ -n "$(job_code)" ]]; then run gcloud storage rm --quiet "$job/exit_code"; fi # of an earlier request
    create_queued "--metadata=sttts-job=$job" \
      "--metadata-from-file=startup-script=launch/startup_script.sh,shutdown-script=launch/shutdown_script.sh" \
      ${until[@]+"${until[@]}"} || return
  fi
  if [[ "$DRY_RUN" == 1 ]]; then return 0; fi
  while :; do
    code="$(job_code)"
    if [[ -n "$code" ]]; then
      sleep "$POLL_S" # for the logs of the other hosts
      if [[ "$keep" == 0 ]]; then delete_queued || true; fi
      return "$code"
    fi
    look_at_queue || return
    sleep "$POLL_S"
  done
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/lib.sh
source launch/lib_tpu.sh

bucket="" port=8476 install=1 keep=0
until=() secrets=()
while [[ $# -gt 0 ]]; do
  take_tpu_option "$@"
  if ((taken > 0)); then
    shift "$taken"
    continue
  fi
  case "$1" in
    --bucket) needs_value "$@" && bucket="${2%/}" && shift ;;
    --valid-until) needs_value "$@" && until=("--valid-until-duration=$2") && shift ;;
    --secret)
      needs_value "$@"
      [[ "$2" =~ ^[A-Za-z_][A-Za-z0-9_]*=[-_A-Za-z0-9]+$ ]] || die "--secret ${2%%=*} takes NAME=SECRET, a name in Secret Manager and no value"
      secrets+=("$2") && shift
      ;;
    --port) needs_value "$@" && needs_count "$@" && port="$2" && shift ;;
    --no-install) install=0 ;;
    --keep) keep=1 ;;
    --dry-run) DRY_RUN=1 ;;
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    *) die "unknown argument $1; the command of the program comes after --; see bash launch/queued.sh --help" ;;
  esac
  shift
done
check_tpu_options
[[ "$bucket" == gs://?* ]] || die "--bucket takes gs://BUCKET or a folder in it, not '$bucket'"
[[ $# -gt 0 ]] || die "what shall run? ... -- train --config demo --workdir gs://BUCKET/runs/demo"
job="$bucket/$name"
scratch="$name"
if [[ "$DRY_RUN" != 1 ]]; then
  scratch="$(mktemp -d)"
  trap 'rm -r "$scratch"' EXIT
fi
if [[ -z "$(queue_state)" ]]; then # else the job runs: this looks at it
  put_job "$@"
fi
code=0
until_done "$restarts" attempt || code=$?
[[ "$DRY_RUN" == 1 ]] || echo "$name: exit code $code; logs: $job/logs"
exit "$code"
