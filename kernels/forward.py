"""Flash attention, forward: Milakov and Gimelshein's online softmax (2018) over tiles, as in Dao et al. (2022), Alg. 1.

For each tile of queries the kernel walks the visible keys once, keeping a running maximum `m_i`, running sums and an
unnormalised output `acc`; when the maximum grows, sums and output are rescaled by `alpha`.  Base-2 exponentials.

Two choices make it more accurate than the usual kernel at next to no cost:
 * the scale is applied to the logits in fp32, not to the keys in half precision;
 * O is divided by `w_i`, the sum of the *rounded* P, the same numbers that multiply V, so that rounding P cannot bias
   the weights' total; the log-sum-exp comes from `l_i`, the sum before rounding, and stays accurate to fp32.
And two make it fast: a tile that hides nothing is not masked, and logits are scaled by the exponential's own
multiply-add, for which the scale's sign goes into Q (`positive_scale`).
"""

# ruff: noqa: ANN001, ANN201
# mypy: ignore-errors

import triton
import triton.language as tl

from .tiles import ANY_VALUE, key_range, load_tile, masked_logits, positive_scale, store_tile


@triton.jit(**ANY_VALUE)
def flash_forward(
    q, k, v, mask, key_lengths, o, lse,
    stride_qb, stride_qh, stride_qm, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_vb, stride_vh, stride_vn, stride_vd,
    stride_mb, stride_mh, stride_mm, stride_mn,
    stride_ob, stride_oh, stride_om, stride_od,
    stride_lb, stride_lh, stride_lm,
    scale, M, N, HEAD_DIM, GROUP, diagonal, left, right, has_lengths,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BAND: tl.constexpr, MASK_KIND: tl.constexpr, PADDED: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK_M queries of one head.  Grid: (tiles of M, H, B).

    Writes `o` [B, H, M, D] and `lse` [B, H, M] (fp32, base 2; -inf for a query that sees no key, whose output is 0).
    """
    start_m = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M  # under a causal mask the longest rows begin first
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

    keys = tl.minimum(tl.load(key_lengths + b, mask=has_lengths != 0, other=N).to(tl.int32), N)
    low, high = key_range(start_m, M, keys, diagonal, left, right, BAND, BLOCK_M, BLOCK_N)

    q_tile = load_tile(q, offs_m, offs_d, stride_qm, stride_qd, M, HEAD_DIM, PADDED, ALIGNED)  # [BLOCK_M, BLOCK_D]
    q_tile, s = positive_scale(q_tile, scale)
    m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    w_i = tl.zeros([BLOCK_M, 16], tl.float32)  # 16 times the same: a product with ones is the cheapest sum
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start_n in range(low, high, BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        k_tile = load_tile(k, offs_n, offs_d, stride_kn, stride_kd, keys, HEAD_DIM, PADDED, ALIGNED)
        qk = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")  # [BLOCK_M, BLOCK_N]
        qk, f = masked_logits(qk, mask, s, start_m, start_n, offs_m[:, None], offs_n[None, :], M, keys, diagonal,
                              left, right, stride_mm, stride_mn, BAND, MASK_KIND, BLOCK_M, BLOCK_N)  # fmt: skip
        m_new = tl.maximum(m_i, tl.max(qk, 1) * f)  # [BLOCK_M]
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)  # a row with nothing visible yet: exp2(-inf - 0) = 0
        alpha = tl.exp2(m_i - m_safe)
        p = tl.exp2(qk * f - m_safe[:, None])  # [BLOCK_M, BLOCK_N]
        p_low = p.to(v.dtype.element_ty)
        l_i = l_i * alpha + tl.sum(p, 1)
        w_i = tl.dot(p_low, tl.full([BLOCK_N, 16], 1.0, p_low.dtype), w_i * alpha[:, None], input_precision="ieee")
        v_tile = load_tile(v, offs_n, offs_d, stride_vn, stride_vd, keys, HEAD_DIM, PADDED, ALIGNED)
        acc = tl.dot(p_low, v_tile, acc * alpha[:, None], input_precision="ieee")
        m_i = m_new

    seen = l_i > 0.0
    w = tl.max(w_i, 1)  # any of its columns
    o_tile = tl.div_rn(acc, tl.where(seen, w, 1.0)[:, None])  # `/` may be off by an ulp on a GPU
    store_tile(o, o_tile, offs_m, offs_d, stride_om, stride_od, M, HEAD_DIM, PADDED, ALIGNED)
    lse_tile = tl.where(seen, m_i + tl.log2(l_i), float("-inf"))
    tl.store(lse + offs_m.to(tl.int64) * stride_lm, lse_tile, mask=offs_m < M)
