"""launch/jobset.sh: what it writes is a right JobSet, and what it cannot write it refuses."""

import copy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.launch.jobset import problems

ROOT = Path(__file__).parents[2]
WORDS = [
    "train",
    "--config",
    "demo:k=0.5",
    "--config.a=('x', \"y\\z\")",
    "$HOME $(NAME) $$",
    "tab\there",
    "two\nlines",
    "#",
]
VMS = {
    "v4:2x2x1": 1, "v4:2x2x4": 4, "v5e:2x4": 2, "v5e:16x16": 64, "v5p:2x2x2": 2, "v5p:2x4x4": 8, "v5p:4x4x8": 32,
    "v6e:2x2": 1, "v6e:16x16": 64, "tpu7x:2x2x4": 4, "tpu7x:4x4x4": 16,
}  # fmt: skip


def _run(topology: str, *options: str) -> subprocess.CompletedProcess[str]:
    words = ["--name", "w", "--image", "registry/sttts:1", "--topology", topology, *options]
    command = ["bash", "launch/jobset.sh", *words, "--", *WORDS]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def _made(topology: str, *options: str) -> Any:
    done = _run(topology, *options)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def _job(jobset: Any) -> Any:
    return jobset["spec"]["replicatedJobs"][0]


def _pod(jobset: Any) -> Any:
    return _job(jobset)["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("topology", VMS)
@pytest.mark.parametrize("slices", [1, 2])
def test_every_jobset_is_right(topology: str, slices: int) -> None:
    if slices > 1 and VMS[topology] == 1:
        done = _run(topology, "--slices", "2")
        assert done.returncode == 2 and "several slices need several VMs" in done.stderr
        return
    jobset = _made(topology, "--slices", str(slices))
    assert problems(jobset) == []
    job = _job(jobset)
    assert (job["replicas"], job["template"]["spec"]["parallelism"]) == (slices, VMS[topology])
    assert len(_pod(jobset)["containers"]) == (2 if topology.startswith("tpu7x") else 1)


def test_options_come_where_they_belong() -> None:
    options = ("--spot", "--restarts", "7", "--grace", "300", "--service-account", "sa", "--queue", "q")
    variables = ("--env", 'A=x "y" $z', "--secret", "HF_TOKEN=hf:token")
    jobset = _made("v5p:2x4x4", *options, *variables)
    assert problems(jobset) == []
    pod = _pod(jobset)
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7 and pod["terminationGracePeriodSeconds"] == 300
    assert pod["serviceAccountName"] == "sa" and jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["containers"][0]["env"] == [
        {"name": "A", "value": 'x "y" $$z'},
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}},
    ]


def test_a_pool_of_tpu7x_with_a_policy_is_chosen_by_its_topology() -> None:
    jobset = _made("tpu7x:2x2x4", "--placement-policy", "policy")
    assert problems(jobset) == []
    assert _pod(jobset)["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x2x4"
    assert _pod(jobset)["nodeSelector"]["cloud.google.com/placement-policy-name"] == "policy"


def test_the_program_gets_its_words_as_they_were_given() -> None:
    """Through YAML, and through Kubernetes, which takes $$ for $ and would expand $(NAME)."""
    command = _pod(_made("v6e:4x4"))["containers"][0]["command"]
    assert [word.replace("$$", "$") for word in command] == ["sttts-jax", *WORDS]
    assert "$(NAME)" not in " ".join(command).replace("$$", "")


@pytest.mark.parametrize(
    ("topology", "options", "sentence"),
    [
        ("v5p:2x4", (), "v5p has no slices of 2x4; there are 2x2x1"),
        ("v5p:8x4x4", (), "ascending order"),
        ("v6e:4x4x4", (), "v6e has no slices"),
        ("v3:2x2", (), "the type v3 is unknown"),
        ("v5p-64", (), "TYPE:AxB[xC]"),
        ("v6e:4x4", ("--spot", "--flex"), "exclude each other"),
        ("v6e:4x4", ("--env", "HF_TOKEN=abc"), "use --secret"),
        ("v6e:4x4", ("--secret", "HF_TOKEN=abc"), "NAME=SECRET:KEY"),
        ("v6e:4x4", ("--name", "Run_1"), "--name takes a-z"),
        ("v6e:4x4", ("--slices", "0"), "1 or more"),
        ("v6e:4x4", ("--placement-policy", "p"), "is for tpu7x"),
    ],
)
def test_mistakes_get_a_sentence(topology: str, options: tuple[str, ...], sentence: str) -> None:
    done = _run(topology, *options)
    assert done.returncode == 2 and sentence in done.stderr and done.stdout == "" and "abc" not in done.stderr


def _set(*path: Any, to: Any) -> Callable[[Any], None]:
    def change(jobset: Any) -> None:
        for key in path[:-1]:
            jobset = jobset[key]
        jobset[path[-1]] = to

    return change


_SPEC = ("spec", "replicatedJobs", 0, "template", "spec")
_CONTAINER = (*_SPEC, "template", "spec", "containers", 0)
_SELECTOR = (*_SPEC, "template", "spec", "nodeSelector")
BROKEN = {
    "replicas": _set("spec", "replicatedJobs", 0, "replicas", to=0),
    "parallelism": _set(*_SPEC, "parallelism", to=4),
    "completions": _set(*_SPEC, "completions", to=4),
    "backoff": _set(*_SPEC, "backoffLimit", to=4),
    "chips": _set(*_CONTAINER, "resources", "limits", "google.com/tpu", to=8),
    "chips as text": _set(*_CONTAINER, "resources", "limits", "google.com/tpu", to="4"),
    "accelerator": _set(*_SELECTOR, "cloud.google.com/gke-tpu-accelerator", to="tpu-v5-slice"),
    "axes": _set(*_SELECTOR, "cloud.google.com/gke-tpu-topology", to="4x8"),
    "spot is no text": _set(*_SELECTOR, "cloud.google.com/gke-spot", to=True),
    "restart": _set(*_SPEC, "template", "spec", "restartPolicy", to="OnFailure"),
    "toleration": _set(*_SPEC, "template", "spec", "tolerations", to=[]),
    "privileged": _set(*_CONTAINER, "securityContext", "privileged", to=False),
    "name": _set("metadata", "name", to="Run_1"),
    "grace": _set(*_SPEC, "template", "spec", "terminationGracePeriodSeconds", to=5),
    "container of the policy": _set(*_CONTAINER, "name", to="jax"),
    "codes": _set(*_SPEC, "podFailurePolicy", "rules", 0, "onExitCodes", "values", to=[42]),
    "a code of ours": _set(*_SPEC, "podFailurePolicy", "rules", 0, "onExitCodes", "values", to=[*range(128, 256)]),
    "unknown key": _set(*_CONTAINER, "tpu", to=4),
    "formed": _set(
        *_SPEC, "template", "metadata", to={"annotations": {"cloud.google.com/gke-tpu-slice-topology": "4"}}
    ),
    "volume": _set(*_SPEC, "template", "spec", "volumes", to=[]),
    "kind": _set("kind", to="Job"),
}


@pytest.fixture(scope="module", name="right")
def _right() -> Any:
    return _made("v5p:2x4x4")


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_the_rules_see_a_broken_one(change: Callable[[Any], None], right: Any) -> None:
    jobset = copy.deepcopy(right)
    change(jobset)
    assert len(problems(jobset)) == 1, problems(jobset)
