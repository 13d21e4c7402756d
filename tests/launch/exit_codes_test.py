"""What the launchers do about an exit code, and how secrets come to the program."""

import subprocess
from pathlib import Path

import pytest

from sttts_jax import exit_codes

ROOT = Path(__file__).parents[2]


def _lib(commands: str, **variables: str) -> subprocess.CompletedProcess[str]:
    script = f"set -euo pipefail; source launch/lib.sh; {commands}"
    return subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env={"PATH": "/usr/bin:/bin", **variables}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (exit_codes.DONE, "done"),
        (exit_codes.FAILED, "stop"),
        (exit_codes.MISTAKE, "stop"),
        (exit_codes.PREEMPTED, "again"),
        (exit_codes.INTERRUPTED, "stop"),
        (exit_codes.HANG, "again"),
        (127, "stop"),  # no such command
        (137, "again"),  # SIGKILL
    ],
)
def test_verdict(code: int, verdict: str) -> None:
    assert _lib(f"verdict {code}").stdout.strip() == verdict


@pytest.mark.parametrize(
    ("codes", "final"),
    [((0, 0), 0), ((0, 137), 137), ((42, 42), 42), ((42, 137), 42), ((170, 2), 2), ((143, 1, 2), 1), ((134, 170), 170)],
)
def test_one_code_for_all_processes(codes: tuple[int, ...], final: int) -> None:
    """A mistake of one is no reason to start all again, whatever became of the others."""
    assert _lib(f"final_code {' '.join(map(str, codes))}").stdout.strip() == str(final)


def test_restarts_wait_longer_each_time_and_end() -> None:
    assert _lib("for n in 1 2 3 9; do backoff $n; done").stdout.split() == ["30", "60", "120", "600"]
    fails = "f() { echo tried; return 170; }; until_done 2 f"
    done = _lib(fails, BACKOFF_S="0")
    assert done.returncode == 170 and done.stdout.count("tried") == 3
    assert "no restart is left of 2" in done.stderr
    assert _lib("f() { echo tried; return 2; }; until_done 5 f").stdout == "tried\n"


def test_the_program_gets_the_signal_and_its_code_is_kept() -> None:
    """SIGTERM to the script: the program saves for a while, ends with 42, and is not started again."""
    program = """bash -c 'trap "sleep 0.3; exit 42" TERM; while :; do sleep 0.05; done'"""
    run = f'run_it() {{ start {program}; children=("$child"); sleep 0.3; kill -TERM $$; wait_for "$child"; }}'
    done = _lib(f"forward_signals; {run}; until_done 5 run_it", BACKOFF_S="0")
    assert done.returncode == 42 and done.stdout == ""


def test_an_env_file_is_taken_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text('# a secret\n\nTOKEN=a $HOME `b` "c" = d\nEMPTY=\n')
    file.chmod(0o600)
    done = _lib(f"load_env {file}; printenv TOKEN EMPTY")
    assert done.stdout == 'a $HOME `b` "c" = d\n\n'


@pytest.mark.parametrize(
    ("text", "mode", "said"), [("A=1\n", 0o640, "chmod 600"), ("x; A=1\n", 0o600, "line 1 is not")]
)
def test_an_env_file_that_others_read_or_that_is_none_is_refused(
    text: str, mode: int, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "env"
    file.write_text(text)
    file.chmod(mode)
    done = _lib(f"load_env {file}")
    assert done.returncode == 2 and said in done.stderr and "A=1" not in done.stderr
