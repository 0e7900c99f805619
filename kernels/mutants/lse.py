"""Faults of the log-sum-exp that the caller gets, and of the one that the backward pass gets."""

from __future__ import annotations

from .places import LSE_STORE, P_LOW, RETURNED
from .source import ATTENTION, FORWARD, OUTPUTS, Edit, Mutant

_LSE = 'tl.where(seen, m_i + tl.log2(l_i), float("-inf"))'

MUTANTS = (
    Mutant("lse-in-base-2", "tokenspeed #571, flashinfer-bench #390",
           "The LSE is returned in base 2.", ("lse",), (Edit(ATTENTION, RETURNED, "return o, lse2 * 1.0"),)),
    Mutant("lse-off-by-a-thousandth", "own: an epsilon in a logarithm",
           "The LSE that is returned is 0.001 too large.", ("lse",),
           (Edit(ATTENTION, RETURNED, "return o, lse2 * LN2 + 1e-3"),)),
    Mutant("lse-with-epsilon", "own: a guard against log(0)",
           "The LSE is log2(l + 0.001).", ("lse",),
           (Edit(FORWARD, "tl.log2(l_i)", "tl.log2(l_i + 1.0e-3)"),)),
    Mutant("lse-of-truncated-weights", "own: one row sum for two purposes",
           "P is truncated, and the LSE formed from its sum: always too small.", OUTPUTS,
           (Edit(FORWARD, P_LOW,
                 "p = (p.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)\n"
                 "        p_low = p.to(v.dtype.element_ty)"),), subtle=True),
    Mutant("lse-0-for-empty-rows", "flashinfer #4484",
           "The LSE of a row without keys is 0.", ("lse",),
           (Edit(FORWARD, _LSE, "tl.where(seen, m_i + tl.log2(l_i), 0.0)"),), "empty rows"),
    Mutant("lse-of-another-head", "FlashAttention #648",
           "With grouped heads the LSE's heads are returned in another order.", ("lse",),
           (Edit(ATTENTION, RETURNED,
                 "return o, (lse2.flip(1) if q.shape[1] != k.shape[1] else lse2) * LN2"),), "grouped heads"),
    Mutant("lse-of-last-query-unwritten", "own: a store's mask one row short",
           "The LSE of the last query is never written when it is alone in its tile.", ("lse",),
           (Edit(FORWARD, LSE_STORE, LSE_STORE.replace("< M", "< M - (M % BLOCK_M == 1)")),),
           "M = 1, 33, 65, ..."),
)  # fmt: skip
