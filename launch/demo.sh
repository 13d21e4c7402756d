#!/usr/bin/env bash
# The demo, from a bare clone: make videos, train three models at equal steps, evaluate them, write one report.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash launch/demo.sh [--workdir DIR] [--seed N] [--dry-run] [--help]

Makes .venv if there is none, installs the package (about two minutes, once), then

  1. builds shapes_video_qa: small mp4 files with questions about what happens in them
  2. trains one small video VLM three times with equal steps and seed: unpruned, STTS at 50 %, random at 50 %
  3. evaluates the three and prints one table
  4. writes DIR/report.html

  --workdir DIR   where everything goes                 (default: runs/demo)
  --seed N        seed of data, weights and data order  (default: 0)
  --dry-run       print every command and run none
  --help          print this text

Run it again and finished steps are not repeated: training resumes from its last checkpoint.

environment:
  PYTHON          the Python that makes .venv           (default: one on PATH, 3.11 or newer)
  STTTS_VENV      the virtual environment               (default: .venv)
  JAX_PLATFORMS   cpu, cuda or tpu                      (default: what JAX finds)
TEXT
}

METHODS=(none scorer random)
SIZES=2400,40,300 # clips of train, validation, test
QUESTIONS=1200

# On a CPU, one device a core, at most 8, a power of two: the matrices are too small to share, the rows of a batch are not.
# Memory is kept rather than given back after every step (glibc): that is a sixth of the time.
cpu_settings() {
  local cores devices=1
  cores="$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)"
  while ((devices * 2 <= cores && devices < 8)); do devices=$((devices * 2)); done
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
  export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4294967296
}

build_data() {
  run "$VENV/bin/sttts-jax" data build shapes_video_qa --data_dir "$workdir/data" --size "$SIZES" --style short_answer
}

train() { # METHOD
  run "$VENV/bin/sttts-jax" train --config "configs/demo.py:method=$1,seed=$seed,data_dir=$workdir/data" \
    --workdir "$workdir/$1"
}

# The test clips are the same for every seed; so are the questions.
evaluate() {
  local dirs
  dirs="$(printf ",$workdir/%s" "${METHODS[@]}")"
  run "$VENV/bin/sttts-jax" evaluate --workdir "$workdir/scorer" --tasks shapes_video_qa --limit "$QUESTIONS" \
    --pruned_fraction 0.3,0.5,0.7
  run "$VENV/bin/sttts-jax" evaluate --workdir "${dirs#,}" --tasks shapes_video_qa --limit "$QUESTIONS" \
    --report "$workdir/report.html" --picture "$workdir/kept_tokens.png"
}

workdir="runs/demo"
seed=0
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/lib.sh
while [[ $# -gt 0 ]]; do
  case "$1" in
    --workdir) needs_value "$@" && workdir="$2" && shift ;;
    --seed) needs_value "$@" && seed="$2" && shift ;;
    --dry-run) DRY_RUN=1 ;;
    --help | -h) usage && exit 0 ;;
    *) die "unknown argument $1; see bash launch/demo.sh --help" ;;
  esac
  shift
done
[[ "$seed" =~ ^[0-9]+$ ]] || die "--seed takes a whole number of 0 or more, not '$seed'"

ensure_venv dev
cpu_settings
build_data
for method in "${METHODS[@]}"; do train "$method"; done
evaluate
[[ "$DRY_RUN" == 1 ]] || echo "report: $workdir/report.html"
