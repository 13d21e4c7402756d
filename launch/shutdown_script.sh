#!/usr/bin/env bash
# What a host of a queued resource runs as root when it is taken away: tells the program to save, while the network is
# still there. A spot TPU has 30 seconds.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash launch/shutdown_script.sh [--dry-run] [--help]

SIGTERM to what launch/startup_script.sh started, and waits until it has saved and put its log into the bucket.

  --dry-run   print every command and run none
  --help      print this text
TEXT
}

folder="${STTTS_JOB_FOLDER:-/var/lib/sttts_jax}"
stop=(bash "$folder/code/launch/host.sh" --stop --run-dir "$folder")
case "${1:-}" in
  --help | -h) usage && exit 0 ;;
  --dry-run) printf '+%s\n' "$(printf ' %q' "${stop[@]}")" && exit 0 ;;
  "") ;;
  *) echo "error: unknown argument $1; see bash launch/shutdown_script.sh --help" >&2 && exit 2 ;;
esac
touch "$folder/shutting_down"
"${stop[@]}"
for _ in {1..50}; do
  if [[ -e "$folder/ended" ]]; then break; fi
  sleep 0.2
done
