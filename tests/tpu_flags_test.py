"""Defaults for the TPU compiler that a user's own flags override, set before any command runs."""

import os

import pytest

from sttts_jax.cli.main import run
from sttts_jax.tpu_flags import set_tpu_flags

OTHER = "--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000"
OURS = f"--xla_tpu_scoped_vmem_limit_kib=65536 {OTHER}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", OURS),
        ("--xla_a=1", f"--xla_a=1 {OURS}"),
        ("--xla_tpu_scoped_vmem_limit_kib=98304", f"--xla_tpu_scoped_vmem_limit_kib=98304 {OTHER}"),
        (OURS, OURS),
    ],
)
def test_the_users_flags_win(before: str, after: str) -> None:
    environment = {"LIBTPU_INIT_ARGS": before}
    set_tpu_flags(environment)
    assert environment == {"LIBTPU_INIT_ARGS": after}


def test_every_command_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "")
    seen = []
    assert run("any", lambda _: seen.append(os.environ["LIBTPU_INIT_ARGS"])) == 0
    assert seen == [OURS]
