"""The ViT on every platform's kernels: the same as on slots, alone and on a mesh, and it compiles for a TPU slice."""

import functools
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sttts_jax.mesh import make_mesh
from sttts_jax.models.config import VitConfig
from sttts_jax.models.vit import Vit
from sttts_jax.ops.attention import frames as attention
from sttts_jax.pruning.config import PruneConfig
from sttts_jax.pruning.pack import unpack_cells
from tests.aot import run_for_tpu
from tests.models.vit_test import CFG, FRAMES, MIX, RAGGED, _assert_close, _capacity, _params, _patches
from tests.pruning.cases import frame_rows


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "attend_stream_tpu", functools.partial(attention.attend_stream_tpu, interpret=True))


def _run(cfg: VitConfig, prune: PruneConfig, kernels: str, patches: jax.Array) -> Any:
    """((loss, kept cells), gradients of parameters and patches) of some task on the features."""
    model, rows = Vit(cfg, prune, attention=kernels), frame_rows(*MIX, frames=patches.shape[1])
    weights = np.random.default_rng(5).standard_normal(2 * cfg.width).astype(np.float32)
    filled = cfg.cell_grid.filled

    def loss(params: Any, patches: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = model.apply({"params": params}, patches, rows, _capacity(cfg, prune))
        features = unpack_cells(out.features, out.kept)
        if filled is not None:
            features = jnp.where(filled[:, :, None], features, 0)
        return jnp.sum(jnp.sin(features) * weights), out.kept.mask

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(_params(cfg), patches)


@pytest.mark.parametrize("cfg", [CFG, RAGGED], ids=["divides", "ragged"])
@pytest.mark.parametrize("method", ["scorer", "none"])
@pytest.mark.parametrize("kernels", ["cpu", "tpu"])
def test_kernels_for_streams_equal_slots(cfg: VitConfig, method: str, kernels: str) -> None:
    patches, prune = _patches(cfg, len(MIX)), PruneConfig(method=method)
    (want, kept), want_grads = _run(cfg, prune, "xla", patches)
    (got, got_kept), grads = _run(cfg, prune, kernels, patches)
    np.testing.assert_array_equal(got_kept, kept)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    _assert_close(grads, want_grads)


@pytest.mark.parametrize("kernels", ["cpu", "tpu"])
@pytest.mark.parametrize("axis", ["tensor", "sequence"])
def test_on_a_mesh_each_device_runs_the_kernel_on_its_own_rows_frames_and_heads(axis: str, kernels: str) -> None:
    patches, prune = _patches(CFG, len(MIX)), PruneConfig()
    patches = jnp.pad(patches, ((0, 0), (0, FRAMES % 2), *[(0, 0)] * 3))  # frames that two devices can share
    (want, kept), want_grads = _run(CFG, prune, kernels, patches)
    mesh = make_mesh({"data": 3, axis: 2}, jax.devices()[:6])
    with jax.set_mesh(mesh):
        sharded = jax.device_put(patches, NamedSharding(mesh, PartitionSpec("data")))
        (got, got_kept), grads = _run(CFG, prune, kernels, sharded)
    np.testing.assert_array_equal(got_kept, kept)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    _assert_close(grads, want_grads)


COMPILE = textwrap.dedent(
    """
    import re, sys
    import jax, jax.numpy as jnp
    import flax.linen as nn
    from jax.experimental import topologies
    from jax.sharding import NamedSharding, PartitionSpec
    from sttts_jax.bench.sizes import bench_vit
    from sttts_jax.mesh import make_mesh
    from sttts_jax.models.vit import Vit
    from sttts_jax.pruning.config import PruneConfig
    from sttts_jax.pruning.frame_rows import FrameRows

    cfg, _ = bench_vit("molmo2-4b", reduce=False, layers=4, width=144, heads=2, head_dim=72, mlp=512)
    mesh = make_mesh({"data": 4}, topologies.get_topology_desc(sys.argv[1], platform="tpu").devices)
    rows, frames, capacity = 4, 4, 2 * 81
    vit = Vit(cfg, PruneConfig(), jnp.bfloat16, "attention", "tpu")
    by_row = NamedSharding(mesh, PartitionSpec("data"))
    shape = lambda *s, dtype=jnp.int32: jax.ShapeDtypeStruct((rows, frames, *s), dtype, sharding=by_row)
    args = shape(81, 9, 588, dtype=jnp.bfloat16), FrameRows(shape(), shape(dtype=bool))

    def loss(params, patches, rows):
        return vit.apply(params, patches, rows, capacity).features.astype(jnp.float32).sum()

    key = jax.random.key(0)
    with jax.set_mesh(mesh):
        params = nn.unbox(jax.eval_shape(lambda k, *a: vit.init(k, *a, capacity), key, *args))
        text = jax.jit(jax.value_and_grad(loss)).lower(params, *args).compile().as_text()
    kinds = set(re.findall(r" (all-gather|all-to-all|collective-permute|all-reduce)(?:-start)?[(]", text))
    print(text.count('custom_call_target="tpu_custom_call"'), *sorted(kinds))
    """
)


@pytest.mark.aot_tpu
def test_the_vit_compiles_for_a_slice() -> None:
    """One kernel a stack of blocks, and one for its gradient, because the policy keeps what the first gave; the only
    collective is the sum over rows of the loss and of the gradients."""
    (line,) = run_for_tpu(COMPILE, "v5p:2x2x1")
    assert line == "6 all-reduce"  # three stacks: before the bias, biased, after the drop
