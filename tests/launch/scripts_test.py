"""The scripts of launch/ and .ci/, and the constraints they install with."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(ROOT.glob("launch/*.sh")) + [ROOT / "launch/slurm.sbatch", ROOT / ".ci/run"]
LIBRARIES = {"lib.sh", "lib_tpu.sh"}
RUNNABLE = [path for path in SCRIPTS if path.parent.name == "launch" and path.name not in LIBRARIES]
# Those that make their environment themselves and need no more words.
PLAIN = [ROOT / "launch" / name for name in ("demo.sh", "test.sh")]
TRAIN = ("--", "train", "--config", "demo:k=0.5", "--config.a=('x y',)")
SLICE = ("--name", "n", "--zone", "z", "--type", "v5p-64", "--spot")
DRY = {  # what a dry run of the others takes, and what it prints among the rest
    "host.sh": ((*TRAIN,), "-m sttts_jax.cli.train --config demo:k=0.5"),
    "local.sh": (("-n", "2", *TRAIN), "JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1"),
    "tpu_vm.sh": ((*SLICE, "--delete", *TRAIN), "+ gcloud compute tpus tpu-vm create n --accelerator-type=v5p-64"),
    "queued.sh": ((*SLICE, "--bucket", "gs://b/x", *TRAIN), "+ gcloud compute tpus queued-resources create n "),
    "startup_script.sh": ((), "launch/host.sh --run-dir"),
    "shutdown_script.sh": ((), "launch/host.sh --stop"),
    "jobset.sh": (
        ("--name", "n", "--image", "i", "--topology", "v6e:4x4", "--apply", "--build", "--out", "written", *TRAIN),
        "kind: JobSet",
    ),
    "xpk.sh": (
        ("--name", "n", "--cluster", "c", "--tpu-type", "v5p-64", "--image", "i", *TRAIN),
        "+ xpk workload create --workload n --cluster c --tpu-type=v5p-64",
    ),
    "slurm.sbatch": ((*TRAIN,), "+ srun --label"),
}


def _bash(*words: object, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """With none of the scripts' variables but these: this test may run in an environment that one of them names."""
    env = {key: value for key, value in os.environ.items() if key not in {"STTTS_VENV", "PYTHON", "TEST_WORKERS"}}
    env |= variables
    return subprocess.run(["bash", *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=60, env=env)


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _constraints() -> dict[str, Version]:
    lines = (ROOT / "launch/constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkout with no environment, as far as a dry run looks at it."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_parses(script: Path) -> None:
    assert _bash("-n", script).returncode == 0


@pytest.mark.parametrize("script", [*RUNNABLE, ROOT / ".ci/run"], ids=lambda path: path.name)
def test_stops_at_the_first_failure(script: Path) -> None:
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.parametrize("script", RUNNABLE, ids=lambda path: path.name)
def test_help(script: Path) -> None:
    done = _bash(script, "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and "--dry-run" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.parametrize("script", PLAIN, ids=lambda path: path.name)
def test_dry_run_prints_commands_and_makes_nothing(script: Path, bare: Path) -> None:
    before = sorted(bare.rglob("*"))
    done = _bash(f"launch/{script.name}", "--dry-run", cwd=bare)
    assert done.returncode == 0, done.stderr
    assert "-m venv .venv" in done.stdout and "--constraint launch/constraints.txt" in done.stdout
    assert all(line.startswith("+ ") for line in done.stdout.splitlines())
    assert sorted(bare.rglob("*")) == before


def test_every_script_has_its_dry_run() -> None:
    assert set(DRY) == {path.name for path in set(RUNNABLE) - set(PLAIN)}


@pytest.mark.parametrize("name", DRY)
def test_dry_run_of_a_launcher(name: str, bare: Path) -> None:
    """With no cloud on PATH, so that one that ran a command would fail; nothing is written."""
    words, expected = DRY[name]
    before = sorted(bare.rglob("*"))
    done = _bash(f"launch/{name}", "--dry-run", *words, cwd=bare, PATH="/usr/bin:/bin", HOME=str(bare))
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout and sorted(bare.rglob("*")) == before


@pytest.mark.parametrize("name", sorted(set(DRY) - {"startup_script.sh", "shutdown_script.sh"}))
@pytest.mark.parametrize("words", [["--no-such-option"], ["--dry-run"]], ids=["unknown", "nothing"])
def test_a_launcher_says_what_is_missing(name: str, words: list[str], bare: Path) -> None:
    done = _bash(f"launch/{name}", *words, cwd=bare)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("tpu_vm.sh", "--name", "n", "--zone", "z", "--type", "tpu7x-16"), "exists on GKE alone"),
        (("tpu_vm.sh", "--name", "n", "--zone", "z", "--type", "h100"), "--type h100 is unknown"),
        (("tpu_vm.sh", *SLICE, "--slices", "2", *TRAIN), "by --queued"),
        (("tpu_vm.sh", *SLICE, "--port"), "--port needs a value"),
        (("queued.sh", *SLICE, "--bucket", "b", *TRAIN), "--bucket takes gs://BUCKET"),
        (
            ("queued.sh", *SLICE, "--bucket", "gs://b", "--secret", "TOKEN=a value", *TRAIN),
            "takes NAME=SECRET, a name",
        ),
        (("local.sh", "-n", "0", *TRAIN), "how many processes?"),
        (("host.sh", "--extra", "gpu", *TRAIN), "--extra takes tpu, cuda, aot or none"),
        (("host.sh", "--no-install", *TRAIN), "there is no .venv"),
        (("slurm.sbatch", *TRAIN), "this runs under SLURM"),
    ],
    ids=lambda part: " ".join(part[:1]) if isinstance(part, tuple) else None,
)
def test_mistakes_get_a_sentence(words: tuple[str, ...], sentence: str, bare: Path) -> None:
    done = _bash(f"launch/{words[0]}", *words[1:], cwd=bare, PATH="/usr/bin:/bin", HOME=str(bare))
    assert done.returncode == 2 and sentence in done.stderr


def test_the_tasks_of_a_node_take_all_its_gpus(bare: Path) -> None:
    """A lone task is told their numbers, one per GPU takes its own, anything else would leave some idle."""

    def dry(tasks: str) -> subprocess.CompletedProcess[str]:
        variables = {"SLURM_NTASKS_PER_NODE": tasks, "SLURM_GPUS_ON_NODE": "4"}
        return _bash("launch/slurm.sbatch", "--dry-run", *TRAIN, cwd=bare, **variables)

    assert "JAX_LOCAL_DEVICE_IDS=0,1,2,3\n" in dry("1").stdout and "JAX_LOCAL" not in dry("4").stdout
    assert dry("2").returncode == 2 and "--ntasks-per-node=4 or 1" in dry("2").stderr


def test_the_image_copies_files_that_are_there_and_let_in() -> None:
    lines = (ROOT / "launch/Dockerfile").read_text().splitlines()
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    let_in = (ROOT / "launch/Dockerfile.dockerignore").read_text().splitlines()
    assert copied and all((ROOT / name).exists() and f"!{name}" in let_in for name in copied)


def test_another_python_and_the_newest_releases_get_environments_of_their_own(bare: Path, tmp_path: Path) -> None:
    """A pyenv that keeps a 3.12 without putting it on PATH; `--newest` installs without the constraints."""
    python = tmp_path / "pyenv/versions/3.99.1/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    words = ("launch/test.sh", "--dry-run", "--python", "3.99")
    done = _bash(*words, "--newest", cwd=bare, PYENV_ROOT=f"{tmp_path}/pyenv")
    assert done.returncode == 0, done.stderr
    assert f"{python} -m venv .venv-3.99-newest" in done.stdout
    assert "--upgrade-strategy eager" in done.stdout and "constraints.txt" not in done.stdout
    tested = _bash(*words, cwd=bare, PYENV_ROOT=f"{tmp_path}/pyenv")
    assert "-m venv .venv-3.99\n" in tested.stdout and "--constraint launch/constraints.txt" in tested.stdout


@pytest.mark.parametrize("arguments", [["--python"], ["--python", "new"], ["--python", "3.98"]])
def test_a_python_that_is_not_there_is_refused(arguments: list[str], bare: Path) -> None:
    done = _bash("launch/test.sh", "--dry-run", *arguments, cwd=bare)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stdout == ""


def test_fast_leaves_out_the_heavy_markers(bare: Path) -> None:
    assert "not" not in _bash("launch/test.sh", "--dry-run", cwd=bare).stdout
    assert r"not\ slow\ and\ not\ multiprocess" in _bash("launch/test.sh", "--dry-run", "--fast", cwd=bare).stdout


@pytest.mark.parametrize("arguments", [["--sede", "1"], ["--seed"], ["--seed", "x"], ["--workdir"]])
def test_demo_refuses_what_it_does_not_know(arguments: list[str], bare: Path) -> None:
    done = _bash("launch/demo.sh", *arguments, cwd=bare)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and not (bare / ".venv").exists()


def test_named_python_that_does_not_run_is_refused(bare: Path) -> None:
    done = _bash("launch/test.sh", cwd=bare, PYTHON="no-such-python")
    assert done.returncode == 2 and "no Python 3.11 or newer in: no-such-python" in done.stderr


def test_exit_code_of_the_tests_is_passed_on(bare: Path) -> None:
    """A fake environment whose ruff fails: the scripts must end with its code and run nothing after it."""
    tools = bare / ".venv/bin"
    tools.mkdir(parents=True)
    for name, body in {"python": "exit 0", "ruff": "exit 7", "mypy": "touch reached"}.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    (bare / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", bare / ".ci")
    assert _bash(".ci/run", cwd=bare).returncode == 7
    assert not (bare / "reached").exists()


def test_every_direct_dependency_has_a_tested_version_within_its_range() -> None:
    project, tested = _project(), _constraints()
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for name in ("dev", "gcs", "aot") for text in extras[name])]
    for requirement in (Requirement(text) for text in texts if not text.startswith("sttts-jax[")):
        version = tested[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"{requirement} does not admit the tested {version}"


def test_constraints_are_names_and_versions_only() -> None:
    for line in (ROOT / "launch/constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"(#.*|[\w.-]+==[\w.+]+|)", line), line


def test_dependencies_give_ranges_not_pins() -> None:
    for text in _project()["dependencies"]:
        operators = {specifier.operator for specifier in Requirement(text).specifier}
        assert operators and not operators & {"==", "~="}, text
