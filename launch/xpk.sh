#!/usr/bin/env bash
# A run on a cluster that XPK made: builds the image and hands the command of the program to `xpk workload create`.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash launch/xpk.sh --name NAME --cluster C --tpu-type TYPE --image IMAGE [OPTION ...] -- COMMAND [ARGUMENT ...]

XPK's JobSet starts again on the exit codes 42 and 127 to 255: after a preemption, a hang or a signal.

  --name NAME       of the workload
  --cluster C       a cluster of `xpk cluster create`
  --tpu-type TYPE   as XPK calls it: v5litepod-16, v5p-64, v6e-64, tpu7x-4x4x4; or a GPU type of XPK
  --image IMAGE     built from launch/Dockerfile
  --build           build and push IMAGE first
  --slices N        (default: 1)
  --restarts N      of all slices together  (default: 20)
  --grace SECONDS   to save after SIGTERM  (default: 120)
  --project P, --zone Z, --spot, --priority P, --reservation R, --env-file FILE, --output-manifest-file FILE
                    are XPK's own. It writes an env file into the JobSet: no place for secrets; launch/jobset.sh has one
  --dry-run         print every command and run none
  --help            print this text
TEXT
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/lib.sh

name="" cluster="" type="" image=""
slices=1 restarts=20 grace=120 build=0
others=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --name) needs_value "$@" && name="$2" && shift ;;
    --cluster) needs_value "$@" && cluster="$2" && shift ;;
    --tpu-type) needs_value "$@" && type="$2" && shift ;;
    --image) needs_value "$@" && image="$2" && shift ;;
    --build) build=1 ;;
    --slices) needs_value "$@" && needs_count "$@" && slices="$2" && shift ;;
    --restarts) needs_value "$@" && needs_count "$@" && restarts="$2" && shift ;;
    --grace) needs_value "$@" && needs_count "$@" && grace="$2" && shift ;;
    --spot) others+=("$1") ;;
    --project | --zone | --priority | --reservation | --env-file | --output-manifest-file)
      needs_value "$@" && others+=("$1=$2") && shift
      ;;
    --dry-run) DRY_RUN=1 ;;
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    *) die "unknown argument $1; the command of the program comes after --; see bash launch/xpk.sh --help" ;;
  esac
  shift
done
[[ -n "$name" && -n "$cluster" && -n "$type" && -n "$image" ]] ||
  die "--name, --cluster, --tpu-type and --image are needed; see bash launch/xpk.sh --help"
[[ $# -gt 0 ]] || die "what shall run? ... -- train --config demo --workdir gs://BUCKET/runs/demo"
if [[ "$build" == 1 ]]; then build_image "$image"; fi
# XPK's shell sends SIGTERM to the shell that runs the command: `exec` puts the program in its place.
run xpk workload create --workload "$name" --cluster "$cluster" "--tpu-type=$type" "--docker-image=$image" \
  "--num-slices=$slices" "--max-restarts=$restarts" "--termination-grace-period-seconds=$grace" \
  ${others[@]+"${others[@]}"} --command "exec$(printf ' %q' sttts-jax "$@")"
