"""The launchers from nothing to the last step, with this machine in the place of the hosts (tests/launch/cloud.py).

One of them trains for real; the others start a program that ends as the test wants.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.launch.cloud import HOSTS, Cloud
from tests.launch.cluster import Cluster

ROOT = Path(__file__).parents[2]
STEPS = 12
SLICE = ("--name", "pod", "--zone", "z", "--type", "v5p-16", "--spot")
# What `sttts-jax` is in the walks that do not train: counts its starts in a file and ends as the list of codes says.
PROGRAM = """#!/usr/bin/env bash
if [[ "$1 $2" != "-m sttts_jax"* ]]; then exit 0; fi
printf 'start %s\\n' "${JAX_PROCESS_ID:-${SLURM_PROCID:-}} $*" >>"$STARTS"
starts="$(grep -c "^start ${JAX_PROCESS_ID:-${SLURM_PROCID:-}} " "$STARTS")"
if [[ -n "${JOBSET_RESTARTS:-}" ]]; then starts=$((JOBSET_RESTARTS + 1)); fi # a pod may end before it counts its start
code="$(sed -n "${starts}p" "$CODES")"
if [[ "$code" != wait ]]; then exit "$code"; fi
trap 'exit 42' TERM
while :; do sleep 0.1; done
"""


@pytest.fixture(name="cloud")
def _cloud(tmp_path: Path) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path / "cloud")
    yield cloud
    for name in (path.name for path in (cloud.root / "tpus").glob("*")):
        cloud.delete(name)


def _environment(cloud: Cloud, python: str) -> dict[str, str]:
    """Of the machine that launches. Hosts come with an environment in which `python` is Python, but for pip."""
    venv = cloud.root / "venv/bin"
    venv.mkdir(parents=True)
    (venv / "python").write_text(python)
    (venv / "python").chmod(0o755)
    command = 'exec "$STTTS_VENV/bin/python" -m "sttts_jax.cli.$command" "$@"'
    (venv / "sttts-jax").write_text(f'#!/bin/sh\ncommand="$1"\nshift\n{command}\n')  # of an image
    (venv / "sttts-jax").chmod(0o755)
    quick = {"POLL_S": "0.2", "BACKOFF_S": "0", "GRACE_S": "20", "STTTS_VENV": str(venv.parent)}
    path = f"{venv}:{os.environ['PATH']}"
    return cloud.install({**os.environ, **quick, "PATH": path, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"})


def _program(cloud: Cloud, *codes: object) -> dict[str, str]:
    environment = _environment(cloud, PROGRAM)
    (cloud.root / "codes").write_text("".join(f"{code}\n" for code in codes))
    return {**environment, "STARTS": str(cloud.root / "starts"), "CODES": str(cloud.root / "codes")}


def _launch(script: str, *words: str, environment: dict[str, str], timeout_s: float = 300) -> tuple[int, str]:
    """Exit code and what the terminal shows. Nothing of it is left when this returns."""
    command = ["bash", f"launch/{script}", *words]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        text = process.communicate(timeout=timeout_s)[0]
    finally:
        process.kill()
    return process.returncode, text


@contextlib.contextmanager
def _meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """`act` in a thread; what it raises is raised at the end."""
    raised = list[BaseException]()

    def work() -> None:
        try:
            act()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    thread.join()
    if raised:
        raise raised[0]


def _wait(holds: Callable[[], bool], timeout_s: float = 250) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.05)


def _steps(workdir: Path) -> list[int]:
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [entry["step"] for entry in map(json.loads, lines) if "loss" in entry]


@pytest.mark.multiprocess
def test_a_slice_that_is_taken_away_trains_to_the_end_by_itself(cloud: Cloud, clips: Path, tmp_path: Path) -> None:
    """Two hosts train as one run. The slice is preempted: one host hears of it, both save the same step, all is lost
    but the workdir. Another slice is made, gets the code and goes on to the last step."""
    config, workdir = tmp_path / "tiny.py", tmp_path / "run"
    config.write_text(
        f"import sys; sys.path.append({str(ROOT)!r})\nfrom pathlib import Path\nfrom tests.tiny import tiny_config\n"
        f"get_config = lambda arg='': tiny_config(Path({str(clips)!r}), total_steps={STEPS}, data__rows=2)\n"
    )
    python = f'#!/bin/sh\nif [ "$2" = pip ]; then exit 0; fi\nexec "{sys.executable}" "$@"\n'
    environment = _environment(cloud, python)

    def preempt() -> None:
        _wait(lambda: len(_steps(workdir)) >= 3)
        cloud.preempt("pod", host=1)

    command = ("--delete", "--logs", str(tmp_path / "logs"), "--", "train", "--config", str(config))
    with _meanwhile(preempt):
        code, text = _launch("tpu_vm.sh", *SLICE, *command, "--workdir", str(workdir), environment=environment)
    assert code == 0, text
    assert "pod is PREEMPTED: preempted" in text and "(restart 1 of 20)" in text and "exit codes: 0 0" in text
    assert text.count("tpu-vm create pod") == 2 and text.rstrip().splitlines()[-1].endswith("--quiet --zone=z")
    assert _steps(workdir) == list(range(1, STEPS + 1))  # none trained twice, none left out
    assert not (cloud.root / "tpus/pod").exists() and len(list((tmp_path / "logs").glob("*/pod-*.log"))) == HOSTS


def test_a_mistake_is_not_tried_again_and_a_hang_is(cloud: Cloud, tmp_path: Path) -> None:
    """170 on both hosts: the slice is there still, and what is started on it anew ends with 2: that is final."""
    environment = _program(cloud, 170, 2)
    code, text = _launch("tpu_vm.sh", *SLICE, "--logs", str(tmp_path / "logs"), "--", "train", environment=environment)
    assert code == 2, text
    assert "exit code 170: starts again in 0 s (restart 1 of 20)" in text and "exit codes: 2 2" in text
    assert text.count("tpu-vm create") == 1 and (cloud.root / "starts").read_text().count("start") == 2 * HOSTS
    assert len(list((tmp_path / "logs").iterdir())) == 2
    assert cloud.state("pod") == "READY" and "pod stays, and costs" in text
    assert _launch("tpu_vm.sh", *SLICE, "--delete", environment=environment)[0] == 0
    assert cloud.hosts("pod") == []


def test_what_runs_is_stopped_and_what_does_not_is_left(cloud: Cloud, tmp_path: Path) -> None:
    """The terminal goes away while a job runs; `--stop` ends it on all hosts, by what host.sh noted, not by name."""
    environment = _program(cloud, "wait")
    command = ["bash", "launch/tpu_vm.sh", *SLICE, "--", "train"]
    terminal = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    _wait(lambda: (cloud.root / "starts").exists() and (cloud.root / "starts").read_text().count("\n") == HOSTS)
    terminal.kill()
    terminal.wait()
    states = _launch("tpu_vm.sh", *SLICE, "--stop", environment=environment)
    assert states[0] == 0, states[1]
    attached = _launch("tpu_vm.sh", *SLICE, "--attach", "--logs", str(tmp_path / "logs"), environment=environment)
    assert attached[0] == 42 and "exit codes: 42 42" in attached[1]


def test_secrets_reach_the_hosts_in_a_file_of_their_user(cloud: Cloud, tmp_path: Path) -> None:
    secret = tmp_path / "env"
    secret.write_text("HF_TOKEN=very secret\n")
    secret.chmod(0o600)
    environment = _program(cloud, 0)
    program = (cloud.root / "venv/bin/python").read_text().replace("$*", "$* with $HF_TOKEN")
    (cloud.root / "venv/bin/python").write_text(program)
    options = ("--env-file", str(secret), "--logs", str(tmp_path / "logs"))
    code, text = _launch("tpu_vm.sh", *SLICE, *options, "--", "train", environment=environment)
    assert code == 0 and (cloud.root / "starts").read_text().count("with very secret") == HOSTS
    assert "very secret" not in text + (cloud.root / "gcloud.log").read_text()
    for host in cloud.hosts("pod"):
        assert (host / "sttts_jax/.env_file").stat().st_mode & 0o077 == 0
        assert not (host / "sttts_jax.tar.gz").exists()


def test_a_queued_resource_is_asked_for_again_until_its_job_is_done(cloud: Cloud) -> None:
    """Spot slices start by themselves. The first is taken away while it trains: its hosts hear of it by the shutdown
    script. The hosts of the second end with 0, which the first of them writes down; then the slices are given back."""
    environment = _program(cloud, "wait", 0)
    starts = cloud.root / "starts"

    def suspend() -> None:
        _wait(lambda: starts.exists() and starts.read_text().count("\n") == HOSTS)
        cloud.suspend("pod")

    command = (*SLICE, "--bucket", "gs://b/jobs", "--", "train", "--config.a=('x y',)")
    with _meanwhile(suspend):
        code, text = _launch("queued.sh", *command, environment=environment)
    assert code == 0, text
    assert "pod: SUSPENDED" in text and "restart 1 of 20" in text, text
    assert text.count("queued-resources create pod") == 2
    assert starts.read_text().count("train --config.a=('x y',)") == 2 * HOSTS
    assert not (cloud.root / "queued/pod").exists() and (cloud.root / "gs/b/jobs/pod/exit_code").read_text() == "0\n"
    assert len(list((cloud.root / "gs/b/jobs/pod/logs").glob("0-0-*.log"))) == 2  # of the first host, each time


@pytest.mark.parametrize(
    ("codes", "status"),
    [((42, 170, 137, 0), "Completed 3"), ((42, 2), "Failed 1"), ((170, 170, 170, 170, 0), "Failed 3")],
)
@pytest.mark.parametrize("topology", ["v6e:2x4", "tpu7x:2x2x1"])
def test_a_jobset_ends_when_its_job_does(topology: str, codes: tuple[int, ...], status: str, cloud: Cloud) -> None:
    """All pods start again after a preemption, a hang or a signal, three times here; a mistake is final."""
    environment = _program(cloud, *codes)
    options = ("--name", "w", "--image", "i", "--topology", topology, "--restarts", "3", "--apply")
    code, text = _launch("jobset.sh", *options, "--", "train", "--config.a=$HOME $(x)", environment=environment)
    assert code == 0, text
    cluster = Cluster(cloud.root)
    _wait(lambda: not cluster.status("w").startswith("Running"))
    assert cluster.status("w") == status
    starts = (cloud.root / "starts").read_text().splitlines()
    assert {line.split(maxsplit=2)[2] for line in starts} == {"-m sttts_jax.cli.train --config.a=$HOME $(x)"}


def test_slurm_puts_the_job_back_after_a_preemption_and_not_after_a_mistake(cloud: Cloud, tmp_path: Path) -> None:
    environment = _program(cloud, 42, 0, 2)
    environment |= {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    requeued, codes = cloud.root / "requeued", []
    for count in range(3):
        job = {**environment, "SLURM_RESTART_COUNT": str(count)}
        codes.append(_launch("slurm.sbatch", "--runs", str(tmp_path / "runs"), "--", "train", environment=job)[0])
    assert codes == [42, 0, 2] and requeued.read_text() == "requeue 7\n"


def test_processes_of_one_machine_end_together_with_one_code(cloud: Cloud, tmp_path: Path) -> None:
    """The first process fails and the other, which would wait for ever, is ended; then all are started again."""
    environment = _program(cloud, 170, 0) | {"GRACE_S": "1"}
    program = cloud.root / "venv/bin/python"
    program.write_text(program.read_text().replace('"$code" != wait', '"$JAX_PROCESS_ID$code" != 1170'))
    command = ("-n", "2", "--restarts", "1", "--logs", str(tmp_path / "logs"), "--", "train", "--config", "demo")
    code, text = _launch("local.sh", *command, environment=environment)
    assert code == 0, text
    assert "process 0 ended with exit code 170" in text and "process 1 goes on after 1 s" in text
    assert (cloud.root / "starts").read_text().count("-m sttts_jax.cli.train --config demo") == 4
