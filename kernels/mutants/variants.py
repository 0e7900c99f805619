"""The bundled kernel in other arrangements, each of them right: what a verdict must not mistake for a fault."""

from __future__ import annotations

from .places import DENOMINATOR, LN2, MAXIMUM_LINE, P_LOW
from .source import ATTENTION, BACKWARD, FORWARD, SCHEDULES, TILES, Edit, Variant

_KEYS = "    for start_n in range(low, high, BLOCK_N):\n        offs_n = start_n + tl.arange(0, BLOCK_N)\n"
_QUERIES = "        for start_m in range(low, high, BLOCK_M):\n"
_REVERSED = (
    "    for step in range(low, high, BLOCK_N):\n"
    "        start_n = low + (high - 1 - low) // BLOCK_N * BLOCK_N - (step - low)\n"
    "        offs_n = start_n + tl.arange(0, BLOCK_N)\n"
)


def _tiles(rows: int, columns: int) -> Variant:
    return Variant(
        f"tiles-{rows}x{columns}",
        f"Tiles of {rows} queries and {columns} keys.",
        (Edit(SCHEDULES, "BLOCK_M=32, BLOCK_N=32", f"BLOCK_M={rows}, BLOCK_N={columns}"),),
    )


VARIANTS = (
    _tiles(16, 16), _tiles(64, 32), _tiles(32, 64), _tiles(64, 64),
    Variant("reversed-keys", "Forward and dQ walk the keys from the last tile to the first.",
            (Edit(FORWARD, _KEYS, _REVERSED), Edit(BACKWARD, _KEYS, _REVERSED))),
    Variant("reversed-queries", "dK and dV walk the queries from the last tile to the first.",
            (Edit(BACKWARD, _QUERIES,
                  "        for step in range(low, high, BLOCK_M):\n"
                  "            start_m = low + (high - 1 - low) // BLOCK_M * BLOCK_M - (step - low)\n"),)),
    Variant("split-keys", "The keys are walked in two halves, each with a maximum and sums of its own, merged in fp32.",
            (Edit(FORWARD, _KEYS,
                  "    middle = low + (high - low) // 2 // BLOCK_N * BLOCK_N\n"
                  "    m_half, l_half, w_half, acc_half = m_i, l_i, w_i, acc\n" + _KEYS +
                  "        second_half = start_n == middle\n"
                  "        m_half, l_half = tl.where(second_half, m_i, m_half), tl.where(second_half, l_i, l_half)\n"
                  "        w_half = tl.where(second_half, w_i, w_half)\n"
                  "        acc_half = tl.where(second_half, acc, acc_half)\n"
                  '        m_i = tl.where(second_half, float("-inf"), m_i)\n'
                  "        l_i, w_i = tl.where(second_half, 0.0, l_i), tl.where(second_half, 0.0, w_i)\n"
                  "        acc = tl.where(second_half, 0.0, acc)\n"),
             Edit(FORWARD, "    seen = l_i > 0.0\n",
                  "    m_both = tl.maximum(m_half, m_i)\n"
                  '    m_safe = tl.where(m_both == float("-inf"), 0.0, m_both)\n'
                  "    first, second = tl.exp2(m_half - m_safe), tl.exp2(m_i - m_safe)\n"
                  "    l_i = l_half * first + l_i * second\n"
                  "    w_i = w_half * first[:, None] + w_i * second[:, None]\n"
                  "    acc = acc_half * first[:, None] + acc * second[:, None]\n"
                  "    m_i = m_both\n"
                  "    seen = l_i > 0.0\n"))),
    Variant("conditional-rescale",
            "As in FlashAttention-4: a row is rescaled only when its maximum grows by more than 2^8; P may reach 2^8.",
            (Edit(FORWARD, MAXIMUM_LINE,
                  "        top = tl.max(qk, 1) * f  # [BLOCK_M]\n"
                  "        m_new = tl.where(top > m_i + 8.0, top, m_i)  # -inf + 8 is -inf\n"),)),
    Variant("p-fp32", "P is not rounded: its product with V is fp32, in both passes.",
            (Edit(FORWARD, P_LOW, "p_low = p"),
             Edit(FORWARD, "acc = tl.dot(p_low, v_tile,", "acc = tl.dot(p_low, v_tile.to(tl.float32),"),
             Edit(BACKWARD, "tl.dot(p.to(do.dtype.element_ty), do_tile,", "tl.dot(p, do_tile.to(tl.float32),"))),
    Variant("ds-fp32", "dS is not rounded: its products with K and Q are fp32.",
            (Edit(BACKWARD, "tl.dot(ds.to(q.dtype.element_ty), q_tile,", "tl.dot(ds, q_tile.to(tl.float32),"),
             Edit(BACKWARD, "tl.dot(ds.to(k.dtype.element_ty), k_tile,", "tl.dot(ds, k_tile.to(tl.float32),"))),
    Variant("natural-exp", "Logits, exponentials and logarithms in base e, in both passes.",
            (Edit(TILES, "LOG2E = tl.constexpr(1.4426950408889634)", "LOG2E = tl.constexpr(1.0)"),
             Edit(FORWARD, "alpha = tl.exp2(", "alpha = tl.exp("), Edit(FORWARD, "p = tl.exp2(", "p = tl.exp("),
             Edit(FORWARD, "tl.log2(l_i)", "tl.log(l_i)"),
             Edit(BACKWARD, "tl.exp2(qk * f - lse_tile[:", "tl.exp(qk * f - lse_tile[:"),
             Edit(BACKWARD, "tl.exp2(qk * f - lse_tile[None", "tl.exp(qk * f - lse_tile[None"),
             Edit(ATTENTION, LN2, "LN2 = 1.0"))),
    Variant("divide-by-unrounded-sum", "O is divided by the sum of P before rounding, as in most kernels.",
            (Edit(FORWARD, DENOMINATOR, "tl.where(seen, l_i, 1.0)"),)),
)  # fmt: skip
