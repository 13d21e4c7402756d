"""`bench suite`: on a CPU end to end at tiny sizes; its budget, its file, what it leaves out and says."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from sttts_jax.bench.compare import ModelRow
from sttts_jax.bench.speedup import SpeedupRow
from sttts_jax.bench.suite import Part, parts_of, run_suite
from sttts_jax.bench.targets import targets
from sttts_jax.bench.testbed import Testbed, fitted, testbed
from sttts_jax.cli import bench
from sttts_jax.cli.main import run
from sttts_jax.models.presets import preset

HALF, THIRD = Fraction(1, 2), Fraction(3, 10)
NAMES = [
    "training, 4 frames x 2, 8 text tokens",
    "inference, 8 frames against 4 unpruned",
    "one ViT block, 4 frames",
    "training, 4 frames x 2, 24 text tokens",
]


def _row(**changes: Any) -> ModelRow:
    fields: dict[str, Any] = dict(what="train", k=0.5, frames=64, distribution="uniform", packing="staircase")
    fields |= dict(pass_="train", speedup=1.9, spread=(1.8, 2.0), bound=2.0, share=0.95, peak_gib=0.1, peak_ratio=0.7)
    fields |= dict(compilations=1, compile_s=1.0, seconds=0.1, seconds_spread=(0.1, 0.1), flops=1e9, flops_per_s=1e10)
    fields |= dict(mfu=0.5, baseline_frames=64, batch=1, videos=2, text=200, length=100, parameters=10)
    return ModelRow(**{**fields, **changes})


def _part(name: str, rows: Sequence[SpeedupRow] | Exception, **changes: Any) -> Part:
    def measure(fractions: Sequence[Fraction], ceiling: float, say: Any) -> Any:
        if isinstance(rows, Exception):
            raise rows
        chosen = [row for row in rows if Fraction(str(row.k)) in fractions]
        return chosen, [_row(packing="none", k=0.0)]

    part = Part(name, "train", [HALF, THIRD], measure, 10.0, (2, 1), (0, 0), 5)
    return dataclasses.replace(part, **changes)


def _run(parts: Sequence[Part], budget_s: float, path: pathlib.Path | None = None, now: Any = lambda: 0.0) -> Any:
    return run_suite(
        [HALF, THIRD], budget_s, path, "test", lambda line: None, now=now, list_parts=lambda scene, fractions: parts
    )


@pytest.mark.slow
def test_end_to_end(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, plot = tmp_path / "suite.json", tmp_path / "suite.png"
    words = ["suite", "--k", "0.5", "--budget_s", "30", "--json", str(path), "--plot", str(plot)]
    assert run("bench", bench.main, words) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("no accelerator: tiny shapes run in the place of Molmo2-4B's")
    record = json.loads(path.read_text())
    assert record["preset"] == "tiny" and not record["whole"] and record["targets"] == [] and record["said"]
    # The budget holds the first part anywhere; whatever it does not hold is listed.
    done, skipped = ([part[key] for part in record[where]] for where, key in (("parts", "name"), ("skipped", "part")))
    assert done[0] == NAMES[0] and sorted(done + skipped) == sorted(NAMES)
    assert all("of the budget are left" in part["reason"] for part in record["skipped"])
    assert all(f"left out: {name}, k = 0.5" in shown for name in skipped)
    assert {row["part"] for row in record["rows"]} == {row["part"] for row in record["baselines"]} == set(done)
    contract = {"what", "k", "frames", "distribution", "packing", "pass", "speedup", "bound", "share", "peak_gib"}
    assert all(set(row) >= contract | {"compilations"} for row in record["rows"] + record["baselines"])
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_what_the_budget_does_not_hold_is_listed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "suite.json"
    rows = [_row(k=0.5, compile_s=20.0), _row(k=0.3, compile_s=20.0)]
    # Two programs and one a fraction: 40 s at 10 s each, as guessed; then 60 s for one fraction at 20 s, as seen.
    record = _run([_part("first", rows), _part("second", rows), _part("third", rows, compile_s=99.0)], 65, path)
    assert [part["name"] for part in record.parts] == ["first", "second", "third"]
    assert [(name, row.k) for name, row in record.named] == [
        ("first", 0.5),
        ("first", 0.3),
        ("second", 0.5),
        ("third", 0.5),
    ]
    assert [(one["part"], one["what"]) for one in record.skipped] == [("second", "k = 0.3"), ("third", "k = 0.3")]
    assert "65 s of the budget are left and it would take about 80" in record.skipped[0]["reason"]
    assert json.loads(path.read_text())["skipped"] == record.skipped
    none = _run([_part("first", rows)], 5)
    assert none.parts == none.rows == [] and none.skipped[0]["what"] == "k = 0.5, 0.3"


def test_a_run_that_is_cut_keeps_what_it_has(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "suite.json"
    with pytest.raises(KeyError):
        _run([_part("first", [_row()]), _part("second", KeyError("cut"))], 100, path)
    kept = json.loads(path.read_text())
    assert [row["part"] for row in kept["rows"]] == ["first"] and kept["rows"][0]["k"] == 0.5


def test_a_part_that_does_not_fit_the_device_is_left_out() -> None:
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.\nmore")
    record = _run([_part("first", full), _part("second", [_row()])], 100)
    assert [part["name"] for part in record.parts] == ["second"]
    assert record.skipped[0]["reason"].endswith("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.")
    smaller = _part("first, half", [_row(speedup=1.0)])
    record = _run([_part("first", full, smaller=lambda: smaller), _part("second", [_row()])], 100)
    assert [part["name"] for part in record.parts] == ["first, half", "second"] and record.partial == {"first, half"}
    record.head["whole"] = True
    assert [one["value"] for one in record.targets()] == [1.9, 0.5]  # of the second alone: speed-up and MFU
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        _run([_part("first", jax.errors.JaxRuntimeError("INTERNAL: no"))], 100)


def _accelerator() -> Testbed:
    model = preset("molmo2-4b")
    return Testbed(False, "molmo2-4b", jnp.bfloat16, "xla", model, model, 64, (200, 2250), True, ())


@pytest.mark.parametrize(
    ("gib", "blocks", "sentence"),
    [
        (132, (25, 36, 25), "training all of molmo2-4b takes about 97 of 132 GiB: nothing is left out"),
        (74, (12, 18, 25), "so 12 of 25 ViT and 18 of 36 language model blocks are trained, with 75,968 of 151,936"),
    ],
)
def test_as_much_of_the_model_as_the_device_holds(gib: float, blocks: tuple[int, ...], sentence: str) -> None:
    found = fitted(_accelerator(), gib)
    assert (found.trained.vit.layers, found.trained.llm.layers, found.served.vit.layers) == blocks
    assert sentence in found.said[0] and len(found.said) == 1
    assert found.whole == (blocks[0] == 25)
    with pytest.raises(ValueError, match="the device holds 2.0 GiB, too few for an eighth of the model"):
        fitted(_accelerator(), 2)


def test_the_parts_of_an_accelerator_and_of_a_cpu() -> None:
    fractions = [HALF, THIRD]
    names = [part.name for part in parts_of(_accelerator(), fractions)]
    assert names == [
        "training, 64 frames x 2, 200 text tokens",
        "inference, 128 frames against 64 unpruned",
        "one ViT block, 64 frames",
        "training, 64 frames x 2, 2250 text tokens",
    ]
    assert [part.name for part in parts_of(testbed(), fractions)] == NAMES
    half = parts_of(_accelerator(), fractions)[0].smaller
    assert half is not None and half().name.endswith("200 text tokens, 12 ViT and 18 language model blocks")
    # All of it in ten minutes of a device with 700 TFLOP/s in matrix products.
    whole = parts_of(_accelerator(), [HALF, THIRD, Fraction(2, 5)])
    assert sum(part.seconds(part.fractions, part.compile_s, 0.35 * 700e12) for part in whole) < 600


def test_targets_are_said_whether_reached_or_not() -> None:
    rows = [
        _row(k=0.5, speedup=1.81),
        _row(k=0.3, speedup=1.30),
        _row(text=2250, share=0.96),
        _row(what="prefill", frames=128, baseline_frames=64, speedup=0.9),
        _row(what="decode"),
    ]
    found = targets(rows, [_row(packing="none", mfu=0.55), _row(packing="none", text=2250, mfu=0.4)])
    assert [one["reached"] for one in found] == [True, False, True, False, True, False]
    assert found[0]["wanted"] == "at least 1.8" and found[3]["value"] == pytest.approx(1 / 0.9)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--budget_s", "0"], "--budget_s 0.0 must be at least 1"),
        (["--k", "1"], "--pruned_fraction=1 is out of range"),
        (["--json", "."], "--json . is a directory"),
        (["--plot", "a.gif"], "--plot a.gif must end in"),
    ],
)
def test_bad_arguments_are_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STTTS_DEBUG", raising=False)
    assert run("bench", bench.main, ["suite", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sttts-jax bench: error: ") and sentence in error and error.count("\n") == 1
