"""Bytes between HBM and the core, counted in the text of compiled programs."""

import pytest

from sttts_jax.bench.traffic import free_calls, hbm_bytes

TEXT = """HloModule jit_f
%fused (p: bf16[8,128]) -> bf16[8,128] {
  ROOT %hidden = bf16[8,128]{1,0} add(%p, %p)
}

ENTRY %main (x.1: bf16[8,128], w.1: bf16[128,4]) -> bf16[8,4] {
  %x.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %w.1 = bf16[128,4]{1,0:T(8,128)(2,1)} parameter(1)
  %copy-start = (bf16[128,4]{1,0:S(1)}, bf16[128,4]{1,0}, u32[]{:S(2)}) copy-start(%w.1)
  %near = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%x.1), kind=kLoop, calls=%fused, metadata={op_name="f(%x)"}
  %copy-done = bf16[128,4]{1,0:S(1)} copy-done(%copy-start)
  %bytes = s8[2048]{0} bitcast(%x.1)
  %slice-start = ((s8[2048]{0}), s8[512]{0:S(1)}, s32[]{:S(2)}) slice-start(%bytes), slice={[0:512]}
  %slice-done = s8[512]{0:S(1)} slice-done(%slice-start)
  %one = s8[512]{0:S(1)} custom-call(%slice-done), custom_call_target="ConcatBitcast", backend_config={}
  %both = (f32[16]{0}, f32[16]{0:S(1)}) custom-call(%near, %x.1), custom_call_target="tpu_custom_call"
  %got = f32[16]{0} get-tuple-element(%both), index=0
  ROOT %out = bf16[8,4]{1,0} fusion(%near, %copy-done, %got), kind=kOutput, calls=%fused
}
"""


def test_arrays_in_fast_memory_cost_nothing_and_copies_cost_once() -> None:
    copies = 128 * 4 * 2 + 512
    near = 8 * 128 * 2
    kernel = 8 * 128 * 2 + 16 * 4
    out = 16 * 4 + 8 * 4 * 2
    assert hbm_bytes(TEXT) == copies + near + kernel + out
    assert free_calls(TEXT) == 1


def test_what_cannot_be_counted_is_refused() -> None:
    loop = TEXT.replace("  ROOT %out", "  %again = (f32[16]{0}) while(%both), condition=%c, body=%b\n  ROOT %out")
    with pytest.raises(ValueError, match="%again is a while"):
        hbm_bytes(loop)
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hbm_bytes("")
