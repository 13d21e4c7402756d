"""Bytes between HBM and the core, counted in the text of compiled programs."""

import pytest

from sttts_jax.plan.hlo import read_program
from sttts_jax.plan.traffic import compiled_flops, free_calls, hbm_bytes

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
    assert hbm_bytes(read_program(TEXT)) == copies + near + kernel + out
    assert free_calls(TEXT) == 1


LOOP = """HloModule jit_g
%body (b: (s32[], f32[4,8], f32[5,8,8], f32[5,4,8])) -> (s32[], f32[4,8], f32[5,8,8], f32[5,4,8]) {
  %b = (s32[], f32[4,8]{1,0}, f32[5,8,8]{2,1,0}, f32[5,4,8]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%b), index=1
  %w = f32[5,8,8]{2,1,0} get-tuple-element(%b), index=2
  %kept = f32[5,4,8]{2,1,0} get-tuple-element(%b), index=3
  %one = s32[] constant(1)
  %j = s32[] add(%i, %one)
  %y = f32[4,8]{1,0} fusion(%x, %w, %i), kind=kOutput, calls=%product
  %put = f32[5,4,8]{2,1,0} fusion(%kept, %y, %i), kind=kLoop, calls=%store
  ROOT %t = (s32[], f32[4,8]{1,0}, f32[5,8,8]{2,1,0}, f32[5,4,8]{2,1,0}) tuple(%j, %y, %w, %put)
}

%product (p: f32[4,8], q: f32[5,8,8], r: s32[]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %q = f32[5,8,8]{2,1,0} parameter(1)
  %r = s32[] parameter(2)
  %zero = s32[] constant(0)
  %layer = f32[1,8,8]{2,1,0} dynamic-slice(%q, %r, %zero, %zero), dynamic_slice_sizes={1,8,8}
  %flat = f32[8,8]{1,0} bitcast(%layer)
  ROOT %m = f32[4,8]{1,0} convolution(%p, %flat), dim_labels=bf_io->bf
}

%store (k: f32[5,4,8], v: f32[4,8], n: s32[]) -> f32[5,4,8] {
  %k = f32[5,4,8]{2,1,0} parameter(0)
  %v = f32[4,8]{1,0} parameter(1)
  %n = s32[] parameter(2)
  %z = s32[] constant(0)
  %row = f32[1,4,8]{2,1,0} bitcast(%v)
  ROOT %d = f32[5,4,8]{2,1,0} dynamic-update-slice(%k, %row, %n, %z, %z)
}

%more (c: (s32[], f32[4,8], f32[5,8,8], f32[5,4,8])) -> pred[] {
  %c = (s32[], f32[4,8]{1,0}, f32[5,8,8]{2,1,0}, f32[5,4,8]{2,1,0}) parameter(0)
  %end = s32[] constant(5)
  %now = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%now, %end), direction=LT
}

ENTRY %main (x.1: f32[4,8], w.1: f32[5,8,8], k.1: f32[5,4,8]) -> f32[5,4,8] {
  %x.1 = f32[4,8]{1,0} parameter(0)
  %w.1 = f32[5,8,8]{2,1,0} parameter(1)
  %k.1 = f32[5,4,8]{2,1,0} parameter(2)
  %start = s32[] constant(0)
  %carry = (s32[], f32[4,8]{1,0}, f32[5,8,8]{2,1,0}, f32[5,4,8]{2,1,0}) tuple(%start, %x.1, %w.1, %k.1)
  %loop = (s32[], f32[4,8]{1,0}, f32[5,8,8]{2,1,0}, f32[5,4,8]{2,1,0}) while(%carry), condition=%more, body=%body
  ROOT %all = f32[5,4,8]{2,1,0} get-tuple-element(%loop), index=3
}
"""


def test_loops_count_as_often_as_they_turn_and_stacks_layer_by_layer() -> None:
    program = read_program(LOOP)
    x, layer = 4 * 8 * 4, 8 * 8 * 4
    assert hbm_bytes(program) == 5 * ((x + layer + x) + (x + x))
    assert compiled_flops(program) == 5 * 2 * 4 * 8 * 8


def test_products_are_counted_by_the_elements_that_meet() -> None:
    """A padded window over one place is an outer product: two places, each of which meets one element."""
    window = "window={size=2 pad=1_1 rhs_reversal=1}, "
    text = f"""HloModule m
ENTRY %main (x: f32[1,3,4], w: f32[2,4,5]) -> f32[2,3,5] {{
  %x = f32[1,3,4]{{2,1,0}} parameter(0)
  %w = f32[2,4,5]{{2,1,0}} parameter(1)
  ROOT %y = f32[2,3,5]{{2,1,0}} convolution(%x, %w), {window}dim_labels=0bf_0io->0bf
}}
"""
    assert compiled_flops(read_program(text)) == 2 * 3 * 4 * 5 * 2


@pytest.mark.parametrize(
    "call",
    [
        "dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
        'custom-call(%x, %w), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
        '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}',
    ],
)
def test_products_of_other_platforms(call: str) -> None:
    text = f"""HloModule m
ENTRY %main (x: f32[3,4], w: f32[4,5]) -> f32[3,5] {{
  %x = f32[3,4]{{1,0}} parameter(0)
  %w = f32[4,5]{{1,0}} parameter(1)
  ROOT %y = f32[3,5]{{1,0}} {call}
}}
"""
    assert compiled_flops(read_program(text)) == 2 * 3 * 4 * 5


def test_what_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY computation"):
        read_program("")
