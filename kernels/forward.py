"""Flash attention, forward: Milakov and Gimelshein's online softmax (2018) over tiles, as in Dao et al. (2022), Alg. 1.

For each tile of queries the kernel walks the visible keys once, keeping a running maximum `m_i`, running sums and an
unnormalised output `acc`; when the maximum grows, sums and output are rescaled by `alpha`.  Base-2 exponentials.

Two choices make it more accurate than the usual kernel at next to no cost:
 * the scale is applied to the logits in fp32, not to the keys in half precision;
 * O is divided by `w_i`, the sum of the *rounded* P, the same numbers that multiply V, so that rounding P cannot bias
   the weights' total; the log-sum-exp comes from `l_i`, the sum before rounding, and stays accurate to fp32.
"""

# ruff: noqa: ANN001, ANN201
# mypy: ignore-errors

import triton
import triton.language as tl

from .tiles import LOG2E, SIZES, key_range, load_tile, masked_logits, store_tile


@triton.jit(do_not_specialize=SIZES)
def flash_forward(
    q, k, v, mask, key_lengths, o, lse,
    stride_qb, stride_qh, stride_qm, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_vb, stride_vh, stride_vn, stride_vd,
    stride_mb, stride_mh, stride_mm, stride_mn,
    stride_ob, stride_oh, stride_om, stride_od,
    stride_lb, stride_lh, stride_lm,
    scale, M, N, GROUP, diagonal, left, right,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_LENGTHS: tl.constexpr, MASK_KIND: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK_M queries of one head.  Grid: (tiles of M, H, B).

    Writes `o` [B, H, M, D] and `lse` [B, H, M] (fp32, base 2; -inf for a query that sees no key, whose output is 0).
    """
    start_m = tl.program_id(0) * BLOCK_M
    h = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    hk = h // GROUP
    offs_m = start_m + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    q += b * stride_qb + h * stride_qh
    k += b * stride_kb + hk * stride_kh
    v += b * stride_vb + hk * stride_vh
    mask += b * stride_mb + h * stride_mh
    o += b * stride_ob + h * stride_oh
    lse += b * stride_lb + h * stride_lh

    keys = N
    if HAS_LENGTHS:
        keys = tl.minimum(tl.load(key_lengths + b).to(tl.int32), N)
    low, high = key_range(start_m, M, keys, diagonal, left, right, HAS_LEFT, HAS_RIGHT, BLOCK_M, BLOCK_N)

    q_tile = load_tile(q, offs_m, offs_d, stride_qm, stride_qd, M, HEAD_DIM)  # [BLOCK_M, BLOCK_D]
    m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    w_i = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start_n in range(low, high, BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        k_tile = load_tile(k, offs_n, offs_d, stride_kn, stride_kd, keys, HEAD_DIM)  # [BLOCK_N, BLOCK_D]
        qk = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * (scale * LOG2E)  # [BLOCK_M, BLOCK_N]
        qk = masked_logits(qk, mask, offs_m, offs_n, M, keys, diagonal, left, right, stride_mm, stride_mn,
                           HAS_LEFT, HAS_RIGHT, MASK_KIND)  # fmt: skip
        m_new = tl.maximum(m_i, tl.max(qk, 1))  # [BLOCK_M]
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)  # a row with nothing visible yet: exp2(-inf - 0) = 0
        alpha = tl.exp2(m_i - m_safe)
        p = tl.exp2(qk - m_safe[:, None])  # [BLOCK_M, BLOCK_N]
        p_low = p.to(v.dtype.element_ty)
        l_i = l_i * alpha + tl.sum(p, 1)
        w_i = w_i * alpha + tl.sum(p_low.to(tl.float32), 1)
        v_tile = load_tile(v, offs_n, offs_d, stride_vn, stride_vd, keys, HEAD_DIM)  # [BLOCK_N, BLOCK_D]
        acc = tl.dot(p_low, v_tile, acc * alpha[:, None], input_precision="ieee")
        m_i = m_new

    seen = l_i > 0.0
    o_tile = tl.div_rn(acc, tl.where(seen, w_i, 1.0)[:, None])  # `/` may be off by an ulp on a GPU
    store_tile(o, o_tile, offs_m, offs_d, stride_om, stride_od, M, HEAD_DIM)
    lse_tile = tl.where(seen, m_i + tl.log2(l_i), float("-inf"))
    tl.store(lse + offs_m.to(tl.int64) * stride_lm, lse_tile, mask=offs_m < M)
