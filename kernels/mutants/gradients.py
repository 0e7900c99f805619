"""Faults of the backward kernels: delta, scales, tiles left out."""

from __future__ import annotations

from .places import DELTA_STORE, DS_OF_DQ
from .source import ATTENTION, BACKWARD, Edit, Mutant

_DP = 'dp = tl.dot(do_tile, tl.trans(v_tile), input_precision="ieee")  # [BLOCK_M, BLOCK_N]\n'
_DQ_LOOP = "for start_n in range(low, high, BLOCK_N):"
_DKDV_LOOP = "for start_m in range(low, high, BLOCK_M):"

DELTA = (
    Mutant("delta-forgotten-in-dq", "own: dS without its second term",
           "dQ is formed from P * dP.", ("dq",), (Edit(BACKWARD, DS_OF_DQ, "ds = p * dp"),)),
    Mutant("delta-one-percent-off", "own: a delta as wrong as TransformerEngine, FLA in CI and cuDNN accept",
           "delta is 1 % too large.", ("dq", "dk"),
           (Edit(BACKWARD, DELTA_STORE, DELTA_STORE.replace("sums", "sums * 1.01")),)),
    Mutant("delta-a-thousandth-off", "own: a constant with too few digits in delta",
           "delta is 0.1 % too large.", ("dq", "dk"),
           (Edit(BACKWARD, DELTA_STORE, DELTA_STORE.replace("sums", "sums * 1.001")),)),
    Mutant("dp-of-half-the-values", "FLA, test_parallel_bwd_full_value_reduction",
           "dP of dQ sums over the first 64 columns of V alone.", ("dq",),
           (Edit(BACKWARD, _DP + "        " + DS_OF_DQ,
                 _DP.replace("v_tile", "tl.where(offs_d[None, :] < 64, v_tile, 0.0)") + "        " + DS_OF_DQ),),
           "D > 64"),
)  # fmt: skip

SCALES = (
    Mutant("dk-without-scale", "own: a factor on one of two gradients",
           "dK lacks the scale.", ("dk",), (Edit(BACKWARD, "dk_tile * scale", "dk_tile"),)),
    Mutant("dv-off-by-a-thousandth", "own: a descale factor",
           "dV is 0.1 % too large.", ("dv",),
           (Edit(BACKWARD, "stride_dvh, dv_tile, offs_n", "stride_dvh, dv_tile * 1.001, offs_n"),), subtle=True),
)  # fmt: skip

TILES_LEFT_OUT = (
    Mutant("dq-last-tile-dropped", "own: a loop bound rounded down to whole tiles",
           "dQ lacks a last tile that is not whole, when there are more than two.", ("dq",),
           (Edit(BACKWARD, _DQ_LOOP,
                 "for start_n in range(low, tl.where(high > 2 * BLOCK_N, high // BLOCK_N * BLOCK_N, high), BLOCK_N):"),
            ), "more than two tiles of keys, the last not whole"),
    Mutant("dkdv-last-tile-dropped", "own: a loop that ends one tile too soon",
           "dK and dV lack the last tile of queries when there are more than two.", ("dk", "dv"),
           (Edit(BACKWARD, _DKDV_LOOP,
                 "for start_m in range(low, high - (high > 2 * BLOCK_M) * BLOCK_M, BLOCK_M):"),), "M > 64"),
    Mutant("dk-tail-query-dropped", "own: a tail of one query left out",
           "dK and dV lack a last query that is alone in its tile.", ("dk", "dv"),
           (Edit(BACKWARD, _DKDV_LOOP,
                 "for start_m in range(low, high - (high > BLOCK_M) * (high % BLOCK_M == 1), BLOCK_M):"),),
           "M = 33, 65, 97, 129"),
    Mutant("gradients-unwritten-without-queries", "FlashAttention #2421",
           "dK and dV are never written when there are no queries.", ("dk", "dv"),
           (Edit(ATTENTION, "if dk.numel() > 0:", "if dk.numel() > 0 and do.numel() > 0:"),), "M = 0"),
)  # fmt: skip

MUTANTS = (*DELTA, *SCALES, *TILES_LEFT_OUT)
