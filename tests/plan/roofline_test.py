"""Seconds of a step, from bytes and the places of devices on the torus."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sttts_jax.chips import CHIPS
from sttts_jax.plan.collectives import Total
from sttts_jax.plan.roofline import roofline

CHIP = dataclasses.replace(CHIPS["TPU v5"], link=100.0, network=5.0)
AXES = ("data", "fsdp")


def _mesh(slices: int = 1) -> jax.sharding.Mesh:
    """2 x 4 devices: a slice, or two, of 2 x 2 x 2; fsdp lies along two axes of the torus."""
    places = [(slice_, x, y) for slice_ in (0, 1) for x in (0, 1) for y in (0, 1)]
    devices = [
        SimpleNamespace(coords=(x, y, 0 if slices > 1 else z), slice_index=z if slices > 1 else 0) for z, x, y in places
    ]
    return SimpleNamespace(devices=np.array(devices).reshape(2, 4), axis_names=AXES)  # type: ignore[return-value]


def _total(axes: tuple[str, ...], moved: float) -> Total:
    return Total("all-gather", "parameter", axes, 1, int(moved), moved)


def test_a_ring_takes_the_links_that_it_lies_along() -> None:
    found = roofline(CHIP, 459e12 * 2, 2.77e12, [_total(("fsdp",), 400.0), _total(("data",), 400.0)], _mesh())
    assert found.compute == pytest.approx(2) and found.hbm == pytest.approx(1)
    assert found.interconnect == {"fsdp": pytest.approx(2), "data": pytest.approx(4)}
    assert found.step == pytest.approx(6) and found.bound == "interconnect"


def test_slices_are_joined_by_the_slow_network() -> None:
    found = roofline(CHIP, 0, 0, [_total(("data",), 400.0), _total(("fsdp",), 400.0)], _mesh(slices=2))
    assert found.interconnect == {"data": pytest.approx(80), "fsdp": pytest.approx(2)}
