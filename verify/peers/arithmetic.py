"""Attention as other projects' tests write it in plain torch: in some precision, scaled somewhere, rounded or not.

Gradients come from torch's autograd, as theirs do.  A product of half-precision matrices accumulates in fp32 and is
rounded once, on every machine, as on the accelerators that those tests run on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...reference.masks import Mask


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a reference is computed.

    dtype: of every operation; None is the inputs' own.
    scaled: what is multiplied by the softmax scale: "product" before Q K^T is rounded, "scores" after that, "cast"
        after the cast to softmax's dtype; "both" takes its square root into queries and keys.
    softmax: its dtype; None is the scores' own.  P is cast back.
    rounds_out, rounds_gradients: results are cast to the inputs' dtype.
    """

    name: str
    dtype: torch.dtype | None
    scaled: Literal["product", "scores", "cast", "queries", "keys", "both"] = "scores"
    softmax: torch.dtype | None = None
    rounds_out: bool = True
    rounds_gradients: bool = True

    def __str__(self) -> str:
        return self.name


def attend(
    how: Arithmetic, q: Tensor, k: Tensor, v: Tensor, do: Tensor | None, mask: Mask, scale: float
) -> dict[str, Tensor]:
    """{"out", "lse"} and, with do, {"dq", "dk", "dv"}; lse [B, H, M] natural, -inf for a query that sees no key."""
    leaves = [(x if how.rounds_gradients else _cast(x, how.dtype)).detach().requires_grad_() for x in (q, k, v)]
    group, (M, N) = q.shape[1] // k.shape[1], (q.shape[2], k.shape[2])
    visible, bias = mask.rows(0, M, M, N, q.device)
    with torch.enable_grad():
        queries, keys, values = (_cast(x, how.dtype) for x in leaves)
        keys, values = (x.repeat_interleave(group, 1) for x in (keys, values))
        if how.scaled == "both":
            queries, keys = queries * math.sqrt(scale), keys * math.sqrt(scale)
        elif how.scaled == "queries":
            queries = queries * scale
        elif how.scaled == "keys":
            keys = keys * scale
        scores = _product(queries, keys.mT, scale if how.scaled == "product" else 1.0)
        if how.scaled == "scores":
            scores = scores * scale
        scores = _cast(scores, how.softmax)
        if how.scaled == "cast":
            scores = scores * scale
        if bias is not None:
            scores = scores + bias.to(scores.dtype)
        scores = scores.masked_fill(~visible, -math.inf)
        p = torch.softmax(scores, -1).masked_fill(~visible, 0.0)  # a query that sees no key: 0, not 0/0
        out = _product(p.to(values.dtype), values)
        out = out.to(q.dtype) if how.rounds_out else out
    detached = scores.detach()
    wide = detached if detached.dtype == torch.float64 else detached.float()
    result = {"out": out.detach(), "lse": torch.logsumexp(wide, -1)}
    if do is not None:
        gradients = torch.autograd.grad(out, leaves, do.to(out.dtype))
        result.update(zip(("dq", "dk", "dv"), gradients, strict=True))
    return result


def gradients_from(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, do: Tensor, mask: Mask, scale: float
) -> dict[str, Tensor]:
    """{"dq", "dk", "dv"} in fp32, with delta = rowsum(dO * O) of the given O [B, H, M, D]: a kernel's own output."""
    (B, H, M, D), (HK, N) = q.shape, k.shape[1:3]
    q, do, keys, values = q.float(), do.float(), *(x.float().repeat_interleave(H // HK, 1) for x in (k, v))
    visible, bias = mask.rows(0, M, M, N, q.device)
    scores = q @ keys.mT * scale + (0.0 if bias is None else bias.float())
    p = torch.softmax(scores.masked_fill(~visible, -math.inf), -1).masked_fill(~visible, 0.0)
    ds = p * (do @ values.mT - (do * out.float()).sum(-1, keepdim=True))
    dk, dv = (x.reshape(B, HK, H // HK, N, D).sum(2) for x in (ds.mT @ q * scale, p.mT @ do))
    return {"dq": ds @ keys * scale, "dk": dk, "dv": dv}


def _cast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x if dtype is None else x.to(dtype)


def _product(a: Tensor, b: Tensor, factor: float = 1.0) -> Tensor:
    wide = a @ b if a.dtype in (torch.float32, torch.float64) else a.float() @ b.float()
    return (wide if factor == 1.0 else wide * factor).to(a.dtype)
