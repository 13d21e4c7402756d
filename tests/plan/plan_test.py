"""`sttts-jax plan`: the step of `train`, compiled for devices that are not there, and every way in which it ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from sttts_jax.cli import plan as command
from sttts_jax.cli.main import run
from sttts_jax.paths import write_json
from sttts_jax.plan.plan import Plan, plan_run
from sttts_jax.plan.report import describe, table_of
from sttts_jax.plan.target import Target, make_target
from sttts_jax.train.config import defaults

ROWS = 20  # no size of the model but rows over 4 devices
# Large enough for parameters to be split, small enough to compile in seconds.
SIZES = {
    "vit": {"width": 256, "mlp": 512, "heads": 2, "head_dim": 128},
    "llm": {"width": 256, "mlp": 1024, "layers": 2, "vocab": 2048},
}


def _words(*more: str) -> list[str]:
    sizes = [
        f"--config.model.overrides.{part}.{name}={size}" for part, of in SIZES.items() for name, size in of.items()
    ]
    fixed = ["--config.model.dtype=bfloat16", f"--config.data.rows={ROWS}"]
    return ["--config", "demo", *fixed, *sizes, *more]


@pytest.fixture(scope="module", name="found")
def _found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The one plan for a TPU that these tests look at."""
    pytest.importorskip("libtpu")
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--topology", "v5p:2x2x1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")  # what the compiler makes for a TPU is what counts
        patch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=16384")  # with our 64 MiB it takes longer
        assert run("plan", command.main, _words(*mesh, "--json", str(file))) == 0
    (plan,) = json.loads(file.read_text())["plans"]
    return plan


@pytest.mark.slow
@pytest.mark.aot_tpu
def test_no_activation_travels(found: dict[str, Any]) -> None:
    """Every collective of the step is a parameter's, a gradient's or a single number's; none comes from packing."""
    carried = {one["carries"] for one in found["listing"]}
    assert {"parameter", "gradient", "scalar"} <= carried <= {"parameter", "gradient", "scalar", "lookup"}
    rows = {ROWS // parts for parts in (1, 2, 4)}
    others = [one for one in found["listing"] if one["carries"] != "lookup"]
    assert not [one for one in others if rows & set(one["dims"])]
    pruning = [one for one in others if "/scorer/" in one["place"]]
    assert pruning and {one["carries"] for one in pruning} <= {"parameter", "gradient"}
    assert all(one["axes"] and set(one["axes"]) <= {"data", "fsdp"} for one in found["listing"])
    gathers = [one for one in others if one["kind"] == "all-gather" and one["carries"] == "parameter"]
    assert {one["dtype"] for one in gathers} == {"bf16"}


@pytest.mark.slow
@pytest.mark.aot_tpu
def test_memory_work_and_time_of_a_step(found: dict[str, Any]) -> None:
    assert found["fits"] and found["devices"] == 4 and found["kernels"] == "tpu" and found["device_kind"] == "TPU v5"
    kinds = ("parameters", "optimizer", "batch", "activations", "temporaries", "program")
    assert sum(found[f"{kind}_gib"] for kind in kinds) == pytest.approx(found["peak_gib"])
    assert all(found[f"{kind}_gib"] > 0 for kind in kinds) and found["peak_gib"] < found["hbm_gib"] == 95
    assert found["optimizer_gib"] == pytest.approx(2 * found["parameters_gib"], rel=0.05)
    assert 0.5 < found["compiled_flops"] / found["flops"] < 2
    assert found["step_seconds"] == max(found["compute_s"], found["hbm_s"], sum(found["interconnect_s"].values()))
    assert found["compiler_s"] > found["compute_s"] > 0 and found["compile_s"] > found["trace_s"] / 10 > 0
    assert found["advice"] == []


@pytest.mark.slow
@pytest.mark.aot_tpu
def test_what_people_read(found: dict[str, Any], tmp_path: Path) -> None:
    plan = Plan(**found)
    lines = describe(plan).splitlines()
    assert lines[0].startswith("k = 0.5 on v5p:2x2x1: 4 x TPU v5, data=2 x fsdp=2, 20 rows of 201 tokens, remat=none")
    assert lines[1].startswith(f"fits: {plan.peak_gib:.2f} of 95.00 GiB a device: parameters")
    assert sum(line.startswith(("all-gather ", "all-reduce ")) for line in lines) >= 3
    write_json(tmp_path / "one.json", {"config": "demo", "plans": [found]})
    table = table_of(tmp_path).splitlines()
    assert len(table) == 3 and table[2].startswith("| demo | 0.5 | 20 x 201 | v5p:2x2x1 | data=2,fsdp=2 | yes |")
    assert table[0].count("|") == table[2].count("|")


def test_limits_end_with_a_sentence() -> None:
    config = defaults()
    with pytest.raises(ValueError, match=r"k = 0.5 on cpu: not compiled after 0.3 s, which is --timeout; give more"):
        next(plan_run(config, Target("cpu"), timeout_s=0.3))
    with pytest.raises(ValueError, match=r"takes more than --memory_gib=0.001; give more"):
        next(plan_run(config, Target("cpu"), memory_gib=0.001))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of --topology such as v5p:4x4x4, --accelerator such as v5p-128"),
        (["--topology", "v5p:2x2x1", "--device", "cpu"], "give one of --topology"),
        (["--topology", "v5p-8"], "names such as v5p-128 go to --accelerator"),
        (["--device", "tpu"], "--device tpu is neither cpu nor gpu"),
        (["--topology", "v5p:2x2x1", "--devices", "4"], "--devices is of --device"),
        (["--device", "cpu", "--slices", "2"], "--slices is of TPUs"),
        (["--device", "cpu", "--json", "/"], "--json / is a directory"),
        (["--device", "cpu", "--config.data.row=3"], "the config has no key"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", command.main, ["--config", "demo", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_targets() -> None:
    assert make_target(accelerator="v5p-32", slices=2).name == "2 x v5p:2x2x4"
    assert Target.from_json(json.loads(json.dumps(make_target(topology="v6e:4x4").as_json()))) == make_target(
        topology="v6e:4x4"
    )


def test_a_tpu_machine_plans_for_other_slices_than_its_own() -> None:
    pytest.importorskip("libtpu")
    mine = "--xla_tpu_scoped_vmem_limit_kib=16384"
    environment = {"TPU_ACCELERATOR_TYPE": "v6e-8", "MEGASCALE_NUM_SLICES": "2", "LIBTPU_INIT_ARGS": mine}
    make_target(accelerator="v5p-16").set_environment(environment)
    assert environment["TPU_ACCELERATOR_TYPE"] == "v5p-16" and environment["JAX_PLATFORMS"] == "cpu"
    assert "MEGASCALE_NUM_SLICES" not in environment and environment["LIBTPU_INIT_ARGS"].split()[0] == mine
