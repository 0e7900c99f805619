"""Faults of memory: what is never written, what is written twice, what is read before it is written, inputs changed."""

from __future__ import annotations

from .places import GROUP_LOOP, LSE_STORE, MAXIMUM
from .source import ATTENTION, BACKWARD, FORWARD, OUTPUTS, Edit, Mutant

_O = "store_tile(o, o_tile, offs_m, offs_d, stride_om, stride_od, M, HEAD_DIM, PADDED, ALIGNED)"
_DK = "dk + b * stride_dkb + hk * stride_dkh, dk_tile * scale, offs_n, offs_d, stride_dkn, stride_dkd, N,"
_DV = "store_tile(dv + b * stride_dvb + hk * stride_dvh, dv_tile, offs_n, offs_d, stride_dvn, stride_dvd, N,"
_EMPTY = "dq, dk, dv = (torch.empty_like("
_RANGE = "    low, high = key_range(start_m, M, keys, diagonal, left, right, BAND, BLOCK_M, BLOCK_N)\n\n    q_tile"

UNWRITTEN = (
    Mutant("output-of-last-query-unwritten", "own: a store's mask one row short",
           "The output of a last query that is alone in its tile is never written.", ("out",),
           (Edit(FORWARD, _O, _O.replace(" M,", " M - (M % BLOCK_M == 1),")),), "M = 1, 33, 65, ..."),
    Mutant("output-unwritten-without-keys", "FlashAttention #1778, #20",
           "A tile of queries whose key loop is empty returns before it has written anything.", OUTPUTS,
           (Edit(FORWARD, _RANGE, _RANGE.replace("\n\n", "\n    if high <= low:\n        return\n\n")),),
           "tiles that see no key: M > N bottom-right, key length 0, N = 0"),
    Mutant("lse-of-empty-rows-unwritten", "tilelang #2461",
           "The LSE of rows without keys is never written.", ("lse",),
           (Edit(FORWARD, LSE_STORE, LSE_STORE.replace("offs_m < M", "(offs_m < M) & seen")),), "empty rows"),
    Mutant("dv-unwritten-past-key-lengths", "own: gradients of padding that nobody writes",
           "dV of keys past the length is never written.", ("dv",),
           (Edit(BACKWARD, _DV, _DV.replace(" N,", " keys,")),), "key lengths"),
    Mutant("maximum-starts-from-memory", "own: a scratch buffer that was zero in every test",
           "What the LSE's memory held before, up to 1/2, is added to the running maximum: only bits change.",
           OUTPUTS,
           (Edit(FORWARD, MAXIMUM,
                 "held = tl.load(lse + offs_m.to(tl.int64) * stride_lm, mask=offs_m < M, other=0.0)\n"
                 "        m_new = tl.maximum(m_i, tl.max(qk, 1) * f) + tl.minimum(tl.maximum(held, 0.0), 0.5)"),),
           subtle=True),
    Mutant("dv-added-to-memory", "own: a gradient buffer that is not zeroed",
           "dV is added to what its memory held, if that is a number below 1.", ("dv",),
           (Edit(BACKWARD, "    dv_tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)\n",
                 "    dv_tile = load_tile(dv + b * stride_dvb + hk * stride_dvh, offs_n, offs_d, stride_dvn, "
                 "stride_dvd, N, HEAD_DIM, PADDED, ALIGNED).to(tl.float32)\n"
                 "    dv_tile = tl.where(tl.abs(dv_tile) < 1.0, dv_tile, 0.0)\n"),)),
)  # fmt: skip

RACES = (
    Mutant("dkdv-race-of-heads", "cudnn-frontend #396, #426",
           "The query heads of a group add to dK and dV by load, add and store.", ("dk", "dv"),
           (Edit(ATTENTION, _EMPTY, _EMPTY.replace("empty", "zeros")),
            Edit(ATTENTION, '_grid(N, chosen["BLOCK_N"], HK, B)', '_grid(N, chosen["BLOCK_N"], H, B)'),
            Edit(BACKWARD, "    hk = tl.program_id(1).to(tl.int64)\n",
                 "    head = tl.program_id(1).to(tl.int64)\n    hk = head // GROUP\n"),
            Edit(BACKWARD, GROUP_LOOP, "    for g in range(1):\n        h = head + g\n"),
            Edit(BACKWARD, _DK, _DK.replace(
                "dk_tile * scale", "dk_tile * scale + load_tile(dk + b * stride_dkb + hk * stride_dkh, offs_n, offs_d, "
                "stride_dkn, stride_dkd, N, HEAD_DIM, PADDED, ALIGNED)")),
            Edit(BACKWARD, _DV, _DV.replace(
                "dv_tile", "dv_tile + load_tile(dv + b * stride_dvb + hk * stride_dvh, offs_n, offs_d, stride_dvn, "
                "stride_dvd, N, HEAD_DIM, PADDED, ALIGNED)"))), "grouped heads"),
)  # fmt: skip

INPUTS = (
    Mutant("do-changed", "own: dO of empty rows zeroed where it lies",
           "The backward pass writes zeros into the caller's dO where a row sees no key.", (),
           (Edit(ATTENTION, "    delta = torch.empty_like(lse)\n",
                 "    delta = torch.empty_like(lse)\n"
                 "    if do.is_contiguous():\n"
                 "        do.masked_fill_(torch.isneginf(lse)[..., None], 0.0)\n"),), "empty rows"),
)  # fmt: skip

MUTANTS = (*UNWRITTEN, *RACES, *INPUTS)
