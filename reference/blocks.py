"""The exact quantities that bounds and predictors are made of, a block of query rows at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import Forward, check_shapes, group, row_blocks, softmax, ungroup
from .masks import Mask

# of one float64 [B, H, rows, N]: some fifty of them are made, to stay in a core's own cache, or to keep a GPU busy
_BLOCK_BYTES = 2**20
_BLOCK_BYTES_OF_A_GPU = 2**26


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Query rows start..stop-1 against all keys, in float64; elementwise quantities are 0 where hidden.

    visible, raw = q . k, bias, s = scale * raw + bias, p, dp, ds   [B, H, r, N], or a broadcast 0 if absent
    q, o, do                                                        [B, H, r, D]
    m (largest visible logit), lse, delta = sum dO * O - dL; 0 if empty  [B, H, r, 1]
    """

    start: int
    stop: int
    visible: Tensor
    raw: Tensor
    bias: Tensor
    s: Tensor
    p: Tensor
    m: Tensor
    lse: Tensor
    q: Tensor
    o: Tensor
    do: Tensor
    dp: Tensor
    delta: Tensor
    ds: Tensor


def blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor | None,
    mask: Mask,
    scale: float,
    truth: Forward,
    dlse: Tensor | None = None,
) -> Iterator[Block]:
    """All blocks; k and v are float64 without NaN or Inf (see `clean`). Without do, its quantities are 0.

    dlse [B, H, M] is the gradient that comes back through the LSE; delta contains it.
    """
    check_shapes(q, k, v, do)
    B, H, M, _ = q.shape
    N = k.shape[2]
    if N == 0:
        return
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64, device=q.device)
    size = _BLOCK_BYTES_OF_A_GPU if q.is_cuda else _BLOCK_BYTES
    for start, stop in row_blocks(B, H, M, N, size):
        rows = slice(start, stop)
        visible, bias = mask.rows(start, stop, M, N, q.device)
        visible = visible.expand(B, H, stop - start, N)
        hidden = ~visible
        q_i, o = clean(q[:, :, rows]), truth.o[:, :, rows]
        raw = ungroup(group(q_i, k) @ k.mT, q_i).masked_fill_(hidden, 0.0)
        b = zero if bias is None else bias.expand_as(raw).masked_fill(hidden, 0.0)
        s = scale * raw + b
        empty = ~visible.any(-1, keepdim=True)
        lse = truth.lse[:, :, rows, None].masked_fill(empty, 0.0)
        shown = s.masked_fill(hidden, -torch.inf)
        m = shown.amax(-1, keepdim=True).masked_fill(empty, 0.0)
        p, _ = softmax(shown, visible)  # exp(S - L) is not 1/N where |S| is 1e38
        do_i = dp = delta = ds = zero
        if do is not None:
            do_i = clean(do[:, :, rows])
            dp = ungroup(group(do_i, k) @ v.mT, q_i).masked_fill_(hidden, 0.0)
            delta = (do_i * o).sum(-1, keepdim=True)
            if dlse is not None:
                delta = delta - dlse[:, :, rows, None]
            ds = (p * (dp - delta)).masked_fill_(hidden, 0.0)
        yield Block(start, stop, visible, raw, b, s, p, m, lse, q_i, o, do_i, dp, delta, ds)


def clean(x: Tensor) -> Tensor:
    """X in float64, 0 for NaN and Inf: where a visible pair holds one, the truth itself is not finite."""
    return x.double().nan_to_num(0.0, 0.0, 0.0)
