#!/usr/bin/env bash
# What every host of a queued resource runs as root when it starts, also after it was made anew: no ssh is kept open.
# launch/queued.sh hands it to the hosts and fills the job's folder.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash launch/startup_script.sh [--dry-run] [--help]

Reads where its job lies, gs://BUCKET/.../NAME, from the host's metadata (sttts-job), and there

  code.tar.gz   the checkout, which it unpacks and installs
  options       of launch/host.sh, one a line
  secrets       lines NAME=SECRET: NAME for the program, from Secret Manager; the values are never written down
  command       of the program, one word a line

runs the command by launch/host.sh, puts the log into logs/, and into exit_code how the job ended: the first host writes
0, any host another code. A host that is shut down writes none: the job goes on when it starts again, or elsewhere.

  --dry-run   print every command and run none
  --help      print this text
TEXT
}

case "${1:-}" in
  --help | -h) usage && exit 0 ;;
  --dry-run) DRY_RUN=1 ;;
  "") DRY_RUN=0 ;;
  *) echo "error: unknown argument $1; see bash launch/startup_script.sh --help" >&2 && exit 2 ;;
esac

run() {
  printf '+%s\n' "$(printf ' %q' "$@")"
  if [[ "$DRY_RUN" == 1 ]]; then return 0; fi
  "$@"
}

metadata() { # ATTRIBUTE
  curl --silent --fail --retry 5 --header "Metadata-Flavor: Google" \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

# NAME-WORKER, and whether this is the first host of the job.
who_am_i() {
  local facts slice worker
  facts="$(metadata tpu-env)" # lines KEY: 'value'
  slice="$(sed -n "s/^MEGASCALE_SLICE_ID: '\(.*\)'$/\1/p" <<<"$facts")"
  worker="$(sed -n "s/^WORKER_ID: '\(.*\)'$/\1/p" <<<"$facts")"
  host="${slice:-0}-${worker:-0}"
}

# Words of a file, one a line, into `words`.
read_words() {
  local line
  words=()
  while IFS= read -r line || [[ -n "$line" ]]; do words+=("$line"); done <"$1"
}

load_secrets() {
  local line
  while IFS= read -r line || [[ -n "$line" ]]; do
    if [[ -z "$line" ]]; then continue; fi
    export "${line%%=*}=$(gcloud secrets versions access latest --secret="${line#*=}")"
  done <"$1"
}

upload_log() { gcloud storage cp --quiet "$folder/log" "$job/logs/$host-$started.log" || true; }

main() {
  local options code=0 words
  run gcloud storage cp --quiet "$job/code.tar.gz" "$job/options" "$job/secrets" "$job/command" "$folder/"
  run mkdir -p "$folder/code"
  run tar -xzf "$folder/code.tar.gz" -C "$folder/code"
  if [[ "$DRY_RUN" == 1 ]]; then
    run bash "$folder/code/launch/host.sh" --run-dir "$folder" -- COMMAND
    return 0
  fi
  read_words "$folder/options"
  options=(${words[@]+"${words[@]}"})
  read_words "$folder/command"
  load_secrets "$folder/secrets"
  bash "$folder/code/launch/host.sh" --stop --run-dir "$folder"
  bash "$folder/code/launch/host.sh" --run-dir "$folder" ${options[@]+"${options[@]}"} -- "${words[@]}" || code=$?
  upload_log
  if [[ -e "$folder/shutting_down" ]] || [[ "$code" == 0 && "$host" != 0-0 ]]; then return 0; fi
  echo "$code" | gcloud storage cp --quiet - "$job/exit_code"
}

folder="${STTTS_JOB_FOLDER:-/var/lib/sttts_jax}"
started="$(date +%Y%m%d-%H%M%S)"
ulimit -n 65536 2>/dev/null || true
export HOME="${HOME:-/root}" PATH="$PATH:/snap/bin" # a startup script has neither
if [[ "$DRY_RUN" == 1 ]]; then
  job=gs://BUCKET/JOB host=0-0
  main
  exit 0
fi
mkdir -p "$folder"
rm -f "$folder/shutting_down" "$folder/ended" # launch/shutdown_script.sh and this one left them
trap 'touch "$folder/ended"' EXIT
job="$(metadata sttts-job)"
who_am_i
exec >>"$folder/log" 2>&1
main
