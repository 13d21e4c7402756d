"""What a JobSet for TPU slices on GKE must be, as rules: mistakes that a cluster would tell of hours later, or never.

The fields are those that `xpk workload create --output-manifest-file` of XPK 1.16.0 writes.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

ACCELERATORS = {  # as nodes are labelled -> axes of a topology
    "tpu-v4-podslice": 3,
    "tpu-v5-lite-podslice": 2,
    "tpu-v5p-slice": 3,
    "tpu-v6e-slice": 2,
    "tpu7x": 3,
}
CHIPS_PER_VM = 4
SAVE_S = 60  # that a save may take
RESTART = {42, *range(128, 256)}  # exit codes
OPTIONAL_RESTART = {127}  # which XPK has among them

# Every key that may be there, and its type; a list has one kind of element, {} any keys with strings.
_CODES = {"containerName": str, "operator": str, "values": [int]}
_CONTAINER = {
    "name": str,
    "image": str,
    "securityContext": {"privileged": bool},
    "command": [str],
    "resources": {"limits": {"google.com/tpu": int}},
    "volumeMounts": [{"mountPath": str, "name": str}],
    "ports?": [{"containerPort": int}],
    "env?": [{"name": str, "value?": str, "valueFrom?": {"secretKeyRef": {"name": str, "key": str}}}],
}
_POD = {
    "restartPolicy": str,
    "hostNetwork": bool,
    "dnsPolicy": str,
    "terminationGracePeriodSeconds": int,
    "nodeSelector": {},
    "tolerations": [{"key": str, "operator": str}],
    "serviceAccountName?": str,
    "containers": [_CONTAINER],
    "volumes": [{"name": str, "emptyDir": {"medium": str}}],
}
_JOB = {
    "parallelism": int,
    "completions": int,
    "backoffLimit": int,
    "podFailurePolicy": {"rules": [{"action": str, "onPodConditions": list, "onExitCodes": _CODES}]},
    "template": {"metadata?": {"annotations": {}}, "spec": _POD},
}
SCHEMA = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "labels?": {}, "annotations": {}},
    "spec": {
        "ttlSecondsAfterFinished": int,
        "failurePolicy": {"maxRestarts": int, "rules": [{"action": str, "onJobFailureReasons": [str]}]},
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": _JOB}}],
    },
}


def problems(jobset: Any) -> list[str]:
    """Sentences; none for a JobSet that is right."""
    return list(_shape(jobset, SCHEMA, "jobset")) or list(_rules(jobset))


def _shape(value: Any, schema: Any, place: str) -> Iterator[str]:
    if isinstance(schema, type):
        if type(value) is not schema:  # True is an int for isinstance
            yield f"{place} is {value!r}, not {schema.__name__}"
    elif isinstance(schema, list):
        if not isinstance(value, list):
            yield f"{place} is no list"
        else:
            for number, element in enumerate(value):
                yield from _shape(element, schema[0], f"{place}[{number}]")
    elif not isinstance(value, dict):
        yield f"{place} has no keys"
    else:
        yield from _keys(value, schema, place)


def _keys(value: dict, schema: dict, place: str) -> Iterator[str]:
    known = {name.removesuffix("?"): kind for name, kind in schema.items()} or dict.fromkeys(value, str)
    for name in value.keys() - known.keys():
        yield f"{place}.{name} is unknown"
    for name in schema.keys() - value.keys():
        if not name.endswith("?"):
            yield f"{place}.{name} is missing"
    for name in value.keys() & known.keys():
        yield from _shape(value[name], known[name], f"{place}.{name}")


def _rules(jobset: dict) -> Iterator[str]:
    if (jobset["apiVersion"], jobset["kind"]) != ("jobset.x-k8s.io/v1alpha2", "JobSet"):
        yield "it is no JobSet"
    if len(jobset["spec"]["replicatedJobs"]) != 1:
        yield "there must be one replicated job"
        return
    job = jobset["spec"]["replicatedJobs"][0]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    for name in (jobset["metadata"]["name"], job["name"], *(each["name"] for each in pod["containers"])):
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name):
            yield f"{name!r} is no DNS label"
    if {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]} not in (
        jobset["spec"]["failurePolicy"]["rules"]
    ):
        yield "an exit code that no restart mends would be restarted"
    yield from _slices(job["replicas"], spec, pod)
    yield from _pods(spec, pod)
    yield from _exit_codes(spec, pod)


def _slices(replicas: int, spec: dict, pod: dict) -> Iterator[str]:
    selector = pod["nodeSelector"]
    accelerator = selector.get("cloud.google.com/gke-tpu-accelerator")
    annotations = spec["template"].get("metadata", {}).get("annotations", {})
    formed = annotations.get("cloud.google.com/gke-tpu-slice-topology")
    topology = selector.get("cloud.google.com/gke-tpu-topology")
    if accelerator not in ACCELERATORS:
        yield f"no nodes are labelled {accelerator}"
        return
    if bool(formed) == bool(topology) or (formed and accelerator != "tpu7x"):
        yield "the topology is that of the nodes, or on tpu7x alone that of a slice to be formed"
        return
    sides = [int(side) for side in (formed or topology).split("x")]
    vms = math.prod(sides) // CHIPS_PER_VM
    if len(sides) != ACCELERATORS[accelerator]:
        yield f"{accelerator} has {ACCELERATORS[accelerator]} axes"
    if not spec["parallelism"] == spec["completions"] == vms:
        yield f"a slice has {vms} VMs"
    if replicas < 1 or (replicas > 1 and vms == 1):
        yield "several slices need several VMs each"


def _pods(spec: dict, pod: dict) -> Iterator[str]:
    if pod["restartPolicy"] != "Never" or spec["backoffLimit"] != 0:
        yield "a pod must not start again without the others"
    if {"key": "google.com/tpu", "operator": "Exists"} not in pod["tolerations"]:
        yield "TPU nodes are tainted: a toleration is missing"
    if not all(each["securityContext"]["privileged"] for each in pod["containers"]):
        yield "a container may not use the TPU"
    if sum(each["resources"]["limits"]["google.com/tpu"] for each in pod["containers"]) != CHIPS_PER_VM:
        yield f"the containers of a pod use {CHIPS_PER_VM} chips together"
    if pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu7x" and len(pod["containers"]) != 2:
        yield "tpu7x takes a container per two chips"
    if not (pod["hostNetwork"] and pod["dnsPolicy"] == "ClusterFirstWithHostNet"):
        yield "slices talk over the hosts' network"
    if pod["terminationGracePeriodSeconds"] < SAVE_S:
        yield f"a save may take {SAVE_S} s"
    volumes = {each["name"] for each in pod["volumes"]}
    for container in pod["containers"]:
        if {each["name"] for each in container["volumeMounts"]} - volumes:
            yield "a volume is not there"
        if any(("value" in each) == ("valueFrom" in each) for each in container.get("env", [])):
            yield "a variable has one value"


def _exit_codes(spec: dict, pod: dict) -> Iterator[str]:
    rules = spec["podFailurePolicy"]["rules"]
    named = [rule["onExitCodes"]["containerName"] for rule in rules]
    if sorted(named) != sorted(each["name"] for each in pod["containers"]):
        yield "the failure policy names other containers"
    for rule in rules:
        codes = rule["onExitCodes"]
        if rule["action"] != "FailJob" or codes["operator"] != "NotIn":
            yield "the failure policy must fail the job on other codes"
        if set(codes["values"]) - OPTIONAL_RESTART != RESTART:
            yield "the codes that restart are 42 and 128 to 255"
