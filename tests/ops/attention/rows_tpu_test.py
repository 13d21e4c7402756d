"""The row kernel against the blockwise XLA kernel and the dense mask, interpreted on CPU and compiled for TPUs."""

import functools
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.ops.attention.row_rule import RowRule, mask_rows
from sttts_jax.ops.attention.rows_tpu import attend_rows_tpu, plan_rows_tpu
from sttts_jax.ops.attention.rows_tpu_kernels import FIRST, FLAG_BITS, LAST, MASKED, WHOLE, address_bits
from sttts_jax.ops.attention.rows_xla import attend_rows_xla
from tests.aot import TOPOLOGIES, run_for_tpu

HEADS, KV_HEADS, WIDTH = 4, 2, 16


def draw(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def rule_of(*rows, length=None):
    """Rows as lists of (tokens, vision, example, segment) in order, then padding up to `length`."""
    length = length or max(sum(run[0] for run in runs) for runs in rows)
    fields = []
    for runs in rows:
        runs = [*runs, (length - sum(run[0] for run in runs), False, -1, -1)]
        fields.append(np.repeat(np.asarray([run[1:] for run in runs]), [run[0] for run in runs], axis=0))
    vision, example, segment = np.moveaxis(np.asarray(fields, np.int32), 2, 0)
    return RowRule.of(jnp.asarray(vision > 0), jnp.asarray(example), jnp.asarray(segment))


def random_rule(rng, rows, length):
    """Anything goes: no order, padding anywhere, negative segments."""
    fields = [rng.permuted(np.tile(np.arange(length), (rows, 1)), axis=1), rng.random((rows, length)) < 0.3]
    fields += [rng.integers(-1, 3, (rows, length)), rng.integers(-2, 3, (rows, length))]
    return RowRule(*(jnp.asarray(x, bool if x.dtype == bool else jnp.int32) for x in fields))


@functools.cache
def compiled(block=128, key_block=None, **options):
    """q, k, v, g, rules -> (result, gradients) of the kernel and of the XLA kernel; one compilation a shape."""

    def kernel(q, k, v, rule_q, rule_k):
        plan = plan_rows_tpu(rule_q, rule_k, block, key_block)
        return attend_rows_tpu(q, k, v, plan, interpret=True, **options)

    def dense(q, k, v, rule_q, rule_k):
        with jax.default_matmul_precision("highest"):
            return attend_rows_xla(q, k, v, rule_q, rule_k, block=q.shape[1])

    def both(attend, q, k, v, g, rule_q, rule_k):
        out, vjp = jax.vjp(lambda *x: attend(*x, rule_q, rule_k), q, k, v)
        return out, vjp(g)

    quick = {"xla_backend_optimization_level": 0}  # most of the time goes to compiling what runs once
    return tuple(jax.jit(functools.partial(both, attend), compiler_options=quick) for attend in (kernel, dense))


def inputs(rule_q, rule_k, heads=HEADS, kv_heads=KV_HEADS, dtype=jnp.float32):
    shapes = [(*rule.order.shape, n, WIDTH) for rule, n in ((rule_q, heads), (rule_k, kv_heads))]
    return [draw(shapes[side], seed, dtype) for seed, side in enumerate((0, 1, 1, 0))]


def check(rule_q, rule_k=None, *, tolerance=1e-5, heads=HEADS, kv_heads=KV_HEADS, dtype=jnp.float32, **options):
    rule_k = rule_q if rule_k is None else rule_k
    arrays = inputs(rule_q, rule_k, heads, kv_heads, dtype)
    got, wanted = (run(*arrays, rule_q, rule_k) for run in compiled(**options))
    seen = np.asarray(mask_rows(rule_q, rule_k))
    hidden = [~seen.any(side) for side in (2, 2, 1, 1)]
    for x, y, nothing in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), hidden, strict=True):
        assert x.dtype == dtype
        x, y = (np.asarray(z, np.float32) for z in (x, y))
        np.testing.assert_allclose(x, y, atol=tolerance)
        assert not x[nothing].any()


plan_of = jax.jit(plan_rows_tpu, static_argnums=(2, 3))


def pairs(plan, by="query"):
    """(row, own block, other block, flags) of the list, in its order."""
    query_blocks = plan.queries.shape[-1] // plan.query_block
    key_blocks = plan.keys.shape[-1] // plan.key_block
    own_bits, other_bits = address_bits(*[query_blocks, key_blocks][:: 1 if by == "query" else -1])
    words = plan.by_query if by == "query" else plan.by_key
    found = []
    for word in np.asarray(words)[: int(plan.lengths[0, 0 if by == "query" else 1])]:
        address, flags = divmod(int(word), 2**FLAG_BITS)
        rest, other = divmod(address, 2**other_bits)
        found.append((*divmod(rest, 2**own_bits), other, flags))
    return found


# All rows of one shape, so that they share a compilation.
CAUSAL = [(400, 0, 0, 0)]
PACKED = [(40, 0, 0, 0), (90, 0, 1, 0), (150, 0, 2, 0)]
VISION = [(10, 0, 0, 0), (140, 1, 0, 0), (30, 0, 0, 0), (90, 1, 0, 0), (30, 0, 0, 0), (60, 1, 1, 1)]
TREE = [(130, 0, 0, 10_000), (60, 1, 0, 10_000), (70, 0, 0, 0), (40, 0, 0, 1)]
TREES = [*TREE, (50, 0, 1, 110_000), (30, 0, 1, 100_000), (20, 0, 1, 100_001)]


@pytest.mark.parametrize(
    "rows", [(CAUSAL, PACKED), (VISION, TREES), ([], [])], ids=["causal and packed", "vision and trees", "padding"]
)
def test_rows(rows):
    check(rule_of(*rows, length=400))


@pytest.mark.parametrize("seed", range(4))
def test_random_rows_in_order(seed):
    rng = np.random.default_rng(seed)
    rows = [[(int(rng.integers(1, 44)), i % 2, e, -i) for e in range(3) for i in range(3)] for _ in range(2)]
    check(rule_of(*rows, length=400))


@pytest.mark.parametrize("seed", range(3))
def test_random_rules(seed):
    rng = np.random.default_rng(seed)
    check(random_rule(rng, 2, 290), random_rule(rng, 2, 150), heads=2, kv_heads=1)


@pytest.mark.parametrize("length", [1, 127, 128, 129, 300])
def test_lengths_that_are_no_multiples_of_a_block(length):
    check(rule_of([(length, 0, 0, 0)]), heads=1, kv_heads=1)


def test_prefill_into_a_longer_cache():
    def cached(rule, used, start):
        order = jnp.broadcast_to(jnp.arange(rule.order.shape[1]), rule.order.shape)
        keys = rule._replace(order=order, example=jnp.where(order < used, rule.example, -1))
        return RowRule(*(x[:, start : start + 130] for x in keys)), keys

    whole = rule_of([(60, 0, 0, 0), (120, 1, 0, 0), (220, 0, 0, 0)], [(400, 0, 0, 0)])
    check(*cached(whole, 300, 170), heads=2, kv_heads=1)  # a continuation
    check(*cached(whole, 130, 0), heads=2, kv_heads=1)  # the beginning of a row
    check(*reversed(cached(whole, 300, 170)), heads=2, kv_heads=1)  # more queries than keys


@pytest.mark.parametrize(("block", "key_block"), [(128, 256), (256, 128)])
def test_blocks_of_queries_and_of_keys_may_differ(block, key_block):
    rule = rule_of([(200, 0, 0, 0), (250, 1, 1, 0), (60, 0, 1, 0)], length=540)
    check(rule, block=block, key_block=key_block, heads=2, kv_heads=1)


@pytest.mark.parametrize(("heads", "kv_heads", "groups"), [(4, 4, 2), (3, 3, None), (4, 1, 1)])
def test_heads_and_their_groups(heads, kv_heads, groups):
    check(rule_of([(150, 0, 0, 0), (60, 1, 1, 0)]), heads=heads, kv_heads=kv_heads, head_groups=groups)


def test_bfloat16():
    rule = rule_of([(150, 0, 0, 0), (100, 1, 1, 0), (60, 0, 1, 0)], length=384)
    check(rule, heads=2, kv_heads=1, block=512, dtype=jnp.bfloat16, tolerance=6e-2)


def test_padding_may_hold_anything_and_examples_do_not_touch_each_other():
    rule = rule_of(*[[(100, 0, 0, 0), (90, 1, 1, 0), (100, 0, 2, 0)]] * 2, length=400)
    arrays = inputs(rule, rule)
    kernel, _ = compiled()
    plain = kernel(*arrays, rule, rule)
    dirty = kernel(*(x.at[:, 290:].set(jnp.nan) for x in arrays), rule, rule)
    other = kernel(*(x.at[:, 100:190].multiply(-3.0) for x in arrays), rule, rule)
    for a, b, c in zip(*map(jax.tree.leaves, (plain, dirty, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(np.delete(a, np.s_[100:190], axis=1), np.delete(c, np.s_[100:190], axis=1))
        assert not np.array_equal(a, c)


def test_a_causal_row_lists_a_triangle_and_masks_its_diagonal():
    rule = rule_of([(8 * 128, 0, 0, 0)], [(8 * 128, 0, 0, 0)])
    plan = plan_of(rule, rule, 128)
    for by in ("query", "key"):
        found = pairs(plan, by)
        assert len(found) == 2 * (8 * 9 // 2)
        assert all((a >= b if by == "query" else a <= b) for _, a, b, _ in found)
        assert all(bool(flags & MASKED) == (a == b) and bool(flags & WHOLE) == (a != b) for _, a, b, flags in found)


def test_packing_skips_other_examples_and_padding():
    rule = rule_of([(256, 0, 0, 0), (256, 1, 1, 0)], length=768)
    found = [pair[1:3] for pair in pairs(plan_of(rule, rule, 128))]
    # The last two blocks are padding: one empty pair each, so that their zeros are written.
    assert found == [(0, 0), (1, 0), (1, 1), (2, 2), (2, 3), (3, 2), (3, 3), (4, 0), (5, 0)]


@pytest.mark.parametrize("seed", range(4))
def test_lists_leave_nothing_out_and_flags_are_right(seed):
    rng = np.random.default_rng(seed)
    rows = [[(int(rng.integers(1, 200)), rng.random() < 0.4, e, -i) for e in range(3) for i in range(3)] for _ in "ab"]
    rule_k = rule_of(*rows, length=1500)
    rule_q = random_rule(rng, 2, 600) if seed == 3 else RowRule(*(x[:, 300:900] for x in rule_k))
    plan = plan_of(rule_q, rule_k, 128, 256)
    seen = np.asarray(mask_rows(rule_q, rule_k))
    seen = np.pad(seen, [(0, 0)] + [(0, -n % size) for n, size in zip(seen.shape[1:], (128, 256), strict=True)])
    seen = seen.reshape(2, seen.shape[1] // 128, 128, -1, 256).swapaxes(2, 3)
    for by, truth in (("query", seen), ("key", seen.swapaxes(1, 2))):
        found = pairs(plan, by)
        assert [pair[:2] for pair in found] == sorted(pair[:2] for pair in found)
        work = {pair[:3]: pair[3] for pair in found}
        assert len(work) == len(found)
        for at in np.ndindex(truth.shape[:3]):
            flags = work.get(at, 0)
            assert bool(flags & (MASKED | WHOLE)) or not truth[at].any()
            assert not flags & WHOLE or truth[at].all()
        owns = [pair[:2] for pair in found]
        assert set(owns) == set(np.ndindex(truth.shape[:2]))
        for i, (pair, own) in enumerate(zip(found, owns, strict=True)):
            assert bool(pair[3] & FIRST) == (i == 0 or owns[i - 1] != own)
            assert bool(pair[3] & LAST) == (i == len(owns) - 1 or owns[i + 1] != own)


def test_another_packing_needs_no_compilation():
    kernel, sizes = compiled()[0], []
    for rows in ((CAUSAL, PACKED), (VISION, TREES), ([], [])):
        rule = rule_of(*rows, length=400)
        kernel(*inputs(rule, rule), rule, rule)
        sizes.append(kernel._cache_size())
    assert len(set(sizes)) == 1


def test_refuses_what_it_cannot_do():
    rule = rule_of([(256, 0, 0, 0)])
    plan = plan_rows_tpu(rule, rule, 128)
    q, k, v, _ = inputs(rule, rule)
    with pytest.raises(ValueError, match="multiples of 128"):
        plan_rows_tpu(rule, rule, 128, 100)
    with pytest.raises(ValueError, match="rule_k must have one shape"):
        plan_rows_tpu(rule, rule._replace(order=rule.order[:, :5]))
    with pytest.raises(ValueError, match="must have the same rows"):
        plan_rows_tpu(rule, RowRule(*(jnp.repeat(x, 2, 0) for x in rule)))
    with pytest.raises(ValueError, match="must have the same rows, and tokens"):
        plan_rows_tpu(RowRule(*(x[:, :0] for x in rule)), rule)
    with pytest.raises(ValueError, match="too many for one call"):
        jax.eval_shape(plan_rows_tpu, *[RowRule(*(jax.ShapeDtypeStruct((1, 2**24), jnp.int32) for _ in rule))] * 2)
    with pytest.raises(ValueError, match="Hkv dividing H"):
        attend_rows_tpu(q[:, :, :3], k, v, plan)
    with pytest.raises(ValueError, match="all float32 or all bfloat16"):
        attend_rows_tpu(q.astype(jnp.bfloat16), k, v, plan)
    with pytest.raises(ValueError, match="plan was made for"):
        attend_rows_tpu(q[:, :100], k, v, plan)
    with pytest.raises(ValueError, match="does not divide"):
        attend_rows_tpu(q, k, v, plan, head_groups=3)


COMPILE = textwrap.dedent(
    """
    import sys
    import jax, jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding
    from sttts_jax.ops.attention.row_rule import RowRule
    from sttts_jax.ops.attention.rows_tpu import plan_rows_tpu, attend_rows_tpu

    devices = topologies.get_topology_desc(sys.argv[1], platform="tpu").devices
    place = SingleDeviceSharding(devices[0])

    def grad(q, k, v, g, rule):
        plan = plan_rows_tpu(rule, rule)
        out, vjp = jax.vjp(lambda *x: attend_rows_tpu(*x, plan), q, k, v)
        return out, vjp(g)

    for length in (5384, 36864) if "v5p" in sys.argv[1] else (5384,):
        shape = lambda *s, dtype=jnp.bfloat16: jax.ShapeDtypeStruct((1, length, *s), dtype, sharding=place)
        q, k, number = shape(32, 128), shape(8, 128), shape(dtype=jnp.int32)
        rule = RowRule(number, shape(dtype=jnp.bool_), number, number)
        done = jax.jit(grad).lower(q, k, k, q, rule).compile()
        kernels = done.as_text().count('custom_call_target="tpu_custom_call"')
        memory = done.memory_analysis()
        print("kernels", kernels, memory.temp_size_in_bytes <= 2 * memory.argument_size_in_bytes)
    """
)


@pytest.mark.aot_tpu
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_compiles_for_tpu(topology):
    """At the width of Molmo2-4B, both passes; what they need besides the arguments (.8 times as much with JAX 0.10.2,
    1.6 times with 0.11.2) grows like those, not like S x S, which would be 17 times as much."""
    assert run_for_tpu(COMPILE, topology) == ["kernels 3 True"] * (2 if "v5p" in topology else 1)
