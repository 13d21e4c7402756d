#!/usr/bin/env bash
# Writes the JobSet that runs one command of the program on TPU slices of a GKE cluster.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash launch/jobset.sh --name NAME --image IMAGE --topology TYPE:AxB[xC] [OPTION ...] -- COMMAND [ARGUMENT ...]

Writes a JobSet (jobset.x-k8s.io/v1alpha2) to standard output. One pod a VM, one Job a slice; on tpu7x two containers a
pod. It starts again after a preemption (exit code 42), a hang or a signal (128 and more), and ends on any other code.

  --name NAME              of the job: a-z, 0-9 and -, at most 40
  --image IMAGE            built from launch/Dockerfile
  --topology TYPE:AxB[xC]  chips of a slice: v4, v5e, v5p, v6e or tpu7x, as in v5p:2x4x4 (32 chips, sold as v5p-64)
  --slices N               of this topology  (default: 1)
  --spot | --reservation R | --flex   which machines  (default: on demand)
  --restarts N             of all slices together  (default: 20)
  --grace SECONDS          to save after SIGTERM  (default: 120)
  --env NAME=VALUE         for the program; may come again
  --secret NAME=SECRET:KEY for the program, from a key of a Kubernetes secret; may come again
  --service-account SA     of Kubernetes, which may read and write the bucket
  --queue NAME             LocalQueue of Kueue
  --placement-policy NAME  of a tpu7x node pool: selects it by topology and policy, not by a slice that GKE forms
  --build                  build and push IMAGE first
  --apply                  hand it to kubectl
  --out FILE               write it there
  --dry-run                print the JobSet and the commands, run none
  --help                   print this text
TEXT
}

# What GKE calls the type of $1.
accelerator_of() {
  case "$1" in
    v4) echo tpu-v4-podslice ;;
    v5e) echo tpu-v5-lite-podslice ;;
    v5p) echo tpu-v5p-slice ;;
    v6e) echo tpu-v6e-slice ;;
    tpu7x) echo tpu7x ;;
    *) die "--topology: the type $1 is unknown; choose v4, v5e, v5p, v6e or tpu7x" ;;
  esac
}

# Slices that exist: of v5e and v6e a list, of the others cubes of 4x4x4 and what is smaller than one.
check_topology() { # TYPE AxB[xC]
  local known one sides
  case "$1" in
    v5e | v6e) known="2x2 2x4 4x4 4x8 8x8 8x16 16x16" ;;
    *) known="2x2x1 2x2x2 2x2x4 2x4x4" ;;
  esac
  for one in $known; do if [[ "$one" == "$2" ]]; then return 0; fi; done
  if [[ "$1" != v5e && "$1" != v6e && "$2" =~ ^[0-9]{1,2}x[0-9]{1,2}x[0-9]{1,2}$ ]]; then
    IFS=x read -r -a sides <<<"$2"
    if ((sides[0] >= 4 && sides[0] <= sides[1] && sides[1] <= sides[2])) &&
      ((sides[0] % 4 == 0 && sides[1] % 4 == 0 && sides[2] % 4 == 0)); then return 0; fi
    known+=" and multiples of 4 in ascending order, such as 4x4x8"
  fi
  die "--topology: $1 has no slices of $2; there are $known"
}

# A string of YAML in double quotes, which are those of JSON. Kubernetes expands $(NAME) and takes $$ for $.
quoted() {
  local text="${1//\$/\$\$}"
  text="${text//\\/\\\\}"
  text="${text//\"/\\\"}"
  text="${text//$'\n'/\\n}"
  text="${text//$'\t'/\\t}"
  [[ "$text" != *[[:cntrl:]]* ]] || die "an argument has a control character: $1"
  printf '"%s"' "$text"
}

list_of() { # WORD ...: [word, ...] of YAML
  local word first=1
  printf '['
  for word in "$@"; do
    [[ "$first" == 1 ]] || printf ', '
    first=0
    quoted "$word"
  done
  printf ']'
}

needs_name() { # FLAG VALUE LONGEST
  [[ "$2" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ && ${#2} -le $3 ]] ||
    die "$1 takes a-z, 0-9 and -, from a letter on, at most $3 characters, not '$2'"
}

# Values that everyone who may look at the cluster can read.
add_env() { # NAME=VALUE
  [[ "$1" =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die "--env takes NAME=VALUE, not '$1'"
  if [[ "${1%%=*}" =~ (TOKEN|SECRET|PASSWORD|API_KEY) ]]; then
    die "--env ${1%%=*}: that looks like a secret, and would stand in the JobSet; use --secret ${1%%=*}=SECRET:KEY"
  fi
  env_lines+=("- {name: ${1%%=*}, value: $(quoted "${1#*=}")}")
}

add_secret() { # NAME=SECRET:KEY
  [[ "$1" =~ ^([A-Za-z_][A-Za-z0-9_]*)=([-.a-z0-9]+):([-._A-Za-z0-9]+)$ ]] ||
    die "--secret ${1%%=*} takes NAME=SECRET:KEY, a key of a Kubernetes secret and no value"
  local from="{secretKeyRef: {name: ${BASH_REMATCH[2]}, key: ${BASH_REMATCH[3]}}}"
  env_lines+=("- {name: ${BASH_REMATCH[1]}, valueFrom: $from}")
}

# 42 and 128 to 255, as `verdict` of lib.sh has it; a container knows no Ctrl-C, so 130 is a signal like the others.
restart_codes() {
  local code
  printf '42'
  for ((code = 128; code <= 255; code++)); do printf ', %s' "$code"; done
}

indent() { sed "s/^/$(printf "%$1s" "")/"; }

containers() { # COMMAND ...
  local name line
  for name in "${names[@]}"; do
    cat <<YAML
- name: $name
  image: $(quoted "$image")
  securityContext: {privileged: true}
  command: $(list_of sttts-jax "$@")
  resources: {limits: {google.com/tpu: $((4 / ${#names[@]}))}}
  volumeMounts: [{mountPath: /dev/shm, name: dshm}]
YAML
    if [[ ${#names[@]} == 1 ]]; then printf '  ports: [{containerPort: 8471}, {containerPort: 8431}]\n'; fi
    if [[ ${#env_lines[@]} -gt 0 ]]; then
      printf '  env:\n'
      for line in "${env_lines[@]}"; do printf '  %s\n' "$line"; done
    fi
  done
}

failure_rules() {
  local name
  for name in "${names[@]}"; do
    cat <<YAML
- action: FailJob
  onPodConditions: []
  onExitCodes: {containerName: $name, operator: NotIn, values: [$(restart_codes)]}
YAML
  done
}

# Which nodes. A slice of tpu7x that GKE forms from a larger pool is asked for by an annotation instead of its topology.
node_selector() {
  echo "cloud.google.com/gke-tpu-accelerator: $accelerator"
  if [[ "$formed" == 0 ]]; then echo "cloud.google.com/gke-tpu-topology: $shape"; fi
  if [[ -n "$policy" ]]; then echo "cloud.google.com/placement-policy-name: $policy"; fi
  case "$machines" in
    spot) echo 'cloud.google.com/gke-spot: "true"' ;;
    flex) echo 'cloud.google.com/gke-queued: "true"' ;;
    reservation=*) echo "cloud.google.com/reservation-name: ${machines#*=}" ;;
  esac
}

pod_metadata() {
  if [[ "$formed" == 0 ]]; then return 0; fi
  echo "metadata:"
  echo "  annotations: {cloud.google.com/gke-tpu-slice-topology: $shape}"
}

# restarts: of all slices together; after one slice is lost the others know an address that is gone.
jobset() { # COMMAND ...
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
YAML
  if [[ -n "$queue" ]]; then echo "  labels: {kueue.x-k8s.io/queue-name: $queue}"; fi
  cat <<YAML
  annotations: {alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool} # a slice is a node pool
spec:
  ttlSecondsAfterFinished: 43200
  failurePolicy:
    maxRestarts: $restarts
    rules: [{action: FailJobSet, onJobFailureReasons: [PodFailurePolicy]}]
  replicatedJobs:
  - name: slice-job
    replicas: $slices # slices
    template:
      spec:
        parallelism: $vms # VMs of a slice
        completions: $vms
        backoffLimit: 0
        podFailurePolicy:
          rules:
$(failure_rules | indent 10)
        template:
$(pod_metadata | indent 10)
          spec:
            restartPolicy: Never
            hostNetwork: true
            dnsPolicy: ClusterFirstWithHostNet
            terminationGracePeriodSeconds: $grace
            nodeSelector:
$(node_selector | indent 14)
            tolerations: [{key: google.com/tpu, operator: Exists}]
YAML
  if [[ -n "$account" ]]; then echo "            serviceAccountName: $account"; fi
  cat <<YAML
            containers:
$(containers "$@" | indent 12)
            volumes: [{name: dshm, emptyDir: {medium: Memory}}]
YAML
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/lib.sh

name="" image="" topology="" queue="" account="" policy="" out=""
slices=1 restarts=20 grace=120 build=0 apply=0
machines=""
env_lines=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --name) needs_value "$@" && name="$2" && shift ;;
    --image) needs_value "$@" && image="$2" && shift ;;
    --topology) needs_value "$@" && topology="$2" && shift ;;
    --slices) needs_value "$@" && needs_count "$@" && slices="$2" && shift ;;
    --spot | --flex) [[ -z "$machines" ]] || die "$1 and ${machines%%=*} exclude each other" && machines="${1#--}" ;;
    --reservation)
      needs_value "$@" && needs_name "$1" "$2" 63
      [[ -z "$machines" ]] || die "$1 and $machines exclude each other"
      machines="reservation=$2" && shift
      ;;
    --restarts) needs_value "$@" && needs_count "$@" && restarts="$2" && shift ;;
    --grace) needs_value "$@" && needs_count "$@" && grace="$2" && shift ;;
    --env) needs_value "$@" && add_env "$2" && shift ;;
    --secret) needs_value "$@" && add_secret "$2" && shift ;;
    --service-account) needs_value "$@" && needs_name "$1" "$2" 63 && account="$2" && shift ;;
    --queue) needs_value "$@" && needs_name "$1" "$2" 63 && queue="$2" && shift ;;
    --placement-policy) needs_value "$@" && needs_name "$1" "$2" 63 && policy="$2" && shift ;;
    --build) build=1 ;;
    --apply) apply=1 ;;
    --out) needs_value "$@" && out="$2" && shift ;;
    --dry-run) DRY_RUN=1 ;;
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    *) die "unknown argument $1; the command of the program comes after --; see bash launch/jobset.sh --help" ;;
  esac
  shift
done
needs_name --name "$name" 40
[[ -n "$image" ]] || die "--image is needed; docs/pods.md says how it is built"
[[ "$topology" =~ ^([a-z0-9]+):([0-9x]+)$ ]] || die "--topology takes TYPE:AxB[xC] such as v5p:2x4x4, not '$topology'"
type="${BASH_REMATCH[1]}"
shape="${BASH_REMATCH[2]}"
[[ $# -gt 0 ]] || die "what shall run? ... -- train --config demo --workdir gs://BUCKET/runs/demo"
accelerator="$(accelerator_of "$type")"
check_topology "$type" "$shape"
vms=$((${shape//x/*} / 4))
((slices >= 1)) || die "--slices takes 1 or more"
((slices == 1 || vms > 1)) || die "several slices need several VMs each, and $topology is one VM; take a larger slice"
[[ -z "$policy" || "$type" == tpu7x ]] || die "--placement-policy is for tpu7x; $type takes node pools by topology"
names=(jax-tpu)
if [[ "$type" == tpu7x ]]; then names=(jax-tpu-1 jax-tpu-2); fi # each near the memory of its two chips
formed=0
if [[ "$type" == tpu7x && -z "$policy" ]]; then formed=1; fi

text="$(jobset "$@" | sed '/^ *$/d')"
if [[ "$build" == 1 ]]; then build_image "$image" >&2; fi
if [[ -n "$out" && "$DRY_RUN" != 1 ]]; then printf '%s\n' "$text" >"$out"; else printf '%s\n' "$text"; fi
if [[ "$apply" == 1 ]]; then run kubectl apply -f - <<<"$text" >&2; fi
