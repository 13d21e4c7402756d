"""Rows by Triton: interpreted on CPU against the XLA kernel, and lowered for CUDA at full size."""

import contextlib
import functools
import re
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.ops.attention.row_rule import RowRule, mask_rows
from sttts_jax.ops.attention.rows_gpu import attend_rows_gpu, plan_rows_gpu
from sttts_jax.ops.attention.rows_xla import attend_rows_xla


def draw(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def random_rule(seed, rows, length):
    """No order in anything: every pair of blocks is mixed."""
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(length) for _ in range(rows)])
    fields = (order, rng.random((rows, length)) < 0.3, *(rng.integers(low, 2, (rows, length)) for low in (-1, 0)))
    return RowRule(*map(jnp.asarray, fields))


def packed_rule(sizes, length):
    """A row: for each (prefix, video, rest, branches) an example with a run of vision and a tree; then padding."""
    vision, example, segment = [], [], []
    for e, (prefix, video, rest, branches) in enumerate(sizes):
        vision += [False] * prefix + [True] * video + [False] * (rest + sum(branches))
        segment += [100_000 * e + 10_000] * (prefix + video + rest)
        segment += [100_000 * e + b for b, size in enumerate(branches) for _ in range(size)]
        example += [e] * (prefix + video + rest + sum(branches))
    fields = (np.asarray(x + [y] * (length - len(x)))[None] for x, y in ((vision, False), (example, -1), (segment, -1)))
    return RowRule.of(*map(jnp.asarray, fields))


LENGTH = 83
# All of one length, so that one compilation does.
RULES = {
    "causal": packed_rule([(LENGTH, 0, 0, [])], LENGTH),
    "vision": packed_rule([(5, 50, 9, [])], LENGTH),
    "examples": packed_rule([(3, 20, 7, []), (1, 0, 16, []), (2, 11, 3, [])], LENGTH),
    "trees": packed_rule([(3, 18, 2, [9, 4, 11]), (2, 17, 0, [5, 3])], LENGTH),
    "one token": packed_rule([(1, 0, 0, [])], LENGTH),
    "nothing": packed_rule([], LENGTH),
}


@functools.partial(jax.jit, static_argnames=("block_q", "block_k", "interpret"))
def kernel(rule_q, rule_k, q, k, v, g, block_q=16, block_k=16, interpret=True):
    """Result and gradients of q, k, v."""
    plan = plan_rows_gpu(rule_q, rule_k, block_q=block_q, block_k=block_k)
    out, vjp = jax.vjp(lambda *x: attend_rows_gpu(*x, plan, interpret=interpret), q, k, v)
    return out, vjp(g)


@jax.jit
def by_xla(rule_q, rule_k, q, k, v, g):
    out, vjp = jax.vjp(lambda *x: attend_rows_xla(*x, rule_q, rule_k, 1024), q, k, v)
    return out, vjp(g)


def inputs(rule_q, rule_k, heads=4, kv_heads=2, width=16, dtype=jnp.float32):
    many, few = (*rule_q.order.shape, heads, width), (*rule_k.order.shape, kv_heads, width)
    return [draw(shape, seed, dtype) for seed, shape in enumerate((many, few, few, many))]


def check(rule_q, rule_k=None, tolerance=1e-5, dtype=jnp.float32, heads=4, kv_heads=2, width=16, **options):
    rule_k = rule_q if rule_k is None else rule_k
    arrays = inputs(rule_q, rule_k, heads, kv_heads, width, dtype)
    got, wanted = kernel(rule_q, rule_k, *arrays, **options), by_xla(rule_q, rule_k, *arrays)
    padding = rule_q.example < 0, rule_k.example < 0
    names = ("q", "q", "k", "k")
    for x, y, name in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), names, strict=True):
        assert x.dtype == dtype
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        np.testing.assert_allclose(x, y, atol=tolerance * max(1.0, np.abs(y).max()))
        assert not x[padding[name == "k"]].any()


# --- the kernels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_equals_xla(name):
    check(RULES[name])


@pytest.mark.parametrize("seed", range(3))
def test_random_rules_odd_lengths_and_other_keys_than_queries(seed):
    check(random_rule(seed, 2, 37), random_rule(seed + 10, 2, 53))


@pytest.mark.parametrize(("block_q", "block_k"), [(32, 16), (128, 64)])
def test_blocks_change_nothing(block_q, block_k):
    check(RULES["trees"], block_q=block_q, block_k=block_k)


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (4, 1)])
def test_heads_may_share_keys_or_not(heads, kv_heads):
    check(RULES["examples"], heads=heads, kv_heads=kv_heads, width=32)


@pytest.mark.parametrize("width", [8, 24])
def test_heads_of_any_size_are_padded(width):
    check(RULES["trees"], width=width)


def test_bfloat16():
    check(RULES["trees"], dtype=jnp.bfloat16, tolerance=1e-2)


def test_padding_may_hold_anything_and_examples_do_not_touch_each_other():
    rule = RULES["examples"]
    q, k, v, g = inputs(rule, rule)
    plain = kernel(rule, rule, q, k, v, g)
    dirty = [jnp.where((rule.example < 0)[..., None, None], jnp.nan, x) for x in (q, k, v, g)]
    other = [jnp.where((rule.example == 1)[..., None, None], -3 * x, x) for x in (q, k, v, g)]
    alone = np.asarray(rule.example[0] != 1)
    runs = plain, kernel(rule, rule, *dirty), kernel(rule, rule, *other)
    for a, b, c in zip(*map(jax.tree.leaves, runs), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a[:, alone], c[:, alone])
        assert not np.array_equal(a, c)


# --- the plan -------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(1, 2))
def _plan(rule, block_q, block_k):
    return plan_rows_gpu(rule, rule, block_q=block_q, block_k=block_k)


def _blocks(x, size_q, size_k):
    """[Sq, Sk] -> [I, J, size_q * size_k]."""
    x = np.pad(x, ((0, -x.shape[0] % size_q), (0, -x.shape[1] % size_k)))
    return (
        x.reshape(x.shape[0] // size_q, size_q, -1, size_k)
        .swapaxes(1, 2)
        .reshape(-1, x.shape[1] // size_k, size_q * size_k)
    )


@pytest.mark.parametrize("name", [*RULES, "random"])
def test_the_lists_leave_nothing_out_and_full_pairs_are_full(name):
    rule = random_rule(5, 1, LENGTH) if name == "random" else RULES[name]
    seen = _blocks(np.asarray(mask_rows(rule, rule))[0], 32, 16)
    plan = _plan(rule, 32, 16)
    for lists, mask in ((plan.keys, seen), (plan.queries, seen.swapaxes(0, 1))):
        assert sorted(lists.order[0].tolist()) == list(range(len(mask)))
        assert (np.diff(np.asarray(lists.counts[0, :, 1])[lists.order[0]]) <= 0).all()
        for blocks, (full, some), pairs in zip(lists.blocks[0], lists.counts[0].tolist(), mask, strict=True):
            assert pairs[blocks[:full]].all()
            assert not np.delete(pairs, blocks[:some], axis=0).any()
            # Without trees the test of what the model packs is not only safe but exact.
            if name not in ("random", "trees"):
                assert set(blocks[:some].tolist()) == set(np.flatnonzero(pairs.any(-1)).tolist())


def test_a_causal_row_costs_half_and_a_video_costs_no_mask():
    long = packed_rule([(1024, 0, 0, [])], 1024)
    full, some = _plan(long, 64, 64).keys.counts[0].sum(0).tolist()
    assert (full, some) == (16 * 15 // 2, 16 * 17 // 2)
    video = packed_rule([(0, 1024, 0, [])], 1024)
    full, some = _plan(video, 64, 64).keys.counts[0].sum(0).tolist()
    assert full == some == 16 * 16


def test_another_packing_needs_no_compilation():
    counts = set()
    for rule in RULES.values():
        kernel(rule, rule, *inputs(rule, rule))
        counts.add(kernel._cache_size())
    assert len(counts) == 1


# --- for CUDA -------------------------------------------------------------------------------------------------------


def _gpu() -> contextlib.AbstractContextManager:
    """From jax 0.11 on the lowering wants to know the GPU; before, it assumes one."""
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def test_lowers_for_cuda_at_full_size_without_an_s_by_s_array():
    length = 5384

    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((1, length, *sizes), dtype)

    rule = RowRule(*(shape(dtype=jnp.bool_ if name == "vision" else jnp.int32) for name in RowRule._fields))
    q, k = shape(32, 128), shape(8, 128)
    with _gpu():
        lowered = kernel.trace(rule, rule, q, k, k, q, block_q=128, block_k=64, interpret=False).lower(
            lowering_platforms=("cuda",)
        )
    text = lowered.as_text()
    assert len(re.findall(r"custom_call @__gpu\$xla\.gpu\.triton", text)) == 3
    sizes = [[int(n) for n in dims.split("x")] for dims in re.findall(r"tensor<((?:\d+x)*\d+)x", text)]
    assert max(map(prod, sizes)) == length * 32 * 128 < length * length
    assert not any(sum(n >= length for n in dims) > 1 for dims in sizes)


def test_refuses_in_one_sentence():
    rule = RULES["causal"]
    q, k, v, _ = inputs(rule, rule)
    plan = plan_rows_gpu(rule, rule, block_q=64)
    with pytest.raises(ValueError, match="block_k is 48; Triton wants a power of two"):
        plan_rows_gpu(rule, rule, block_k=48)
    with pytest.raises(ValueError, match="rule_k must have one shape"):
        plan_rows_gpu(rule, rule._replace(order=rule.order[:, :3]))
    with pytest.raises(ValueError, match="same rows, and tokens"):
        plan_rows_gpu(rule, RowRule(*(x[:, :0] for x in rule)))
    with pytest.raises(ValueError, match="Hkv dividing H"):
        attend_rows_gpu(q[:, :, :3], k, v, plan)
    with pytest.raises(ValueError, match="all float32 or all bfloat16; got float16"):
        attend_rows_gpu(*(x.astype(jnp.float16) for x in (q, k, v)), plan)
    with pytest.raises(ValueError, match="head_dim of at most 128; got 144"):
        attend_rows_gpu(*(jnp.tile(x, 9) for x in (q, k, v)), plan)
    with pytest.raises(ValueError, match=r"plan was made for rows \(1, 83\) and \(1, 83\), not for \(1, 82,"):
        attend_rows_gpu(q[:, 1:], k, v, plan, interpret=True)
    with pytest.raises(
        ValueError, match="blocks of at most 32 tokens, not 64 and 64; make one, or compute in bfloat16"
    ):
        attend_rows_gpu(q, k, v, plan)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["trees", "random"])
def test_on_a_gpu_it_equals_xla(name):
    rule = random_rule(0, 2, 700) if name == "random" else packed_rule([(9, 300, 99, [60, 50]), (5, 200, 3, [20])], 800)
    sizes = {"dtype": jnp.bfloat16, "heads": 8, "kv_heads": 2, "width": 128}
    check(rule, tolerance=2e-2, block_q=128, block_k=64, interpret=False, **sizes)
