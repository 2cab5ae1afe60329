"""Programs as compilers print them, shortened."""

import pytest

from jaxcxr.plan.hlo import Collective, by_kind, collectives, moved

GPU = """\
HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[32,1024])) -> (s32[], f32[32,1024]) {
  %all-gather-start = (f32[8,1024]{1,0}, f32[32,1024]{1,0}) all-gather-start(%x), replica_groups=[2,4]<=[8]
  %all-gather-done = f32[32,1024]{1,0} all-gather-done(%all-gather-start)
}

%condition (p: (s32[], f32[32,1024])) -> pred[] {
  %n = s32[] constant(3)
}

ENTRY %main (p: f32[1024,256]) -> f32[1024,256] {
  %w = (s32[]) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"8"}}
  %all-reduce-start = f32[1024,256]{1,0} all-reduce-start(%y), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  ROOT %all-reduce-done = f32[1024,256]{1,0} all-reduce-done(%all-reduce-start)
}
"""


def test_bytes_are_those_of_the_values_and_loops_count_their_turns():
    found = collectives(GPU, [0, 0, 0, 0, 1, 1, 1, 1])
    gather = Collective("all-gather", 32 * 1024 * 4, 4, False, 8)
    reduce = Collective("all-reduce", 1024 * 256 * 4, 2, True, 1)
    assert found == [gather, reduce]
    assert gather.sent == 8 * 32 * 1024 * 4 * 3 / 4
    assert reduce.sent == 1024 * 256 * 4  # two rounds of half
    assert by_kind(found)["all-reduce"] == {"count": 1, "bytes": 2**20, "sent": 0, "sent_across": 2**20}


def test_without_a_trip_count_the_condition_tells():
    text = GPU.replace(', backend_config={"known_trip_count":{"n":"8"}}', "")
    assert [one.times for one in collectives(text, [0] * 8)] == [3, 1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "%r = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} reduce-scatter(%x), replica_groups=[4,2]<=[2,4]T(1,0)",
            Collective("reduce-scatter", 16 * 8 * 2 * 2, 2, True, 1),
        ),
        (  # a mesh whose first axis is the innermost: the groups are of neighbours
            "%r = f32[8]{0} all-gather(%x), replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}",
            Collective("all-gather", 8 * 4, 4, False, 1),
        ),
        (
            "%r = (f32[8]{0}, f32[4,4]{1,0}) all-reduce(%x, %y), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add",
            Collective("all-reduce", (8 + 16) * 4, 4, False, 1),
        ),
        (
            "%r = ((f32[4,8]{1,0}, bf16[2]{0}), (f32[8,8]{1,0}, bf16[4]{0})) all-gather-start(%x, %y), channel_id=1, "
            "replica_groups={{0,4},{1,5},{2,6},{3,7}}, dimensions={0}",
            Collective("all-gather", 8 * 8 * 4 + 4 * 2, 2, True, 1),
        ),
        (
            "%r = ((f32[16,8]{1,0}), f32[4,8]{1,0}) reduce-scatter-start(%x), channel_id=17, "
            "replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}, to_apply=%add",
            Collective("reduce-scatter", 16 * 8 * 4, 4, False, 1),
        ),
        (
            "%r = (f32[8]{0:T(256)}, f32[8]{0:T(256)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), "
            "source_target_pairs={{0,1},{1,0}}",
            Collective("collective-permute", 32, 2, False, 1),
        ),
        (
            "%r = f32[8]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}",
            Collective("collective-permute", 32, 2, False, 1),
        ),
        (
            "%send = (f32[256,8,128]{2,1,0}, u32[], token[]) send(%x, %t), channel_id=2, is_host_transfer=true, "
            'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}',
            Collective("all-reduce", 2**20, 2, True, 1),
        ),
        ("%r = f32[8]{0} all-reduce(%x), replica_groups={{0},{1}}, to_apply=%add", None),
        ("%r = f32[8]{0} fusion(%all-reduce.8), kind=kLoop, calls=%fused", None),
    ],
)
def test_forms_of_a_collective(line, expected):
    text = "ENTRY %main (p: f32[8]) -> f32[8] {\n  " + line + "\n}\n"
    assert collectives(text, [0, 0, 0, 0, 1, 1, 1, 1]) == ([expected] if expected else [])


TPU = """\
%begin (p: bf16[2,8]) -> (bf16[2,8], bf16[8,8]) {
  %g.1 = bf16[8,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=8, replica_groups=[1,4]<=[4], GOES_ON
}

%product (p: bf16[2,8]) -> bf16[8,8] {
  %g.2 = bf16[8,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=8, replica_groups=[1,4]<=[4], GOES_ON
  %product.1 = bf16[8,8]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}

%end (p: bf16[2,8]) -> bf16[8,8] {
  %g.3 = bf16[8,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=8, replica_groups=[1,4]<=[4], GOES_ON
}

ENTRY %main (p: bf16[2,8]) -> bf16[8,8] {
  %async-collective-start = (bf16[2,8]{1,0}, bf16[8,8]{1,0}) fusion(%p), kind=kCustom, calls=%begin
  %fusion = (bf16[8,8]{1,0}) fusion(%a), kind=kOutput, calls=%product
  %other = bf16[8,8]{1,0} all-gather(%q), channel_id=9, replica_groups=[1,4]<=[4], GOES_ON
  %alone = bf16[8,8]{1,0} all-gather(%q), channel_id=10, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %async-collective-done = bf16[8,8]{1,0} fusion(%c), kind=kCustom, calls=%end
}
""".replace("GOES_ON", 'dimensions={0}, frontend_attributes={chain_id="0"}')


def test_what_is_spread_over_several_fusions_is_sent_once():
    assert collectives(TPU, [0] * 4) == [Collective("all-gather", 8 * 8 * 2, 4, False, 1)] * 3


def test_a_permute_sends_its_value_once():
    assert Collective("collective-permute", 32, 2, False, 3).sent == 96


MOVES = """\
%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %y = f32[8,128]{1,0:T(8,128)S(1)} fusion(%x), kind=kLoop, calls=%inside
  ROOT %o = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%i, %x)
}

%condition (p: (s32[], f32[8,128])) -> pred[] {
  %n = s32[] constant(3)
}

ENTRY %main (a: f32[8,100]) -> f32[8,100] {
  %a = f32[8,100]{1,0:T(8,128)} parameter(0)
  %flat = f32[800]{0} bitcast(%a)
  %product = (f32[8,100]{1,0}, s8[1000]{0}) custom-call(%flat)
  %first = f32[8,100]{1,0} get-tuple-element(%product), index=0
  %slice = f32[1,100]{1,0} dynamic-slice(%first, %a)
  %t = (s32[], f32[8,128]{1,0:T(8,128)}) tuple(%a, %a)
  %w = (s32[], f32[8,128]{1,0:T(8,128)}) while(%t), condition=%condition, body=%body
  ROOT %r = f32[8,100]{1,0} add(%first, %first)
}
"""


def test_what_moves_is_counted_once_an_operation_and_in_every_turn_of_a_loop():
    product = 800 * 4 + 8 * 100 * 4  # read and written; workspace that nobody looks at is neither
    piece = 2 * 100 * 4
    turns = 3 * 8 * 128 * 4  # what is read; the result stays on the chip
    assert moved(MOVES) == product + piece + turns + 3 * 8 * 100 * 4
