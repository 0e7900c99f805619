"""Faults that only some dtypes, sizes or values show."""

from __future__ import annotations

from .places import ACC, DS_OF_DQ, P_LOW
from .source import BACKWARD, FORWARD, OUTPUTS, TILES, Edit, Mutant

_V_TILE = "v_tile = load_tile(v, offs_n, offs_d, stride_vn, stride_vd, keys, HEAD_DIM, PADDED, ALIGNED)\n"


def _wrong(where: str) -> tuple[Edit, ...]:
    """Values off by 1/64 where a condition of the kernel's arguments holds."""
    return (
        Edit(FORWARD, ACC, ACC.replace("v_tile", f"tl.where({where}, v_tile * 1.015625, v_tile).to(v_tile.dtype)")),
    )


DTYPES = (
    Mutant("fp16-subnormal-weights-flushed", "own: a device that flushes subnormal halves",
           "In fp16 P below 2^-14 is 0.", ("out",),
           (Edit(FORWARD, P_LOW, "p_low = tl.where((p < 0.00006103515625) & (v.dtype.element_ty == tl.float16), 0.0, "
                 "p).to(v.dtype.element_ty)"),), "fp16; rows with weights below 2^-14", subtle=True),
    Mutant("fp16-gradients-overflow", "own: dP kept in the input's dtype",
           "dP is rounded to fp16, and infinite beyond 65504, for fp16 inputs alone.", ("dq",),
           (Edit(BACKWARD, DS_OF_DQ,
                 "ds = p * (dp.to(tl.float16 if k.dtype.element_ty == tl.float16 else tl.float32).to(tl.float32) "
                 "- delta_tile[:, None])"),), "fp16", subtle=True),
)  # fmt: skip

SIZES = (
    Mutant("head-dim-of-40", "own: a head dimension rounded down to a multiple of 16",
           "With D = 40 the tile has 32 columns of V: the others are 0.", ("out",),
           (Edit(FORWARD, "stride_vn, stride_vd, keys, HEAD_DIM,", "stride_vn, stride_vd, keys, HEAD_DIM - HEAD_DIM % "
                 "16 * (HEAD_DIM > 16),"),), "D = 40"),
    Mutant("last-tile-of-long-rows", "own: a remainder loop that is never tuned",
           "Keys from 128 on are 1/64 too heavy.", ("out",), _wrong("start_n >= 128"), "N > 128"),
    Mutant("one-query", "own: a path for one query, which few tests take",
           "A single query's values are 1/64 too large.", ("out",), _wrong("M == 1"), "M = 1"),
)  # fmt: skip

VALUES = (
    Mutant("logits-clamped-at-1000", "own: a clamp against overflow",
           "Logits are clamped at 1000.", OUTPUTS,
           (Edit(TILES, "return qk, f", "return tl.minimum(qk, 1442.695 / f), f"),), "logits beyond 1000"),
    Mutant("values-saturate-at-48", "own: values clipped to the range of a narrow format",
           "V is clipped to [-48, 48].", ("out",),
           (Edit(FORWARD, _V_TILE,
                 _V_TILE + "        v_tile = tl.where(v_tile > 48.0, 48.0, v_tile).to(v_tile.dtype)\n"),),
           "values beyond 48"),
    Mutant("tiny-weights-skipped", "own: tiles below a threshold are skipped",
           "A tile whose weights are all below 2^-10 of the maximum is left out.", OUTPUTS,
           (Edit(FORWARD, "        p_low = p.to(",
                 "        p = p * (tl.max(p, 1) > 0.0009765625)[:, None].to(tl.float32)\n"
                 "        p_low = p.to("),), "more than one tile of keys; peaked rows"),
    Mutant("negative-rows-are-empty", "own: a large negative number taken for minus infinity",
           "A row whose logits are all below -100 is taken for one without keys.", OUTPUTS,
           (Edit(FORWARD, "seen = l_i > 0.0", "seen = (l_i > 0.0) & (m_i > -144.0)"),), "rows of very negative logits"),
    Mutant("subnormal-values-flushed", "own: flush-to-zero in a copy",
           "Values below 2^-14 are taken for 0.", ("out",),
           (Edit(FORWARD, _V_TILE, _V_TILE + "        v_tile = tl.where(tl.abs(v_tile.to(tl.float32)) < "
                 "0.00006103515625, 0.0, v_tile).to(v_tile.dtype)\n"),), "tiny values", subtle=True),
    Mutant("saturated-rows", "pytorch #121558",
           "A weight of exactly 1 is rounded down to the next number of the dtype.", ("out",),
           (Edit(FORWARD, P_LOW, "p_low = tl.where(p == 1.0, 0.9990234375, p).to(v.dtype.element_ty)"),), subtle=True),
)  # fmt: skip

MUTANTS = (*DTYPES, *SIZES, *VALUES)
