"""Slots by cuDNN: what surrounds the kernel, exact on CPU in float32; the kernel's call, lowered for CUDA."""

import functools
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.ops.attention.frames_gpu import _attend, attend_frames_gpu, augment_key_bias
from sttts_jax.ops.attention.frames_xla import attend_frames_xla


def draw(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def inputs(length, slots, heads=2, width=8, dtype=jnp.float32):
    q, k, v, g = (draw((*slots, length, heads, width), seed, dtype) for seed in range(4))
    return q, k, v, 2 * draw((*slots, length), 4), g


def reference(q, k, v, bias, counts):
    """The XLA kernel under a mask, with zeros beyond the counts."""
    if counts is None:
        return attend_frames_xla(q, k, v, bias, None)
    mask = jnp.arange(q.shape[-3]) < counts[..., None]
    return jnp.where(mask[..., None, None], attend_frames_xla(q, k, v, bias, mask), 0)


@functools.partial(jax.jit, static_argnums=0)
def both(attend, q, k, v, bias, counts, g):
    """Result and gradients of q, k, v, bias."""
    out, vjp = jax.vjp(lambda q, k, v, bias: attend(q, k, v, bias, counts), q, k, v, bias)
    return out, vjp(g)


def by_xla(q, k, v, bias, counts):
    return _attend(q, k, v, bias, counts, "xla")


def compare(got, wanted, tolerance):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), atol=tolerance)


# --- the bias in the keys -------------------------------------------------------------------------------------------


def augmented(q, k, v, bias, counts):
    scale = q.shape[-1] ** -0.5
    q, k = augment_key_bias(q, k, bias, scale)
    logits = jnp.einsum("...qhd,...khd->...hqk", q, k, preferred_element_type=jnp.float32) * scale
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weights, v, preferred_element_type=jnp.float32).astype(v.dtype)


@pytest.mark.optimized  # the sums of the gradient are a rounding further apart without fusion
@pytest.mark.parametrize("width", [8, 72])
def test_the_bias_in_the_keys_is_exact_forward_and_gradient(width):
    q, k, v, bias, g = inputs(19, (3,), width=width)
    got, wanted = (both(f, q, k, v, bias, None, g) for f in (augmented, reference))
    compare(got, wanted, 5e-6)
    assert jnp.abs(wanted[1][3]).max() > 0.1


def test_bfloat16_keeps_sixteen_bits_of_the_bias_under_jit():
    bias = jnp.linspace(-20, 5, 64)[None]
    zero = jnp.zeros((1, 64, 1, 8), jnp.bfloat16)

    @jax.jit
    def logits(bias):
        q, k = augment_key_bias(zero, zero, bias, 8**-0.5)
        assert q.dtype == k.dtype == jnp.bfloat16
        q, k = q.astype(jnp.float32), k.astype(jnp.float32)
        return jnp.einsum("bqhd,bkhd->bqk", q, k, precision="highest")[:, 0] * 8**-0.5

    np.testing.assert_allclose(logits(bias), bias, rtol=2**-16)
    np.testing.assert_allclose(jax.grad(lambda b: logits(b).sum())(bias), np.ones((1, 64)), rtol=2**-8)


def test_a_bias_as_low_as_float32_goes_stays_finite():
    q, k, v, _, g = inputs(8, (1,))
    low = jnp.full((1, 8), -3e38)
    out, grads = both(by_xla, q, k, v, low, None, g)
    assert all(jnp.isfinite(x).all() for x in (out, *grads))
    np.testing.assert_allclose(out, attend_frames_xla(q, k, v, None, None), atol=5e-3)  # the same for all: no bias
    some = jax.jit(by_xla)(q, k, v, low.at[:, :4].set(0), None)
    np.testing.assert_allclose(some, attend_frames_xla(q, k[:, :4], v[:, :4], None, None), atol=1e-5)
    half = jnp.zeros((1, 8, 1, 128), jnp.float16)
    assert jnp.isfinite(augment_key_bias(half, half, low, 128**-0.5)[1]).all()


# --- counts and padding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biased", [False, True])
def test_counts_at_the_edges(biased):
    q, k, v, bias, g = inputs(729, (5,), heads=1)
    bias, counts = bias if biased else None, jnp.asarray([0, 1, 128, 129, 729])
    got = both(by_xla, q, k, v, bias, counts, g)
    compare(got, both(reference, q, k, v, bias, counts, g), 1e-5)
    assert not any(jnp.any(x[0]) for x in jax.tree.leaves(got))


@pytest.mark.parametrize("seed", range(3))
def test_random_counts_and_more_leading_axes(seed):
    q, k, v, bias, g = inputs(13, (2, 3))
    counts = jnp.asarray(np.random.default_rng(seed).integers(0, 14, (2, 3)), jnp.int32)
    compare(both(by_xla, q, k, v, bias, counts, g), both(reference, q, k, v, bias, counts, g), 1e-5)


@pytest.mark.parametrize("length", [7, 8])
def test_without_counts_every_token_counts(length):
    q, k, v, bias, g = inputs(length, (2,))
    for b in (None, bias):
        compare(both(by_xla, q, k, v, b, None, g), both(reference, q, k, v, b, None, g), 1e-5)


def test_padding_may_hold_anything_and_its_cotangents_too():
    q, k, v, bias, g = inputs(11, (3,))
    counts = jnp.asarray([0, 4, 11])
    dead = jnp.arange(11) >= counts[:, None]
    clean = both(by_xla, q, k, v, bias, counts, g)
    q, k, v, g = (jnp.where(dead[..., None, None], jnp.nan, x) for x in (q, k, v, g))
    dirty = both(by_xla, q, k, v, jnp.where(dead, jnp.nan, bias), counts, g)
    for x, y in zip(jax.tree.leaves(dirty), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(x, y)
        assert not jnp.any(x[dead])


def test_what_the_kernel_leaves_in_padding_stays_there(monkeypatch):
    # cuDNN promises nothing for rows beyond the lengths, neither in its result nor in its gradients.
    attend = jax.nn.dot_product_attention

    def dirty(q, k, v, *, query_seq_lengths, key_value_seq_lengths, **options):
        lengths = {"query_seq_lengths": query_seq_lengths, "key_value_seq_lengths": key_value_seq_lengths}
        dead = (jnp.arange(q.shape[1]) >= query_seq_lengths[:, None])[..., None, None]

        @jax.custom_vjp
        def call(q, k, v):
            return jnp.where(dead, jnp.nan, attend(q, k, v, **lengths, **options))

        def backward(saved, g):
            grads = jax.vjp(lambda *x: attend(*x, **lengths, **options), *saved)[1](g)
            return tuple(jnp.where(dead, jnp.nan, x) for x in grads)

        call.defvjp(lambda q, k, v: (call(q, k, v), (q, k, v)), backward)
        return call(q, k, v)

    q, k, v, bias, g = inputs(11, (3,))
    counts = jnp.asarray([0, 4, 11])
    wanted = both(reference, q, k, v, bias, counts, g)
    monkeypatch.setattr(jax.nn, "dot_product_attention", dirty)
    compare(both(lambda *x: _attend(*x, "xla"), q, k, v, bias, counts, g), wanted, 1e-5)


# --- the kernel itself ----------------------------------------------------------------------------------------------


@pytest.fixture
def cudnn(monkeypatch) -> Iterator[None]:
    """Lowering asks the installed cuDNN for its version; here there is none."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    yield


@pytest.mark.parametrize("biased", [False, True])
def test_lowers_for_cuda_at_the_width_of_siglip(cudnn, biased):
    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype)

    x = shape(2, 16, 729, 16, 72)
    bias = shape(2, 16, 729, dtype=jnp.float32) if biased else None
    args = (attend_frames_gpu, x, x, x, bias, shape(2, 16, dtype=jnp.int32), x)
    text = both.trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert len(re.findall(r"custom_call @__cudnn\$fmhaSoftmax\(", text)) == 1
    assert len(re.findall(r"custom_call @__cudnn\$fmhaSoftmaxBackward\(", text)) == 1
    assert text.count("PADDING") == 2
    assert f"tensor<32x736x16x{80 if biased else 72}xbf16>" in text
    # The scale is that of 72 channels, whatever was added to them.
    assert {float(x) for x in re.findall(r"fmha_scale\\22: ([\d.]+)", text)} == {72**-0.5}
    assert not re.search(r"tensor<[\dx]*(729|736)x(729|736)x", text)


def test_refuses_in_one_sentence():
    x = jnp.zeros((2, 4, 1, 8), jnp.bfloat16)
    refuse = attend_frames_gpu
    with pytest.raises(ValueError, match="float32 and float32; compute in bfloat16, or take the 'xla' kernel"):
        refuse(*[x.astype(jnp.float32)] * 3, None, None)
    with pytest.raises(ValueError, match=r"one shape \[..., S, H, d\]"):
        refuse(x, x[:, :2], x[:, :2], None, None)
    with pytest.raises(ValueError, match="key_bias has shape"):
        refuse(x, x, x, jnp.zeros((2, 5)), None)
    with pytest.raises(ValueError, match="whole numbers .*one per slot"):
        refuse(x, x, x, None, jnp.zeros((2,)))
    with pytest.raises(ValueError, match="at most 128 channels, and these need 136"):
        refuse(*[jnp.zeros((2, 4, 1, 128), jnp.bfloat16)] * 3, jnp.zeros((2, 4)), None)


@pytest.mark.gpu
@pytest.mark.parametrize("biased", [False, True])
def test_on_a_gpu_it_equals_xla(biased):
    q, k, v, bias, g = inputs(729, (6,), heads=4, width=72, dtype=jnp.bfloat16)
    bias, counts = bias if biased else None, jnp.asarray([0, 1, 128, 129, 400, 729])
    got, wanted = (both(f, q, k, v, bias, counts, g) for f in (attend_frames_gpu, reference))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        np.testing.assert_allclose(x, y, atol=2e-2 * np.abs(y).max())
        assert not x[0].any()
