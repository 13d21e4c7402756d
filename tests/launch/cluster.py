"""A GKE cluster as far as a JobSet of launch/jobset.sh needs one: pods are processes of this machine.

`kubectl apply -f -` starts the controller of a JobSet, which runs on until the JobSet has ended; `kubectl get jobset
NAME` prints how it stands.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tests.launch.jobset import problems

ROOT = Path(__file__).parents[2]


class Cluster:
    """What is known of JobSets: jobsets/NAME/{jobset.yaml, status, pods}."""

    def __init__(self, root: Path) -> None:
        self.root = root / "jobsets"

    def kubectl(self, words: list[str]) -> int:
        """The two commands that there are."""
        if words == ["apply", "-f", "-"]:
            self._apply(yaml.safe_load(sys.stdin))
        elif words[:2] == ["get", "jobset"]:
            print(self.status(words[2]))
        else:
            print(f"error: unknown command {words[0]}", file=sys.stderr)
            return 1
        return 0

    def status(self, name: str) -> str:
        return (self.root / name / "status").read_text()

    def pods(self, name: str) -> list[int]:
        """Process ids of those of the present attempt."""
        return [int(word) for word in (self.root / name / "pods").read_text().split()]

    def _apply(self, jobset: dict[str, Any]) -> None:
        if wrong := problems(jobset):
            raise ValueError("; ".join(wrong))
        folder = self.root / jobset["metadata"]["name"]
        folder.mkdir(parents=True)
        (folder / "jobset.yaml").write_text(yaml.safe_dump(jobset))
        self._tell(folder.name, "Running 0")
        words = [sys.executable, "-m", "tests.launch.cluster", str(self.root.parent), folder.name]
        with (folder / "log").open("w") as log:
            subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def control(self, name: str) -> None:
        """Runs a JobSet to its end, all slices anew after a failure that its policy lets pass."""
        jobset = yaml.safe_load((self.root / name / "jobset.yaml").read_text())
        policy = jobset["spec"]["failurePolicy"]
        for restarts in range(policy["maxRestarts"] + 1):
            self._tell(name, f"Running {restarts}")
            failed = self._attempt(name, jobset["spec"]["replicatedJobs"][0], restarts)
            if failed is None:
                self._tell(name, f"Completed {restarts}")
                return
            if failed == "PodFailurePolicy":
                break
        self._tell(name, f"Failed {restarts}")

    def _tell(self, name: str, status: str) -> None:
        part = self.root / name / "status.part"
        part.write_text(status)
        part.rename(part.with_suffix(""))

    def _attempt(self, name: str, job: dict[str, Any], restarts: int) -> str | None:
        """Why it failed; None where every container of every pod ended with 0."""
        spec = job["template"]["spec"]
        pod = spec["template"]["spec"]
        allowed = {
            rule["onExitCodes"]["containerName"]: rule["onExitCodes"]["values"]
            for rule in spec["podFailurePolicy"]["rules"]
        }
        pods = job["replicas"] * spec["parallelism"]
        running = _start(pods, pod["containers"], restarts)
        (self.root / name / "pods").write_text(" ".join(str(process.pid) for process, _ in running))
        try:
            while running:
                for process, container in list(running):
                    code = process.poll()
                    if code is None:
                        continue
                    running.remove((process, container))
                    code = 128 - code if code < 0 else code
                    if code:
                        print(f"{container} ended with {code}", flush=True)
                        return "PodFailurePolicy" if code not in allowed[container] else "BackoffLimitExceeded"
                time.sleep(0.1)
        finally:
            _end([process for process, _ in running], pod["terminationGracePeriodSeconds"])
        return None


def _start(pods: int, containers: list[dict[str, Any]], restarts: int) -> list[tuple[subprocess.Popen[bytes], str]]:
    """Every container of every pod; three variables stand for what GKE's webhook tells them of each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    others = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(pods * len(containers))}
    others["JOBSET_RESTARTS"] = str(restarts)
    started = []
    for number in range(pods * len(containers)):
        container = containers[number % len(containers)]
        words = [word.replace("$$", "$") for word in container["command"]]
        environment = {**os.environ, **others, "JAX_PROCESS_ID": str(number)}
        environment |= {each["name"]: each["value"].replace("$$", "$") for each in container.get("env", [])}
        started.append((subprocess.Popen(words, env=environment), container["name"]))
    return started


def _end(processes: list[subprocess.Popen[bytes]], grace_s: float) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    end = time.monotonic() + grace_s
    for process in processes:
        try:
            process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()


if __name__ == "__main__":
    Cluster(Path(sys.argv[1])).control(sys.argv[2])
