"""A correct user's Triton kernel, forward only, with torch's signature.  It knows nothing of flashproof."""

import torch
import triton
import triton.language as tl


@triton.jit
def _forward(
    Q, K, V, O, scale, M, N, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, CAUSAL: tl.constexpr
):
    start_m, head = tl.program_id(0) * BM, tl.program_id(1)
    om, od = start_m + tl.arange(0, BM), tl.arange(0, BD)
    q = tl.load(Q + head * M * D + om[:, None] * D + od[None, :], mask=(om[:, None] < M) & (od[None, :] < D), other=0.0)
    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BD], tl.float32)
    for start_n in range(0, N, BN):
        on = start_n + tl.arange(0, BN)
        inside = (on[:, None] < N) & (od[None, :] < D)
        k = tl.load(K + head * N * D + on[:, None] * D + od[None, :], mask=inside, other=0.0)
        v = tl.load(V + head * N * D + on[:, None] * D + od[None, :], mask=inside, other=0.0)
        visible = on[None, :] < N
        if CAUSAL:
            visible = visible & (on[None, :] <= om[:, None])
        s = tl.where(visible, tl.dot(q, tl.trans(k)) * scale, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        alpha = tl.exp(m - m_new)
        p = tl.exp(s - m_new[:, None])
        l = l * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None] + tl.dot(p.to(v.dtype), v)
        m = m_new
    o = acc / tl.where(l == 0.0, 1.0, l)[:, None]
    tl.store(
        O + head * M * D + om[:, None] * D + od[None, :],
        o.to(O.dtype.element_ty),
        mask=(om[:, None] < M) & (od[None, :] < D),
    )


def attention(query, key, value, is_causal=False, scale=None):
    q, k, v = (x.contiguous() for x in (query, key, value))
    B, H, M, D = q.shape
    N = k.shape[2]
    o = torch.empty_like(q)
    if o.numel():
        grid = (triton.cdiv(M, 32), B * H)
        tile_d = max(16, triton.next_power_of_2(D))
        _forward[grid](q, k, v, o, D**-0.5 if scale is None else scale, M, N, D, 32, 32, tile_d, is_causal)
    return o
