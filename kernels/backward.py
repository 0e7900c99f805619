"""Flash attention, backward (Dao 2023, Alg. 2): P is recomputed tile by tile from the saved log-sum-exp.

    delta = rowsum(dO * O) - dLSE
    P = exp(S - LSE),  dV = P^T dO,  dP = dO V^T,  dS = P * (dP - delta),  dQ = scale dS K,  dK = scale dS^T Q

Two kernels, one over tiles of keys (dK, dV) and one over tiles of queries (dQ): no atomics, so the same inputs give
the same bits.  With grouped-query heads the first sums over the heads of a group inside the kernel.
"""

# ruff: noqa: ANN001, ANN201
# mypy: ignore-errors

import triton
import triton.language as tl

from .tiles import (
    ANY_VALUE,
    key_range,
    load_rows,
    load_tile,
    masked_logits,
    positive_scale,
    query_range,
    row_tiles,
    store_tile,
)


@triton.jit(**ANY_VALUE)
def backward_delta(
    o, do, dlse, delta,
    stride_ob, stride_oh, stride_om, stride_od,
    stride_gb, stride_gh, stride_gm, stride_gd,
    stride_lb, stride_lh, stride_lm,
    stride_db, stride_dh, stride_dm,
    M, HEAD_DIM, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, HAS_DLSE: tl.constexpr,
    PADDED: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """delta_i = sum_d dO_id O_id - dLSE_i, [B, H, M] in fp32.  Grid: (tiles of M, H, B)."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    h = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    o_tile = load_tile(o + b * stride_ob + h * stride_oh, offs_m, offs_d, stride_om, stride_od, M, HEAD_DIM,
                       PADDED, ALIGNED)  # fmt: skip
    do_tile = load_tile(do + b * stride_gb + h * stride_gh, offs_m, offs_d, stride_gm, stride_gd, M, HEAD_DIM,
                        PADDED, ALIGNED)  # fmt: skip
    sums = tl.sum(o_tile.to(tl.float32) * do_tile.to(tl.float32), 1)  # [BLOCK_M]
    if HAS_DLSE:
        pointers = dlse + b * stride_lb + h * stride_lh + offs_m.to(tl.int64) * stride_lm
        sums -= tl.load(pointers, mask=offs_m < M, other=0.0)
    pointers = delta + b * stride_db + h * stride_dh + offs_m.to(tl.int64) * stride_dm
    tl.store(pointers, sums, mask=offs_m < M)


@triton.jit
def load_lse(lse, offs_m, stride_lm, M):
    """LSE of some queries, 0 for one that sees no key: all its logits are -inf.  -> [len(offs_m)]"""
    lse_tile = tl.load(lse + offs_m.to(tl.int64) * stride_lm, mask=offs_m < M, other=0.0)
    return tl.where(lse_tile == float("-inf"), 0.0, lse_tile)


@triton.jit(**ANY_VALUE)
def backward_dkdv(
    q, k, v, do, mask, key_lengths, lse, delta, dk, dv,
    stride_qb, stride_qh, stride_qm, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_vb, stride_vh, stride_vn, stride_vd,
    stride_gb, stride_gh, stride_gm, stride_gd,
    stride_mb, stride_mh, stride_mm, stride_mn,
    stride_lb, stride_lh, stride_lm,
    stride_dkb, stride_dkh, stride_dkn, stride_dkd,
    stride_dvb, stride_dvh, stride_dvn, stride_dvd,
    scale, M, N, HEAD_DIM, GROUP, diagonal, left, right, has_lengths,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BAND: tl.constexpr, MASK_KIND: tl.constexpr, PADDED: tl.constexpr, ALIGNED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """DK and dV of one tile of BLOCK_N keys of one key/value head.  Grid: (tiles of N, HK, B)."""
    start_n = tl.program_id(0) * BLOCK_N
    hk = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    offs_n = start_n + tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    keys = tl.minimum(tl.load(key_lengths + b, mask=has_lengths != 0, other=N).to(tl.int32), N)
    low, high = query_range(start_n, M, keys, diagonal, left, right, BAND, BLOCK_M, BLOCK_N)

    k_tile = load_tile(k + b * stride_kb + hk * stride_kh, offs_n, offs_d, stride_kn, stride_kd, keys, HEAD_DIM,
                       PADDED, ALIGNED)  # fmt: skip
    v_tile = load_tile(v + b * stride_vb + hk * stride_vh, offs_n, offs_d, stride_vn, stride_vd, keys, HEAD_DIM,
                       PADDED, ALIGNED)  # fmt: skip
    signed_k, s = positive_scale(k_tile, scale)
    dk_tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for g in range(GROUP):
        h = hk * GROUP + g
        q_rows = row_tiles(q + b * stride_qb + h * stride_qh, M, HEAD_DIM, stride_qm, BLOCK_M, BLOCK_D, DESCRIPTORS)
        do_rows = row_tiles(do + b * stride_gb + h * stride_gh, M, HEAD_DIM, stride_gm, BLOCK_M, BLOCK_D, DESCRIPTORS)
        for start_m in range(low, high, BLOCK_M):
            offs_m = start_m + tl.arange(0, BLOCK_M)
            q_tile = load_rows(q_rows, start_m, offs_d, stride_qm, stride_qd, M, HEAD_DIM, BLOCK_M,
                               PADDED, ALIGNED, DESCRIPTORS)  # fmt: skip
            qk = tl.dot(signed_k, tl.trans(q_tile), input_precision="ieee")  # [BLOCK_N, BLOCK_M]
            qk, f = masked_logits(qk, mask + b * stride_mb + h * stride_mh, s, start_m, start_n, offs_m[None, :],
                                  offs_n[:, None], M, keys, diagonal, left, right, stride_mm, stride_mn,
                                  BAND, MASK_KIND, BLOCK_M, BLOCK_N)  # fmt: skip
            lse_tile = load_lse(lse + b * stride_lb + h * stride_lh, offs_m, stride_lm, M)
            p = tl.exp2(qk * f - lse_tile[None, :])
            do_tile = load_rows(do_rows, start_m, offs_d, stride_gm, stride_gd, M, HEAD_DIM, BLOCK_M,
                                PADDED, ALIGNED, DESCRIPTORS)  # fmt: skip
            dv_tile = tl.dot(p.to(do.dtype.element_ty), do_tile, dv_tile, input_precision="ieee")
            dp = tl.dot(v_tile, tl.trans(do_tile), input_precision="ieee")  # [BLOCK_N, BLOCK_M]
            pointers = delta + b * stride_lb + h * stride_lh + offs_m.to(tl.int64) * stride_lm
            ds = p * (dp - tl.load(pointers, mask=offs_m < M, other=0.0)[None, :])
            dk_tile = tl.dot(ds.to(q.dtype.element_ty), q_tile, dk_tile, input_precision="ieee")
    store_tile(dk + b * stride_dkb + hk * stride_dkh, dk_tile * scale, offs_n, offs_d, stride_dkn, stride_dkd, N,
               HEAD_DIM, PADDED, ALIGNED)  # fmt: skip
    store_tile(dv + b * stride_dvb + hk * stride_dvh, dv_tile, offs_n, offs_d, stride_dvn, stride_dvd, N,
               HEAD_DIM, PADDED, ALIGNED)  # fmt: skip


@triton.jit(**ANY_VALUE)
def backward_dq(
    q, k, v, do, mask, key_lengths, lse, delta, dq,
    stride_qb, stride_qh, stride_qm, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_vb, stride_vh, stride_vn, stride_vd,
    stride_gb, stride_gh, stride_gm, stride_gd,
    stride_mb, stride_mh, stride_mm, stride_mn,
    stride_lb, stride_lh, stride_lm,
    stride_dqb, stride_dqh, stride_dqm, stride_dqd,
    scale, M, N, HEAD_DIM, GROUP, diagonal, left, right, has_lengths,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BAND: tl.constexpr, MASK_KIND: tl.constexpr, PADDED: tl.constexpr, ALIGNED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """DQ of one tile of BLOCK_M queries of one head.  Grid: (tiles of M, H, B)."""
    start_m = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M  # under a causal mask the longest rows begin first
    h = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    hk = h // GROUP
    offs_m = start_m + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    keys = tl.minimum(tl.load(key_lengths + b, mask=has_lengths != 0, other=N).to(tl.int32), N)
    low, high = key_range(start_m, M, keys, diagonal, left, right, BAND, BLOCK_M, BLOCK_N)

    k_rows = row_tiles(k + b * stride_kb + hk * stride_kh, keys, HEAD_DIM, stride_kn, BLOCK_N, BLOCK_D, DESCRIPTORS)
    v_rows = row_tiles(v + b * stride_vb + hk * stride_vh, keys, HEAD_DIM, stride_vn, BLOCK_N, BLOCK_D, DESCRIPTORS)
    q_tile = load_tile(q + b * stride_qb + h * stride_qh, offs_m, offs_d, stride_qm, stride_qd, M, HEAD_DIM,
                       PADDED, ALIGNED)  # fmt: skip
    do_tile = load_tile(do + b * stride_gb + h * stride_gh, offs_m, offs_d, stride_gm, stride_gd, M, HEAD_DIM,
                        PADDED, ALIGNED)  # fmt: skip
    pointers = delta + b * stride_lb + h * stride_lh + offs_m.to(tl.int64) * stride_lm
    delta_tile = tl.load(pointers, mask=offs_m < M, other=0.0)
    lse_tile = load_lse(lse + b * stride_lb + h * stride_lh, offs_m, stride_lm, M)
    q_tile, s = positive_scale(q_tile, scale)
    dq_tile = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start_n in range(low, high, BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        k_tile = load_rows(k_rows, start_n, offs_d, stride_kn, stride_kd, keys, HEAD_DIM, BLOCK_N,
                           PADDED, ALIGNED, DESCRIPTORS)  # fmt: skip
        v_tile = load_rows(v_rows, start_n, offs_d, stride_vn, stride_vd, keys, HEAD_DIM, BLOCK_N,
                           PADDED, ALIGNED, DESCRIPTORS)  # fmt: skip
        qk = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")  # [BLOCK_M, BLOCK_N]
        qk, f = masked_logits(qk, mask + b * stride_mb + h * stride_mh, s, start_m, start_n, offs_m[:, None],
                              offs_n[None, :], M, keys, diagonal, left, right, stride_mm, stride_mn,
                              BAND, MASK_KIND, BLOCK_M, BLOCK_N)  # fmt: skip
        p = tl.exp2(qk * f - lse_tile[:, None])
        dp = tl.dot(do_tile, tl.trans(v_tile), input_precision="ieee")  # [BLOCK_M, BLOCK_N]
        ds = p * (dp - delta_tile[:, None])
        dq_tile = tl.dot(ds.to(k.dtype.element_ty), k_tile, dq_tile, input_precision="ieee")
    store_tile(dq + b * stride_dqb + h * stride_dqh, dq_tile * scale, offs_m, offs_d, stride_dqm, stride_dqd, M,
               HEAD_DIM, PADDED, ALIGNED)  # fmt: skip
