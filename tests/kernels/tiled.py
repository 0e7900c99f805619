"""A correct user's kernel with torch's signature: tiled attention in plain torch, with its own backward.

The tests copy this file with single faults planted (see test_faults.py); the text of some lines is their handle.
"""

import math

import torch

TILE = 16


class Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, visible, bias, scale):
        B, H, M, D = q.shape
        HK, N = k.shape[1:3]
        heads = torch.arange(H) // (H // HK)
        kf, vf = k.float()[:, heads], v.float()[:, heads]
        m = torch.full((B, H, M, 1), -math.inf)
        l = torch.zeros(B, H, M, 1)
        acc = torch.zeros(B, H, M, D)
        for start in range(0, N, TILE):
            cols = slice(start, min(start + TILE, N))
            s = q.float() @ kf[:, :, cols].mT * scale + bias[..., cols]
            s = s.masked_fill(~visible[..., cols], -math.inf)
            m_new = torch.maximum(m, s.amax(-1, keepdim=True))
            m_safe = m_new.masked_fill(m_new == -math.inf, 0.0)
            alpha = torch.exp(m - m_safe)
            p = torch.exp(s - m_safe)
            l = l * alpha + p.sum(-1, keepdim=True)
            acc = acc * alpha + p.to(q.dtype).float() @ vf[:, :, cols]
            m = m_new
        empty = l == 0
        out = (acc / l.masked_fill(empty, 1.0)).to(q.dtype)
        lse = (m + torch.log(l)).masked_fill(empty, -math.inf)[..., 0]
        ctx.save_for_backward(q, k, v, out, lse, visible, bias)
        ctx.scale, ctx.heads = scale, heads
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx, do, _):
        q, k, v, out, lse, visible, bias = ctx.saved_tensors
        kf, vf = k.float()[:, ctx.heads], v.float()[:, ctx.heads]
        s = (q.float() @ kf.mT * ctx.scale + bias).masked_fill(~visible, -math.inf)
        p = torch.exp(s - lse.masked_fill(lse == -math.inf, 0.0)[..., None])
        delta = (do.float() * out.float()).sum(-1, keepdim=True)
        ds = (p * (do.float() @ vf.mT - delta)).to(q.dtype).float()
        dq = ds @ kf * ctx.scale
        dk = ds.mT @ q.float() * ctx.scale
        dv = p.to(q.dtype).float().mT @ do.float()
        dk = torch.zeros(k.shape).index_add_(1, ctx.heads, dk)
        dv = torch.zeros(v.shape).index_add_(1, ctx.heads, dv)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, return_lse=False
):
    B, H, M, D = query.shape
    N = key.shape[2]
    visible = torch.ones(B, H, M, N, dtype=torch.bool)
    bias = torch.zeros(B, H, M, N)
    if is_causal:
        visible = visible & torch.ones(M, N, dtype=torch.bool).tril()
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            visible = visible & attn_mask
        else:
            bias = bias + attn_mask.float()
    out, lse = Tiled.apply(query, key, value, visible, bias, 1 / math.sqrt(D) if scale is None else scale)
    return (out, lse) if return_lse else out
