"""What the forward and backward kernels share: loading tiles, and which key a query may see.

Vocabulary: `B` batch, `H` query heads, `HK` key/value heads, `M` queries, `N` keys, `D` head dimension;
`offs_m`, `offs_n`, `offs_d` are the indices of a tile along M, N, D.  All addresses are computed in 64 bits.
"""

# triton.jit functions cannot be annotated with Python types, and their names follow the field's.
# ruff: noqa: ANN001, ANN201
# mypy: ignore-errors

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)  # log2(e); times fp32(ln 2) it is exactly 1 in fp32

#: integer arguments that change from call to call: not worth a compilation of their own when they happen to be 1
SIZES = ("M", "N", "GROUP", "diagonal", "left", "right")

#: values of MASK_KIND
NO_MASK = tl.constexpr(0)
BOOLEAN_MASK = tl.constexpr(1)
ADDITIVE_BIAS = tl.constexpr(2)


@triton.jit
def load_tile(base, offs_row, offs_d, stride_row, stride_d, rows, HEAD_DIM: tl.constexpr):
    """Rows `offs_row` of a [rows, HEAD_DIM] matrix; 0 outside it.  -> [len(offs_row), len(offs_d)]"""
    pointers = base + offs_row[:, None].to(tl.int64) * stride_row + offs_d[None, :].to(tl.int64) * stride_d
    inside = (offs_row[:, None] < rows) & (offs_d[None, :] < HEAD_DIM)
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def store_tile(base, tile, offs_row, offs_d, stride_row, stride_d, rows, HEAD_DIM: tl.constexpr):
    """The inverse of `load_tile`; rounds to the element type of `base`, to nearest even."""
    pointers = base + offs_row[:, None].to(tl.int64) * stride_row + offs_d[None, :].to(tl.int64) * stride_d
    inside = (offs_row[:, None] < rows) & (offs_d[None, :] < HEAD_DIM)
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def key_range(start_m, M, N, diagonal, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
              BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """First (a multiple of BLOCK_N) and one past the last key that any query of a tile may see."""
    low, high = 0, N
    if HAS_LEFT:
        low = tl.maximum(start_m + diagonal - left, 0) // BLOCK_N * BLOCK_N
    if HAS_RIGHT:
        last_query = tl.minimum(start_m + BLOCK_M, M) - 1
        high = tl.minimum(N, last_query + diagonal + right + 1)
    return low, high


@triton.jit
def query_range(start_n, M, N, diagonal, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
                BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """First (a multiple of BLOCK_M) and one past the last query that may see any key of a tile."""
    low, high = 0, M
    if HAS_RIGHT:
        low = tl.maximum(start_n - diagonal - right, 0) // BLOCK_M * BLOCK_M
    if HAS_LEFT:
        last_key = tl.minimum(start_n + BLOCK_N, N) - 1
        high = tl.minimum(M, last_key - diagonal + left + 1)
    return low, high


@triton.jit
def masked_logits(qk, mask, offs_m, offs_n, M, N, diagonal, left, right, stride_mm, stride_mn,
                  HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, MASK_KIND: tl.constexpr):  # fmt: skip
    """Logits in base 2, -inf where the key is hidden.  [BLOCK_M, BLOCK_N] -> [BLOCK_M, BLOCK_N]

    Query i sees keys `i + diagonal - left <= j <= i + diagonal + right`.
    """
    i, j = offs_m[:, None], offs_n[None, :]
    inside = (i < M) & (j < N)
    visible = inside
    if HAS_LEFT:
        visible = visible & (j >= i + diagonal - left)
    if HAS_RIGHT:
        visible = visible & (j <= i + diagonal + right)
    if MASK_KIND != 0:
        pointers = mask + i.to(tl.int64) * stride_mm + j.to(tl.int64) * stride_mn
        if MASK_KIND == 1:
            visible = visible & (tl.load(pointers, mask=inside, other=0) != 0)
        else:
            qk += tl.load(pointers, mask=inside, other=0.0).to(tl.float32) * LOG2E
    return tl.where(visible, qk, float("-inf"))
