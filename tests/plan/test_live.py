"""What is alive at a program's fullest moment: programs as compilers print them, shortened, and a real one."""

import pytest

from jaxcxr.plan import targets
from jaxcxr.plan.compile import measure
from jaxcxr.plan.live import at_peak
from tests.plan import runs

GPU = """\
HloModule jit_step, is_scheduled=true

%fused (p.1: f32[64,64]) -> bf16[64,64] {
  %p.1 = f32[64,64]{1,0} parameter(0)
  ROOT %c = bf16[64,64]{1,0} convert(%p.1)
}

ENTRY %main (w.1: f32[64,64], x.1: bf16[8,64]) -> (f32[64,64]) {
  %w.1 = f32[64,64]{1,0} parameter(0), metadata={op_name="state[\\'learnt\\'][\\'a\\']"}
  %x.1 = bf16[8,64]{1,0} parameter(1), metadata={op_name="batch[\\'image\\']"}
  %rounded = bf16[64,64]{1,0} fusion(%w.1), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/jvp()/convert"}
  %gemm = (bf16[8,64]{1,0}, s8[1000]{0}) custom-call(%x.1, %rounded), metadata={op_name="jit(step)/jvp()/dot"}
  %y = bf16[8,64]{1,0} get-tuple-element(%gemm), index=0
  %flat = bf16[512]{0} bitcast(%y)
  %z = bf16[512]{0} fusion(%flat), metadata={op_name="jit(step)/jvp()/mul"}
  %dy = bf16[8,64]{1,0} fusion(%z, %flat), metadata={op_name="jit(step)/transpose(jvp())/mul"}
  %dw = f32[64,64]{0,1} custom-call(%dy, %x.1), metadata={op_name="jit(step)/transpose(jvp())/dot"}
  %new = f32[64,64]{1,0} fusion(%w.1, %dw), metadata={op_name="jit(step)/sub"}
  ROOT %out = (f32[64,64]{1,0}) tuple(%new)
}
"""


def test_buffers_live_from_where_they_are_made_to_where_they_are_last_needed():
    # The fullest is the gradient's line: 16,384 bytes, and what it is made of. Results have the state's own place.
    assert at_peak(GPU) == {"activations": 0, "gradients": 64 * 64 * 4, "rounded weights": 0, "workspace": 8 * 64 * 2}
    # Without it, that of the first product: its workspace ends there, and the rounded weights.
    assert at_peak(GPU.replace("f32[64,64]{0,1} custom-call", "f32[4]{0} custom-call")) == {
        "activations": 1024 + 1000,
        "gradients": 0,
        "rounded weights": 8192,
        "workspace": 0,
    }


TPU = """\
%body (p: (s32[], f32[64,64], bf16[8,4])) -> (s32[], f32[64,64], bf16[8,4]) {
  %p = (s32[]{:T(128)}, f32[64,64]{1,0:T(8,128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %w = f32[64,64]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %x = bf16[8,4]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=2
  %r = bf16[64,64]{1,0:T(8,128)(2,1)} convert(%w), metadata={op_name="jit(step)/while/body/jvp()/convert"}
  %near = (f32[8,4]{1,0:T(8,128)}, bf16[64,64]{1,0:T(8,128)(2,1)S(1)}) fusion(%x, %r), metadata={op_name="jvp()/dot"}
  ROOT %o = (s32[]{:T(128)}, f32[64,64]{1,0:T(8,128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) tuple(%i, %w, %x)
}

ENTRY %main (w.1: f32[64,64], b.1: bf16[8,4]) -> (f32[64,64]) {
  %w.1 = f32[64,64]{1,0:T(8,128)} parameter(0), metadata={op_name="state[\\'learnt\\'][\\'a\\']"}
  %c = s32[]{:T(128)} constant(0)
  %b.1 = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(1), metadata={op_name="batch[\'image\']"}
  %x.1 = bf16[8,4]{1,0:T(8,128)(2,1)} fusion(%b.1, %c), metadata={op_name="jit(step)/add"}
  %start = (bf16[8,4]{1,0:T(8,128)(2,1)}, bf16[8,4]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) copy-start(%x.1)
  %done = bf16[8,4]{1,0:T(8,128)(2,1)} copy-done(%start)
  %t = (s32[]{:T(128)}, f32[64,64]{1,0:T(8,128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) tuple(%c, %w.1, %done)
  %loop = (s32[]{:T(128)}, f32[64,64]{1,0:T(8,128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) while(%t), condition=%c0, body=%body
  %g = f32[64,64]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  ROOT %out = (f32[64,64]{1,0:T(8,128)}) tuple(%g)
}
"""


def test_tiles_loops_and_memory_on_the_chip():
    # 8 x 4 takes a tile of 8 x 128; within the loop, where weights are known as such, 64 x 64 takes 64 x 128.
    assert at_peak(TPU) == {
        "activations": 8 * 128 * 4,
        "gradients": 0,
        "rounded weights": 64 * 128 * 2,
        "workspace": 8 * 128 * 2,
    }


def test_of_a_real_program_it_is_what_the_compiler_has_found_room_for():
    found = measure(runs.autoencoder(attention="xla", **{"data.size": 64}), targets.parse("cpu:1"))
    assert sum(found["alive"].values()) == pytest.approx(found["memory"]["temporaries"], rel=0.01)
    images = 8 * 64 * 64 * 8 * 4  # one of the network's, of eight channels in float32, for each of the batch
    assert found["alive"]["activations"] > 20 * images
    assert found["alive"]["rounded weights"] < images
