"""Configs told as changes of a preset: there and back, and what cannot be is refused."""

import dataclasses
import json

import pytest

from sttts_jax.models.overrides import overrides_of, with_overrides
from sttts_jax.models.presets import PRESETS, preset


@pytest.mark.parametrize("base", PRESETS)
@pytest.mark.parametrize("name", PRESETS)
def test_any_config_can_be_told_as_changes_of_any_other(name: str, base: str) -> None:
    """Plain JSON, and nothing when nothing differs."""
    changes = json.loads(json.dumps(overrides_of(preset(name), base)))
    assert with_overrides(preset(base), changes) == preset(name)
    assert bool(changes) == (name != base)


def test_yarn_can_be_changed_in_part_given_whole_or_removed() -> None:
    olmo, qwen = preset("molmo2-o-7b"), preset("molmo2-4b")
    changed = with_overrides(olmo, {"llm": {"yarn": {"factor": 4, "layers": [3, 7]}}}).llm.yarn
    assert olmo.llm.yarn is not None
    assert changed == dataclasses.replace(olmo.llm.yarn, factor=4, layers=(3, 7))
    assert with_overrides(olmo, {"llm": {"yarn": None}}).llm.yarn is None
    whole = {**dataclasses.asdict(olmo.llm.yarn), "layers": [0]}
    assert with_overrides(qwen, {"llm": {"yarn": whole}}).llm.yarn == dataclasses.replace(olmo.llm.yarn, layers=(0,))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lm": {}}, "model.overrides has no key 'lm'; did you mean 'llm'"),
        ({"vit": {"widht": 8}}, "model.overrides.vit has no key 'widht'; did you mean 'width'"),
        ({"llm": 3}, "must be a mapping of fields"),
        ({"llm": {"layers": "2"}}, r"model.overrides.llm.layers='2' must be of the kind of 3 \(int\)"),
        ({"llm": {"layers": True}}, "must be of the kind of 3"),
        ({"vit": {"feature_layers": ["1"]}}, r"feature_layers=\('1',\) must be of the kind of"),
        ({"vit": {"grid": [3]}}, r"grid=\(3,\) must be of the kind of \(6, 6\)"),
        ({"llm": {"tied": 1}}, "must be of the kind of True"),
        ({"llm": {"yarn": {"factor": 2.0}}}, "must be None or have exactly the keys factor, attention_factor"),
        ({"llm": {"kv_heads": 3}}, "must be a multiple of kv_heads 3"),
        ({"vit": {"feature_layers": [9]}}, "must name blocks"),
    ],
)
def test_overrides_that_cannot_be_are_refused(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_overrides(preset("tiny"), overrides)
