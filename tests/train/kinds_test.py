"""Every number of every section is refused, before a device is touched, when it is none or out of range."""

import dataclasses
import math
from typing import Any

import pytest

from sttts_jax.train.config import SCALARS, SECTIONS, RunConfig, defaults
from sttts_jax.train.kinds import field_kinds

TREE = defaults().to_dict()
NUMBERS = [
    (name, field, kinds)
    for name, kind in SECTIONS.items()
    for field, kinds in field_kinds(kind).items()
    if field in TREE[name] and {int, float} & set(kinds)
]
# What cannot be, beside what is no number at all; where a number below 0 has a meaning, one further down.
LOWEST = {
    ("distributed", "processes"): -2,
    ("distributed", "process_id"): -2,
    ("mesh", "data"): -2,
    ("mesh", "fsdp"): -2,
}
LOWEST |= {("mesh", "tensor"): -2, ("mesh", "sequence"): -2}
LOWEST |= dict.fromkeys((("watchdog", "startup_s"), ("watchdog", "step_s"), ("watchdog", "save_s")), -2)


def _build(section: str, field: str, value: Any) -> None:
    tree = {**TREE, section: {**TREE[section], field: value}}
    tree["model"] = {**tree["model"], "lora_rank": tree["model"]["lora_rank"]}
    RunConfig.build(tree)


@pytest.mark.parametrize(("section", "field", "kinds"), NUMBERS, ids=lambda x: x if isinstance(x, str) else "")
def test_what_is_no_number_is_named(section: str, field: str, kinds: tuple[type, ...]) -> None:
    wrong: list[Any] = ["3", True, [3], math.nan, math.inf, -math.inf]
    wrong += [] if type(None) in kinds else [None]
    wrong += [2.5] if float not in kinds else []
    for value in wrong:
        with pytest.raises(ValueError, match=rf"^{section}\.{field}=.* must be (a whole|a finite) number"):
            _build(section, field, value)


@pytest.mark.parametrize(("section", "field", "kinds"), NUMBERS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_number_out_of_range_is_refused(section: str, field: str, kinds: tuple[type, ...]) -> None:
    with pytest.raises(ValueError):
        _build(section, field, LOWEST.get((section, field), -1))


@pytest.mark.parametrize("name", SCALARS)
def test_keys_outside_of_sections_have_kinds_too(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.* must be "):
        RunConfig.build({**TREE, name: math.nan})


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_that_is_none_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=3 must be a section of keys and values"):
        RunConfig.build({**TREE, name: 3})


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("optimizer.beta2", 1.0, "optimizer.beta2=1.0 must be from 0 to below 1"),
        ("optimizer.eps", 0.0, "optimizer.eps=0.0 must be at least 1e-30"),
        ("data.seed", 2**32, "data.seed=4294967296 must be from 0 to 4000000"),
        ("pruning.refill", 1, "pruning.refill=1 must be True or False"),
        ("evaluation.tasks", "shapes_video_qa", "evaluation.tasks='shapes_video_qa' must be a list of texts"),
        ("data.sources", (("x", math.nan),), "data.sources: x has weight nan; give a positive number"),
        ("data.sources", 5, "data.sources=5 must be a list of"),
        ("data.sources", (("x", "1.0"),), "data.sources: x has weight '1.0'; give a positive number"),
        ("data.sources", ((1, 2, 3, 4, 5),), "data.sources: (1, 2, 3, 4, 5) must be (name, weight, split)"),
        ("model.overrides", {"vit": {"norm_eps": math.nan}}, "VitConfig.norm_eps is nan; it must be positive"),
        ("model.overrides", 3, "model.overrides=3 must be a section"),
    ],
)
def test_bad_values_are_one_sentence(path: str, value: Any, sentence: str) -> None:
    section, field = path.split(".")
    with pytest.raises(ValueError) as error:
        _build(section, field, value)
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("given", ["jsonl:a.jsonl", ("jsonl:a.jsonl",), ("jsonl:a.jsonl", 1.0), [["jsonl:a.jsonl", 1]]])
def test_one_source_may_stand_alone(given: Any) -> None:
    (source,) = RunConfig.build({**TREE, "data": {**TREE["data"], "sources": given}}).data.sources
    assert dataclasses.astuple(source)[:3] == ("jsonl:a.jsonl", 1.0, "train")
