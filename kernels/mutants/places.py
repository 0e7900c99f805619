"""Lines of the bundled kernels that mutants and variants of several files change."""

from __future__ import annotations

# tiles.py
HIDDEN = 'qk = tl.where(visible, qk, float("-inf"))'
BIAS = "qk = qk * f + bias * LOG2E"
LOG2E = "1.4426950408889634)"

# forward.py: the loop over keys, then what follows it
MAXIMUM = "m_new = tl.maximum(m_i, tl.max(qk, 1) * f)"
MAXIMUM_LINE = f"        {MAXIMUM}  # [BLOCK_M]\n"
ALPHA = "alpha = tl.exp2(m_i - m_safe)"
EXP2 = "p = tl.exp2(qk * f - m_safe[:, None])"
P_LOW = "p_low = p.to(v.dtype.element_ty)"
ROW_SUM = "l_i = l_i * alpha + tl.sum(p, 1)"
WEIGHT_SUM = (
    'w_i = tl.dot(p_low, tl.full([BLOCK_N, 16], 1.0, p_low.dtype), w_i * alpha[:, None], input_precision="ieee")'
)
ACC = 'acc = tl.dot(p_low, v_tile, acc * alpha[:, None], input_precision="ieee")'
DENOMINATOR = "tl.where(seen, w, 1.0)"
LSE_STORE = "lse_tile, mask=offs_m < M)"

# backward.py
DELTA_STORE = "    tl.store(pointers, sums, mask=offs_m < M)"
DS_OF_DQ = "ds = p * (dp - delta_tile[:, None])"
GROUP_LOOP = "    for g in range(GROUP):\n        h = hk * GROUP + g\n"

# attention.py
LN2 = "LN2 = math.log(2.0)"
SCALE = "scale=1.0 / math.sqrt(D) if scale is None else float(scale),"
RETURNED = "return o, lse2 * LN2"
