"""Faults of addresses: grouped heads, strides, offsets that overflow."""

from __future__ import annotations

from .source import ATTENTION, BACKWARD, FORWARD, OUTPUTS, TILES, Edit, Mutant

_ROWS = "offsets = offs_row[:, None].to(tl.int64) * stride_row"
_BIAS = """\
        pointers = mask + i.to(tl.int64) * stride_mm + j.to(tl.int64) * stride_mn
        bias"""
_COLUMNS = "offs_d[None, :].to(tl.int64) * stride_d"
_FORWARD_STRIDES = "*q.stride(), *k.stride(), *v.stride(), *mask_strides, *o.stride(), *lse.stride(),"

GROUPS = (
    Mutant("group-by-remainder", "NSA-triton #27",
           "Query head h uses key/value head h % HK instead of h // (H / HK).", OUTPUTS,
           (Edit(FORWARD, "hk = h // GROUP", "hk = h % (tl.num_programs(1) // GROUP)"),), "grouped heads, HK > 1"),
    Mutant("group-first-member-only", "levanter #449",
           "dK and dV have the first query head of a group alone.", ("dk", "dv"),
           (Edit(BACKWARD, "for g in range(GROUP):", "for g in range(1):"),), "grouped heads"),
    Mutant("fourth-head-reads-the-third", "own: a head index of two bits, saturated",
           "Key/value head 3 takes the values of head 2.", ("out",),
           (Edit(FORWARD, "v += b * stride_vb + hk * stride_vh", "v += b * stride_vb + tl.minimum(hk, 2) * stride_vh"),
            ), "HK = 4"),
)  # fmt: skip

STRIDES = (
    Mutant("do-read-as-contiguous", "pytorch #138354, #141147",
           "delta reads dO with the strides of O.", ("dq", "dk"),
           (Edit(ATTENTION, "*o.stride(), *do.stride(), *(lse", "*o.stride(), *o.stride(), *(lse"),),
           "dO in another layout than O"),
    Mutant("values-by-strides-of-keys", "own: one tensor's strides passed for another's",
           "V is read with the strides of K.", ("out",),
           (Edit(ATTENTION, _FORWARD_STRIDES, _FORWARD_STRIDES.replace("*v.stride()", "*k.stride()")),),
           "K and V in different layouts"),
    Mutant("columns-read-as-contiguous", "fla #1138",
           "The stride of the head dimension is taken for 1.", OUTPUTS,
           (Edit(TILES, _COLUMNS, _COLUMNS.replace(" * stride_d", "")),), "layout `columns`"),
    Mutant("batch-stride-ignored", "own: a batch stride that is never applied",
           "Every batch element takes the first one's keys.", OUTPUTS,
           (Edit(FORWARD, "k += b * stride_kb + hk * stride_kh", "k += hk * stride_kh"),), "B > 1"),
    Mutant("offsets-wrap", "FlashAttention #1500, #2260, fla #1080",
           "Offsets of rows have 32 bits, and are negative from 2^31 elements on.",
           (),  # the call ends there
           (Edit(TILES, _ROWS, _ROWS.replace(".to(tl.int64)", "")),), "layout `far`, along the rows of an operand"),
    Mutant("head-offsets-wrap", "FlashAttention #2611",
           "In the forward pass offsets of heads and batch elements have 32 bits.", (),
           tuple(Edit(FORWARD, f"{x} = tl.program_id({n}).to(tl.int64)", f"{x} = tl.program_id({n})")
                 for n, x in ((1, "h"), (2, "b"))),
           "layout `far`, along the heads or the batch of Q, K or V"),
    Mutant("mask-offsets-wrap", "own: a mask of 46341 x 46341 has 2^31 elements",
           "Offsets of the bias have 32 bits.", (),
           (Edit(TILES, _BIAS, _BIAS.replace(".to(tl.int64)", "")),), "layout `far`, along the rows of a bias"),
    Mutant("padded-columns-read", "pytorch #174114",
           "Columns past the head dimension are read: the next row's, or memory beside the tensor.",
           (),  # where the last row's lie beside the tensor, the call ends there
           (Edit(TILES, "return tl.load(pointers, mask=inside, other=0.0)",
                 "return tl.load(pointers, mask=offs_row[:, None] < rows, other=0.0)"),),
           "D no power of two, or below 16"),
    Mutant("grid-of-128-rows", "own: a grid of fixed size",
           "No more than four tiles are launched.", OUTPUTS,
           (Edit(ATTENTION, "return -(-length // block), heads, batch",
                 "return min(-(-length // block), 4), heads, batch"),), "M > 128"),
)  # fmt: skip

MUTANTS = (*GROUPS, *STRIDES)
