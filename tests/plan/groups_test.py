"""Replica groups in every form that the compiler writes, and the mesh axes that they cross."""

import numpy as np
import pytest

from sttts_jax.plan.groups import crossed_axes, replica_groups

SHAPE = {"data": 2, "fsdp": 4, "tensor": 2, "sequence": 1}


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("replica_groups={{0,8},{1,9},{2,10},{3,11},{4,12},{5,13},{6,14},{7,15}}", ("data",)),
        ("replica_groups=[8,2]<=[16]", ("tensor",)),
        ("replica_groups=[2,8]<=[16]", ("fsdp", "tensor")),
        ("replica_groups=[4,4]<=[2,4,2]T(0,2,1)", ("fsdp",)),
        ("replica_groups=mesh['a'=2,'b'=8] {'b'}", ("fsdp", "tensor")),
        ("replica_groups=mesh['a'=8,'b'=2], device_ids=([2,8]T(1,0)) {'b'}", ("data",)),
        ("replica_groups=mesh['a'=2,'b'=8] {'b':(1)4}", ("fsdp",)),
        ("replica_groups=mesh['a'=2,'b'=8] {'b':(4)2}", ("tensor",)),
        ("replica_groups={}", ("data", "fsdp", "tensor")),
        ("source_target_pairs={{0,2},{2,4},{4,6}}", ("fsdp",)),
    ],
)
def test_axes_of_groups(text: str, axes: tuple[str, ...]) -> None:
    groups = replica_groups(f"%x), channel_id=1, {text}, use_global_device_ids=true", 16)
    assert groups is not None and crossed_axes(groups, SHAPE) == axes
    assert len(np.unique(groups)) == 16 or "source" in text


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown form: replica_groups=spiral"):
        replica_groups("replica_groups=spiral", 16)
    assert replica_groups("%x), dimensions={0}", 16) is None
