"""Constraints are really in the program, misspelt names raise, and parameters lie where the table says."""

import contextlib
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from sttts_jax import dims, sharding
from sttts_jax.mesh import make_mesh

NAMES = {constant: name for constant, name in vars(dims).items() if constant.isupper()}


class Mlp(nn.Module):
    """Enough of a model: two matrices, a norm-like vector, a leaf without names."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), (dims.EMBED, dims.MLP))
        x = nn.Dense(16, kernel_init=init, use_bias=False, name="up")(x)
        x = sharding.constrain(x, dims.ACT_BATCH, dims.ACT_LENGTH, dims.ACT_MLP)
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), (dims.MLP, dims.EMBED))
        x = nn.Dense(6, kernel_init=init, use_bias=False, name="down")(x)
        return x * self.param("gain", nn.initializers.ones, (6,))


@pytest.fixture(name="mesh")
def _mesh() -> jax.sharding.Mesh:
    return make_mesh({"data": 2, "fsdp": 2, "tensor": 2})


def boxed_state() -> dict:
    def init() -> dict:
        params = Mlp().init(jax.random.key(0), jnp.zeros((4, 3, 8)))["params"]
        return {"params": params, "opt": optax.adam(1e-3).init(params)}

    return jax.eval_shape(init)


def test_every_name_of_the_glossary_has_a_rule() -> None:
    assert set(sharding.RULES) == set(NAMES.values())


def test_every_name_of_the_glossary_is_used() -> None:
    root = Path(sharding.__file__).parent
    files = [file for file in root.rglob("*.py") if file.name not in ("dims.py", "sharding.py")]
    words = set(re.findall(r"\w+", " ".join(file.read_text() for file in files)))
    assert set(NAMES) <= words


def test_constraint_is_in_the_lowered_module(mesh: jax.sharding.Mesh) -> None:
    with jax.set_mesh(mesh):
        text = jax.jit(Mlp().init_with_output).lower(jax.random.key(0), jnp.zeros((4, 3, 8))).as_text()
    assert "sdy.sharding_constraint" in text and '[{"data", "fsdp"}, {}, {"tensor"}]' in text


def test_identity_without_a_mesh() -> None:
    x = jnp.ones((4, 3))
    assert sharding.constrain(x, dims.ACT_BATCH, None) is x


@pytest.mark.parametrize("under_mesh", [False, True])
def test_misspelt_name_raises(mesh: jax.sharding.Mesh, under_mesh: bool) -> None:
    context = jax.set_mesh(mesh) if under_mesh else contextlib.nullcontext()
    with context, pytest.raises(ValueError, match=r"\['act_bacth'\] are not in sharding.RULES"):
        sharding.constrain(jnp.ones((4, 3)), "act_bacth", None)


def test_wrong_number_of_names_raises() -> None:
    with pytest.raises(ValueError, match="got 1 axis names"):
        sharding.constrain(jnp.ones((4, 3)), dims.ACT_BATCH)


def test_indivisible_and_repeated_axes_are_dropped() -> None:
    sizes = {"data": 2, "fsdp": 2, "tensor": 4}
    assert sharding.mesh_axes((6, 5), (dims.ACT_BATCH, dims.ACT_MLP), sizes) == (("data",), None)
    assert sharding.mesh_axes((8, 8), (dims.SCORER_MLP, dims.SCORER_MLP), sizes) == (("tensor",), None)
    assert sharding.mesh_axes((8, 8), (dims.ACT_BATCH, None), {"data": 1, "fsdp": 1}) == (None, None)


def test_inside_shard_map_the_manual_axes_are_left_alone(mesh: jax.sharding.Mesh) -> None:
    def body(x: jax.Array) -> jax.Array:
        return sharding.constrain(x, dims.ACT_BATCH, dims.ACT_MLP) * 2

    with jax.set_mesh(mesh):
        spec = P(("data", "fsdp"))
        mapped = jax.shard_map(body, in_specs=spec, out_specs=spec, axis_names={"data", "fsdp"})
        assert (jax.jit(mapped)(jnp.ones((8, 4))) == 2).all()


def test_state_shardings_follow_the_table(mesh: jax.sharding.Mesh) -> None:
    shardings = sharding.shardings_of(boxed_state(), mesh, min_size=1)
    assert shardings["params"]["up"]["kernel"].spec == P(("fsdp",), ("tensor",))
    assert shardings["params"]["down"]["kernel"].spec == P(("tensor",), ("fsdp",))
    assert shardings["params"]["gain"].spec == P()
    assert shardings["opt"][0].mu["up"]["kernel"].spec == P(("fsdp",), ("tensor",))
    assert shardings["opt"][0].count.spec == P()


def test_tiny_leaves_are_copied(mesh: jax.sharding.Mesh) -> None:
    shardings = sharding.shardings_of(boxed_state(), mesh)
    assert all(leaf.spec == P() for leaf in jax.tree.leaves(shardings))


def test_misspelt_parameter_name_raises(mesh: jax.sharding.Mesh) -> None:
    tree = {"w": nn.LogicallyPartitioned(jax.ShapeDtypeStruct((4,), jnp.float32), ("embedd",))}
    with pytest.raises(ValueError, match=r"\['embedd'\]"):
        sharding.shardings_of(tree, mesh)


def test_sharded_init_equals_local_init_and_lies_as_planned(mesh: jax.sharding.Mesh) -> None:
    def init() -> dict:
        return nn.meta.unbox(Mlp().init(jax.random.key(0), jnp.zeros((4, 3, 8)))["params"])

    shardings = sharding.shardings_of(boxed_state()["params"], mesh, min_size=1)
    with jax.set_mesh(mesh):
        params = jax.jit(init, out_shardings=shardings)()
    assert params["up"]["kernel"].addressable_shards[0].data.shape == (4, 8)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, init()))


def test_abstract_state_and_table(mesh: jax.sharding.Mesh) -> None:
    abstract = sharding.abstract_state(boxed_state(), mesh, min_size=1)
    assert abstract["params"]["up"]["kernel"].sharding.spec == P(("fsdp",), ("tensor",))
    text = sharding.state_table(boxed_state(), mesh, min_size=1)
    assert "params/up/kernel" in text and "fsdp,tensor" in text and "total on one device" in text
    assert "no axis names" in text
