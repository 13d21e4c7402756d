"""Google Cloud, a cluster and SLURM as far as launch/ uses them, on this machine: commands to put first on PATH.

A slice is a folder, a host a folder in it that is the home of what runs "there"; gs:// is a folder too. What a host
runs is run here, by the real shell. Unknown flags are refused, as gcloud refuses them.

    python -m tests.launch.cloud gcloud|curl|kubectl|srun|scontrol WORD ...
                                                            with CLOUD, the root folder, in the environment
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.launch.cluster import Cluster

ROOT = Path(__file__).parents[2]
HOSTS = 2  # of a slice

_PLACE = "zone project"
_NETWORK = "network subnetwork internal-ips service-account tags spot reserved metadata metadata-from-file async"
FLAGS = {  # of gcloud, as `gcloud compute tpus KIND VERB --help` lists them
    ("tpu-vm", "create"): f"{_PLACE} accelerator-type version {_NETWORK}",
    ("tpu-vm", "describe"): f"{_PLACE} format",
    ("tpu-vm", "delete"): f"{_PLACE} quiet async",
    ("tpu-vm", "ssh"): f"{_PLACE} worker command internal-ip",
    ("tpu-vm", "scp"): f"{_PLACE} worker recurse internal-ip",
    ("queued-resources", "create"): f"{_PLACE} accelerator-type runtime-version node-id node-count node-prefix "
    f"valid-until-duration {_NETWORK}",
    ("queued-resources", "describe"): f"{_PLACE} format",
    ("queued-resources", "delete"): f"{_PLACE} quiet force async",
    ("storage", "cp"): "quiet",
    ("storage", "cat"): "",
    ("storage", "rm"): "quiet",
}


class Refused(Exception):
    """(exit code, what gcloud says)"""


class Cloud:
    """What exists, below one folder: tpus/NAME/HOST, tpus/NAME/state, queued/NAME/..., gs/..."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def install(self, environment: dict[str, str]) -> dict[str, str]:
        """The environment with the commands on PATH."""
        folder = self.root / "bin"
        folder.mkdir(parents=True)
        for name in COMMANDS:
            run = f'exec env "PYTHONPATH={ROOT}" "{sys.executable}" -m tests.launch.cloud {name} "$@"'
            (folder / name).write_text(f"#!/bin/sh\n{run}\n")
            (folder / name).chmod(0o755)
        return {**environment, "CLOUD": str(self.root), "PATH": f"{folder}:{environment['PATH']}"}

    # --- slices ---

    def hosts(self, name: str) -> list[Path]:
        return sorted(path for path in (self.root / "tpus" / name).glob("*") if path.is_dir())

    def state(self, name: str) -> str:
        file = self.root / "tpus" / name / "state"
        if not file.exists():
            raise Refused(1, f"ERROR: NOT_FOUND: {name}")
        return file.read_text()

    def create(self, name: str) -> None:
        folder = self.root / "tpus" / name
        if folder.exists():
            raise Refused(1, f"ERROR: ALREADY_EXISTS: {name}")
        for number in range(HOSTS):
            (folder / str(number)).mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            (folder / "port").write_text(str(free.getsockname()[1]))
        (folder / "state").write_text("READY")

    def delete(self, name: str) -> None:
        self.state(name)
        while (self.root / "tpus" / name / "ends").exists():
            time.sleep(0.1)
        for host in self.hosts(name):
            _end(host)
        shutil.rmtree(self.root / "tpus" / name)

    def preempt(self, name: str, host: int) -> None:
        """Takes a slice away: nobody reaches it any more; one host is told, all end, nothing of them is left."""
        ends = self.root / "tpus" / name / "ends"
        ends.touch()
        (self.root / "tpus" / name / "state").write_text("PREEMPTED")
        os.kill(_pid(self.hosts(name)[host]), signal.SIGTERM)
        for each in self.hosts(name):
            _await_end(each)
        ends.unlink()

    def environment(self, name: str, host: int) -> dict[str, str]:
        """What a process on a host sees; the three variables stand for the metadata server that JAX would ask."""
        place = {"HOME": str(self.root / "tpus" / name / str(host)), "CLOUD_HOST": f"{name}/{host}"}
        port = (self.root / "tpus" / name / "port").read_text()
        others = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(HOSTS)}
        return {**os.environ, **place, **others, "JAX_PROCESS_ID": str(host)}

    def ssh(self, name: str, worker: str, command: str) -> int:
        """Runs a command on one host or all at the same time. Returns the highest exit code, 255 where none answers."""
        if self.state(name) != "READY":
            raise Refused(255, f"ssh: connect to host {name}: Connection timed out")
        numbers = range(HOSTS) if worker == "all" else [int(worker)]

        def one(number: int) -> int:
            environment = self.environment(name, number)
            return subprocess.run(["bash", "-c", command], cwd=environment["HOME"], env=environment).returncode

        with ThreadPoolExecutor(HOSTS) as pool:
            return max(pool.map(one, numbers))

    # --- queued resources ---

    def create_queued(self, name: str, flags: dict[str, str]) -> None:
        folder = self.root / "queued" / name
        if folder.exists():
            raise Refused(1, f"ERROR: ALREADY_EXISTS: {name}")
        folder.mkdir(parents=True)
        (folder / "job").write_text(flags["metadata"].removeprefix("sttts-job="))
        for pair in flags["metadata-from-file"].split(","):
            kind, _, file = pair.partition("=")
            shutil.copy(file, folder / kind)
        self.create(flags["node-id"])
        (folder / "state").write_text("ACTIVE")
        self.run_script(name, "startup-script", wait=False)

    def run_script(self, name: str, kind: str, wait: bool) -> None:
        """On every host, as root does when it starts or is shut down; ends with the host."""
        started = []
        for host in self.hosts(name):
            environment = {**self.environment(name, int(host.name)), "STTTS_JOB_FOLDER": str(host / "job")}
            with (host / f"{kind}.log").open("ab") as log:
                words = ["bash", str(self.root / "queued" / name / kind)]
                started.append(subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True))
            (host / kind).mkdir()
            (host / kind / "pid").write_text(str(started[-1].pid))
        for process in started if wait else []:
            process.wait()

    def suspend(self, name: str) -> None:
        """A spot preemption: the shutdown scripts run, then the nodes are gone for good."""
        self.run_script(name, "shutdown-script", wait=True)
        self.delete(name)
        (self.root / "queued" / name / "state").write_text("SUSPENDED")

    def queue_state(self, name: str) -> str:
        file = self.root / "queued" / name / "state"
        if not file.exists():
            raise Refused(1, f"ERROR: NOT_FOUND: {name}")
        return file.read_text()

    def delete_queued(self, name: str) -> None:
        self.queue_state(name)
        if (self.root / "tpus" / name).exists():
            self.delete(name)
        shutil.rmtree(self.root / "queued" / name)

    # --- gs:// ---

    def path(self, name: str) -> Path:
        return self.root / "gs" / name.removeprefix("gs://") if name.startswith("gs://") else Path(name)

    def copy(self, sources: list[str], target: str) -> None:
        place = self.path(target)
        (place if target.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        for source in sources:
            goal = place / Path(source).name if place.is_dir() else place
            if source == "-":
                goal.write_bytes(sys.stdin.buffer.read())
            else:
                shutil.copyfile(self.path(source), goal)


def _pid(host: Path) -> int:
    return int((host / ".sttts_jax/run/pid").read_text())


def _await_end(host: Path, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not (host / ".sttts_jax/run/exit_code").exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{host} does not end")
        time.sleep(0.1)


def _end(host: Path) -> None:
    """As a machine that is switched off: what host.sh started there, and nothing else."""
    for file in host.glob("**/pid"):
        if not (file.parent / "exit_code").exists():
            try:
                os.killpg(int(file.read_text()), signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue


def _parsed(words: list[str], known: str) -> tuple[list[str], dict[str, str]]:
    names, flags = list[str](), dict[str, str]()
    for word in words:
        if not word.startswith("--"):
            names.append(word)
            continue
        flag, _, value = word[2:].partition("=")
        if flag not in known.split():
            raise Refused(2, f"ERROR: (gcloud) unrecognized arguments: {word}")
        flags[flag] = value
    return names, flags


def gcloud(cloud: Cloud, words: list[str]) -> int:
    """Logs the command, and does it."""
    with (cloud.root / "gcloud.log").open("a") as log:
        log.write(" ".join(words) + "\n")
    group = words[2:] if words[:2] == ["compute", "tpus"] else words
    kind, verb, *rest = group
    if (kind, verb) not in FLAGS:
        raise Refused(2, f"ERROR: (gcloud) invalid choice: {kind} {verb}")
    names, flags = _parsed(rest, FLAGS[kind, verb])
    if kind != "storage" and "zone" not in flags:
        raise Refused(2, "ERROR: (gcloud) --zone is missing")
    return _DO[kind](cloud, verb, names, flags)


def _tpu_vm(cloud: Cloud, verb: str, names: list[str], flags: dict[str, str]) -> int:
    if verb == "create":
        cloud.create(names[0])
    elif verb == "delete":
        cloud.delete(names[0])
    elif verb == "describe":
        state = cloud.state(names[0])
        print({"value(state)": state, "value(networkEndpoints.len())": str(HOSTS)}[flags["format"]])
    elif verb == "ssh":
        return cloud.ssh(names[0], flags.get("worker", "0"), flags["command"])
    else:
        *sources, target = names
        node, _, path = target.partition(":")
        if cloud.state(node) != "READY":
            raise Refused(255, f"scp: connect to host {node}: Connection timed out")
        for host in cloud.hosts(node):
            for source in sources:
                shutil.copy(source, host / path)
    return 0


def _queued(cloud: Cloud, verb: str, names: list[str], flags: dict[str, str]) -> int:
    if verb == "create":
        cloud.create_queued(names[0], flags)
    elif verb == "delete":
        cloud.delete_queued(names[0])
    else:
        print(cloud.queue_state(names[0]))
    return 0


def _storage(cloud: Cloud, verb: str, names: list[str], flags: dict[str, str]) -> int:
    del flags
    files = [cloud.path(name) for name in names]
    if verb == "cp":
        cloud.copy(names[:-1], names[-1])
    elif not files[0].exists():
        raise Refused(1, f"ERROR: (gcloud.storage) no such file: {names[0]}")
    elif verb == "cat":
        print(files[0].read_text(), end="")
    else:
        files[0].unlink()
    return 0


_DO = {"tpu-vm": _tpu_vm, "queued-resources": _queued, "storage": _storage}


def curl(cloud: Cloud, words: list[str]) -> int:
    """The metadata server of the host that asks."""
    name, host = os.environ["CLOUD_HOST"].split("/")
    if words[-1].endswith("/sttts-job"):
        print((cloud.root / "queued" / name / "job").read_text(), end="")
    elif words[-1].endswith("/tpu-env"):
        print(f"ACCELERATOR_TYPE: 'v5p-16'\nNODE_ID: '{name}'\nWORKER_ID: '{host}'")
    else:
        return 22
    return 0


def srun(cloud: Cloud, words: list[str]) -> int:
    """SLURM_NTASKS tasks of one node; a signal to srun reaches all. The exit code is the highest, as srun's is."""
    del cloud
    while words and words[0].startswith("--"):
        words = words[1:]
    tasks = int(os.environ["SLURM_NTASKS"])
    step = {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}
    running = [
        subprocess.Popen(words, env={**os.environ, **step, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)})
        for task in range(tasks)
    ]
    signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in running] and None)
    return max(task.wait() for task in running)


def scontrol(cloud: Cloud, words: list[str]) -> int:
    with (cloud.root / "requeued").open("a") as file:
        file.write(" ".join(words) + "\n")
    return 0


def kubectl(cloud: Cloud, words: list[str]) -> int:
    return Cluster(cloud.root).kubectl(words)


COMMANDS = {"gcloud": gcloud, "curl": curl, "kubectl": kubectl, "srun": srun, "scontrol": scontrol}


def main() -> int:
    try:
        return COMMANDS[sys.argv[1]](Cloud(Path(os.environ["CLOUD"])), sys.argv[2:])
    except Refused as refused:
        print(refused.args[1], file=sys.stderr)
        return refused.args[0]


if __name__ == "__main__":
    sys.exit(main())
