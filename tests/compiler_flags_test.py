"""Defaults for the compilers of accelerators: a user's own flags win, and no unknown one reaches a compiler."""

import os

import pytest

from sttts_jax import compiler_flags
from sttts_jax.cli.main import run
from sttts_jax.compiler_flags import FLAGS, GPU, TPU, compiler_library, known_flags, set_compiler_flags
from tests.aot import run_for_tpu

WHOLE = "--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000"
V6E = f"--xla_tpu_scoped_vmem_limit_kib=65536 {WHOLE} --xla_enable_async_all_gather=true"
COMPILE = """
import os
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from sttts_jax.compiler_flags import set_compiler_flags

set_compiler_flags(sys.argv[1].partition(":")[0])
device = topologies.get_topology_desc(sys.argv[1], platform="tpu").devices[0]
x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=jax.sharding.SingleDeviceSharding(device))
jax.jit(lambda x: x @ x).lower(x).compile()
print(os.environ["LIBTPU_INIT_ARGS"])
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", V6E),
        ("--xla_tpu_enable_async_all_to_all=true", f"--xla_tpu_enable_async_all_to_all=true {V6E}"),
        (V6E.replace("65536", "98304"), V6E.replace("65536", "98304")),
        ("--noxla_enable_async_all_gather", f"--noxla_enable_async_all_gather {V6E.rpartition(' ')[0]}"),
        (V6E, V6E),
    ],
)
def test_the_users_flags_win(before: str, after: str) -> None:
    environment = {TPU: before}
    set_compiler_flags("v6e", environment)
    assert environment == {TPU: after}


def test_several_slices_have_flags_of_their_own() -> None:
    environment = {"MEGASCALE_NUM_SLICES": "2"}
    set_compiler_flags("v6e", environment)
    assert environment[TPU].startswith(V6E) and environment[TPU].count("data_parallel") == 2


@pytest.mark.parametrize("platform", FLAGS)
def test_the_installed_compilers_know_every_flag(platform: str) -> None:
    library = compiler_library(GPU if platform == "gpu" else TPU)
    if library is None:
        pytest.skip("not installed")
    names = [flag.name for flag in FLAGS[platform]]
    assert known_flags(library, names) == set(names) and all(flag.why for flag in FLAGS[platform])


@pytest.mark.skipif(compiler_library(TPU) is None, reason="needs libtpu: no TPU is needed")
def test_what_a_compiler_does_not_know_never_reaches_it(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setitem(FLAGS, "v6e", (*FLAGS["v6e"], compiler_flags.Flag("xla_of_tomorrow", "1", "")))
    environment: dict[str, str] = {}
    set_compiler_flags("v6e", environment)
    assert environment == {TPU: V6E} and "does not know xla_of_tomorrow" in caplog.text
    with pytest.raises(ValueError, match="LIBTPU_INIT_ARGS names xla_mine, which .*libtpu.so does not know"):
        set_compiler_flags("v6e", {TPU: "--xla_mine=1"})


def test_the_accelerator_is_found_without_touching_it(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = compiler_flags.platform_here
    monkeypatch.setattr(compiler_flags, "_chip_on_the_bus", lambda: "")
    assert platform({"TPU_ACCELERATOR_TYPE": "v5litepod-16"}) == "v5e"
    assert platform({"TPU_ACCELERATOR_TYPE": "v5p-128", "JAX_PLATFORMS": "cpu"}) == ""
    monkeypatch.setattr(compiler_flags, "_chip_on_the_bus", lambda: "tpu7x")
    assert platform({"JAX_PLATFORMS": "tpu,cpu"}) == "tpu7x"


def test_every_command_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TPU, "")
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v6e-4")
    monkeypatch.delenv("JAX_PLATFORMS")
    seen = []
    assert run("any", lambda _: seen.append(os.environ[TPU])) == 0
    assert seen == [V6E]


@pytest.mark.aot_tpu
def test_a_compiler_takes_the_largest_set() -> None:
    (flags,) = run_for_tpu(COMPILE, "v5e:2x2")
    assert flags.split() == [f"--{flag.name}={flag.value}" for flag in FLAGS["v5e"]]
