"""Names of slices, as people type them."""

import pytest

from sttts_jax.topology import Slices, by_accelerator, by_topology, find_compiler


@pytest.mark.parametrize(
    ("accelerator", "name", "chips"),
    [
        ("v5e-256", "v5e:16x16", 256),
        ("v5litepod-8", "v5e:2x4", 8),
        ("v5e-1", "v5e:1x1", 1),
        ("v5p-8", "v5p:2x2x1", 4),
        ("v5p-16", "v5p:2x2x2", 8),
        ("v5p-32", "v5p:2x2x4", 16),
        ("v5p-128", "v5p:4x4x4", 64),
        ("v5p-256", "v5p:4x4x8", 128),
        ("v4-64", "v4:2x4x4", 32),
        ("v6e-32", "v6e:4x8", 32),
        ("tpu7x-8", "tpu7x:2x2x1", 4),
    ],
)
def test_an_accelerator_is_a_shape(accelerator: str, name: str, chips: int) -> None:
    slices = by_accelerator(accelerator)
    assert (slices.name, slices.chips) == (name, chips) and by_topology(name) == slices
    assert by_accelerator(slices.accelerator) == slices


def test_several_slices() -> None:
    slices = by_topology("v5p:2x2x2", 2)
    assert slices == Slices("v5p", (2, 2, 2), 2) and str(slices) == "2 x v5p:2x2x2" and slices.accelerator == "v5p-16"


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (by_topology, "v5p-128", "names such as v5p-128 go to --accelerator"),
        (by_topology, "v9:2x2", "of v4, v5e, v5p, v6e, tpu7x"),
        (by_topology, "v5e:4x4x4", "slices of v5e have 2 axes, such as v5e:4x8"),
        (by_accelerator, "v5p:4x4x4", "shapes such as v5p:4x4x4 go to --topology"),
        (by_accelerator, "v5p-24", "no slice surely has this name; give its shape, as in --topology v5p:4x4x4"),
        (by_accelerator, "v5p-9", "no slice surely has this name"),
    ],
)
def test_another_name_is_refused_with_the_form(read, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(text)


def test_what_the_user_set_stays() -> None:
    pytest.importorskip("libtpu")
    environment = {"TPU_ACCELERATOR_TYPE": "v6e-8"}
    find_compiler("v5p-8", environment)
    assert environment["TPU_ACCELERATOR_TYPE"] == "v6e-8" and environment["TPU_LIBRARY_PATH"].endswith("libtpu.so")
