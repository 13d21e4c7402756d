"""The stream kernel against a dense masked reference, interpreted on CPU and compiled for TPUs."""

import functools
import itertools
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.ops.attention.frames_tpu import attend_stream_tpu, plan_stream_tpu
from tests.aot import TOPOLOGIES, run_for_tpu

LONGEST = 729


def reference(qkv, segments, frames, bias=None):
    """Every token against every token of its row, in the words of the definition."""
    q, k, v = (qkv[:, :, i].astype(jnp.float32) for i in range(3))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest") * q.shape[-1] ** -0.5
    if bias is not None:
        logits += bias[:, None, None, :]
    real = (segments >= 0) & (segments < frames)
    seen = (segments[:, :, None] == segments[:, None, :]) & real[:, :, None] & real[:, None, :]
    weights = jax.nn.softmax(jnp.where(seen[:, None], logits, -1e30), axis=-1) * seen[:, None]
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v, precision="highest")


def make_segments(counts, length):
    """int32 [B, length]: rows of frames with these many tokens, then padding."""
    frames = len(counts[0])
    rows = np.full((len(counts), length), frames, np.int32)
    for row, sizes in zip(rows, counts, strict=True):
        row[: sum(sizes)] = np.repeat(np.arange(frames), sizes)
    return rows


def draw(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@functools.cache
def compiled(frames, block=128, **options):
    """qkv, segments, bias, g -> (result, gradients) of the kernel and of the reference; one compilation a shape."""

    def kernel(qkv, segments, bias):
        plan = plan_stream_tpu(segments, frames=frames, max_segment=LONGEST, block=block)
        return attend_stream_tpu(qkv, plan, key_bias=bias, interpret=True, **options)

    def both(attend, qkv, segments, bias, g):
        out, vjp = jax.vjp(lambda x, b: attend(x, segments, b), qkv, bias)
        return out, vjp(g.astype(out.dtype))

    def dense(qkv, segments, bias):
        return reference(qkv, segments, frames, bias)

    return jax.jit(functools.partial(both, kernel)), jax.jit(functools.partial(both, dense))


def check(segments, frames, *, heads=1, width=8, biased=False, dtype=jnp.float32, tolerance=1e-5, **options):
    qkv, g = draw((*segments.shape, 3, heads, width), 0, dtype), draw((*segments.shape, heads, width), 1, dtype)
    bias = draw(segments.shape, 2) if biased else None
    kernel, dense = compiled(frames, **options)
    got, wanted = kernel(qkv, segments, bias, g), dense(qkv, segments, bias, g)
    padding = (segments < 0) | (segments >= frames)
    assert got[0].dtype == dtype
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), atol=tolerance)
        assert not np.asarray(x, np.float32)[padding].any()


@pytest.mark.parametrize("biased", [False, True])
def test_matches_the_reference_at_the_edges_of_blocks(biased):
    # Frames of 0, 1, one block, one block and a token, and whole; a batch of two; a last block that hangs over.
    counts = [[0, 1, 128, 129, 729, 5], [729, 0, 0, 1, 130, 64]]
    check(make_segments(counts, 1000), 6, biased=biased, heads=2)


@pytest.mark.parametrize("count", [0, 1, 128, 129, 729])
def test_one_frame(count):
    check(make_segments([[count]], LONGEST), 1)


@pytest.mark.parametrize("seed", range(3))
def test_random_counts(seed):
    rng = np.random.default_rng(seed)
    counts = [rng.multinomial(rng.integers(0, 700), rng.dirichlet([0.5] * 9)).tolist() for _ in range(3)]
    check(make_segments(counts, 701), 9, biased=True)


def test_blocks_of_256_and_the_head_of_siglip():
    check(make_segments([[300, 3, 297]], 600), 3, block=256, width=72, heads=2, biased=True)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_of_heads_change_nothing(groups):
    check(make_segments([[100, 200]], 300), 2, heads=4, head_groups=groups, biased=True)


def test_bfloat16():
    check(make_segments([[100, 200, 50]], 384), 3, dtype=jnp.bfloat16, tolerance=3e-2, biased=True)


def test_streams_shorter_than_a_block_and_empty_rows():
    check(make_segments([[3, 2], [0, 0]], 7), 2, biased=True)


def test_padding_may_lie_between_the_tokens_of_a_frame():
    segments = make_segments([[300, 200]], 500)
    segments[:, ::3] = -1
    check(segments, 2, biased=True)


def test_frames_do_not_touch_each_other_and_padding_may_hold_anything():
    segments = make_segments([[100, 90, 50]], 300)
    qkv, g = draw((1, 300, 3, 2, 8)), draw((1, 300, 2, 8), 1)
    kernel, _ = compiled(3)

    def both(qkv):
        out, grads = kernel(qkv, segments, None, g)
        return out, grads[0]

    plain, dirty = both(qkv), both(qkv.at[:, 240:].set(jnp.nan))
    other = both(qkv.at[:, 100:190].multiply(-3.0))
    for a, b, c in zip(plain, dirty, other, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(np.delete(a, np.s_[100:190], axis=1), np.delete(c, np.s_[100:190], axis=1))
        assert not np.array_equal(a, c)


def test_the_plan_lists_exactly_the_blocks_that_share_a_frame():
    rng = np.random.default_rng(0)
    plan_of = jax.jit(functools.partial(plan_stream_tpu, frames=6, max_segment=LONGEST, block=128))
    for _ in range(20):
        counts = [np.minimum(rng.geometric(1 / 150, 6) - 1, LONGEST).tolist() for _ in range(2)]
        plan = plan_of(make_segments(counts, 6 * LONGEST))
        ids = np.asarray(plan.ids[:, 0]).reshape(2, -1, 128)
        blocks = range(ids.shape[1])
        wanted = [
            (row * len(blocks) + i, row * len(blocks) + j)
            for row, i, j in itertools.product(range(2), blocks, blocks)
            if i == j or set(ids[row, i]) & set(ids[row, j]) - {-1}
        ]
        own, other, count = np.asarray(plan.own), np.asarray(plan.other), int(plan.count[0])
        assert list(zip(own[:count], other[:count], strict=True)) == wanted
        assert count < own.size


def test_the_longest_frames_fit_the_list():
    # Wherever the first frame ends, and with it where in a block the whole ones begin.
    for block in (128, 256):
        plan_of = jax.jit(functools.partial(plan_stream_tpu, frames=5, max_segment=LONGEST, block=block))
        for first in (1, 40, 127, 128, 200, 255, LONGEST):
            plan = plan_of(make_segments([[first] + [LONGEST] * 4], 5 * LONGEST))
            assert int(plan.count[0]) < plan.own.size


def test_another_selection_needs_no_compilation():
    kernel, _ = compiled(3, head_groups=1)
    for counts in ([[100, 100, 56]], [[1, 255, 0]], [[0, 0, 0]]):
        kernel(draw((1, 256, 3, 1, 8)), make_segments(counts, 256), None, draw((1, 256, 1, 8)))
    assert kernel._cache_size() == 1


def test_refuses_what_it_cannot_do():
    segments = jnp.zeros((1, 256), jnp.int32)
    plan = plan_stream_tpu(segments, frames=1, max_segment=256, block=128)
    qkv = draw((1, 256, 3, 2, 8))
    with pytest.raises(ValueError, match="multiple of 128"):
        plan_stream_tpu(segments, frames=1, max_segment=256, block=100)
    with pytest.raises(ValueError, match="must be positive"):
        plan_stream_tpu(segments, frames=0, max_segment=256)
    with pytest.raises(ValueError, match="whole numbers"):
        plan_stream_tpu(segments.astype(jnp.float32), frames=1, max_segment=256)
    with pytest.raises(ValueError, match=r"\[B, S, 3, H, d\]"):
        attend_stream_tpu(qkv[:, :, 0], plan)
    with pytest.raises(ValueError, match="all float32 or all bfloat16"):
        attend_stream_tpu(qkv.astype(jnp.float16), plan)
    with pytest.raises(ValueError, match="plan was made for"):
        attend_stream_tpu(draw((2, 256, 3, 2, 8)), plan)
    with pytest.raises(ValueError, match="key_bias has shape"):
        attend_stream_tpu(qkv, plan, key_bias=jnp.zeros((1, 255)))
    with pytest.raises(ValueError, match="does not divide"):
        attend_stream_tpu(qkv, plan, head_groups=3)


COMPILE = textwrap.dedent(
    """
    import sys
    import jax, jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding
    from sttts_jax.ops.attention.frames_tpu import attend_stream_tpu, plan_stream_tpu

    devices = topologies.get_topology_desc(sys.argv[1], platform="tpu").devices
    place = SingleDeviceSharding(devices[0])
    rows, length = 2, 4 * 729

    def grad(qkv, bias, segments, g):
        plan = plan_stream_tpu(segments, frames=4, max_segment=729)
        out, vjp = jax.vjp(lambda x, b: attend_stream_tpu(x, plan, key_bias=b), qkv, bias)
        return out, vjp(g)

    for dtype, biased in ((jnp.bfloat16, False), (jnp.bfloat16, True), (jnp.float32, True)):
        shape = lambda *s, dtype=dtype: jax.ShapeDtypeStruct(s, dtype, sharding=place)
        bias = shape(rows, length, dtype=jnp.float32) if biased else None
        qkv, g = shape(rows, length, 3, 16, 72), shape(rows, length, 16, 72)
        text = jax.jit(grad).lower(qkv, bias, shape(rows, length, dtype=jnp.int32), g).compile().as_text()
        print("kernels", text.count('custom_call_target="tpu_custom_call"'))
    """
)


@pytest.mark.aot_tpu
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_compiles_for_tpu(topology):
    """At the width of SigLIP2, both passes."""
    assert run_for_tpu(COMPILE, topology) == ["kernels 2"] * 3
