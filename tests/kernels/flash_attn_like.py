"""A correct user's kernel with flash_attn's signature: [B, S, H, D], causal masks aligned bottom-right."""

import math

import torch


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), return_attn_probs=False
):
    M, H, D = q.shape[1:]
    N, HK = k.shape[1:3]
    heads = torch.arange(H) // (H // HK)
    i = torch.arange(M)[:, None] + N - M
    j = torch.arange(N)[None, :]
    visible = torch.ones(M, N, dtype=torch.bool)
    left, right = window_size
    if causal:
        right = 0
    if left >= 0:
        visible &= j >= i - left
    if right >= 0:
        visible &= j <= i + right
    qf, kf, vf = (x.transpose(1, 2).float() for x in (q, k[:, :, heads], v[:, :, heads]))
    s = qf @ kf.mT * (D**-0.5 if softmax_scale is None else softmax_scale)
    s = s.masked_fill(~visible, -math.inf)
    seen = visible.any(-1)[None, None, :, None]
    p = torch.where(seen, torch.softmax(torch.where(seen, s, 0.0), -1), 0.0)
    out = (p.to(q.dtype).float() @ vf).to(q.dtype).transpose(1, 2)
    if return_attn_probs:
        lse = torch.logsumexp(s, -1) if N else torch.full(s.shape[:-1], -math.inf)
        return out, lse, None
    return out
