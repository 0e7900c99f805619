"""A right attention function, and how a fault is planted in what it returns."""

from __future__ import annotations

import math

import torch
from flashproof.verify.case import Case
from flashproof.verify.evaluate import evaluate
from flashproof.verify.implementation import recognise

CASE = Case(B=2, H=2, HK=1, M=30, N=40, D=16, dtype="bf16", regime="normal", seed=11)


def sound(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, return_lse=False
):
    group = query.shape[1] // key.shape[1]
    k, v = (x.repeat_interleave(group, 1).float() for x in (key, value))
    s = query.float() @ k.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    visible = torch.ones(s.shape, dtype=torch.bool)
    if is_causal:
        visible = visible.tril()
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            visible = visible & attn_mask
        else:
            s = s + attn_mask.float()
    s = s.masked_fill(~visible, -math.inf)
    empty = (s == -math.inf).all(-1, keepdim=True)
    p = torch.softmax(s.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)
    o = (p @ v).to(query.dtype)
    return (o, s.logsumexp(-1).detach()) if return_lse else o


def failed_checks(function, case=CASE, **options):
    return {(c.name, c.tensor) for c in evaluate(case, recognise("planted", function), "survey", **options).failed}


def planted(change):
    """The sound kernel with something done to its result."""

    def attention(
        query,
        key,
        value,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        enable_gqa=False,
        return_lse=False,
    ):
        o, lse = sound(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, return_lse=True)
        o, lse = change(o, lse, query, key, value)
        return (o, lse) if return_lse else o

    return attention
