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

#: a finite bias, which hides nothing, must not become -inf in base 2: bf16's lowest number would
LOWEST = tl.constexpr(-2.3e38)

#: an extent of a window that hides nothing
UNBOUNDED = 2**30

#: Arguments whose values are worth no compilation of their own, not when they are 1, not when they are multiples of 16.
#: What the compiler must know of strides and addresses is said by ALIGNED.
_SIZES = ("M", "N", "HEAD_DIM", "GROUP", "diagonal", "left", "right", "has_lengths")
_STRIDES = tuple(f"stride_{x}{y}" for x in ("q", "k", "v", "g", "m", "o", "d", "dq", "dk", "dv") for y in "bhmnd")
_TENSORS = ("q", "k", "v", "do", "o", "mask", "key_lengths", "lse", "dlse", "delta", "dq", "dk", "dv")
ANY_VALUE = {  # but for stride_lm, which is 1: the log-sum-exp is a buffer of our own
    "do_not_specialize": (*_SIZES, *_STRIDES, "stride_lb", "stride_lh"),
    "do_not_specialize_on_alignment": _TENSORS,
}

#: values of MASK_KIND
NO_MASK = tl.constexpr(0)
BOOLEAN_MASK = tl.constexpr(1)
ADDITIVE_BIAS = tl.constexpr(2)


@triton.jit
def addresses(base, offs_row, offs_d, stride_row, stride_d, ALIGNED: tl.constexpr):
    """Pointers to rows `offs_row` of a matrix.  -> [len(offs_row), len(offs_d)]

    ALIGNED: elements of a row are adjacent, and rows begin and end at multiples of 16 bytes: 16 can be moved at once.
    """
    offsets = offs_row[:, None].to(tl.int64) * stride_row
    if ALIGNED:
        return tl.multiple_of(base + offsets + offs_d[None, :], [16, 16])
    return base + offsets + offs_d[None, :].to(tl.int64) * stride_d


@triton.jit
def inside_of(base, offs_row, offs_d, rows, HEAD_DIM, PADDED: tl.constexpr, ALIGNED: tl.constexpr):
    """Which elements of a tile lie in a [rows, HEAD_DIM] matrix.  -> [len(offs_row), len(offs_d) or 1]"""
    inside = offs_row[:, None] < rows
    if PADDED:
        if ALIGNED:  # says so to the compiler: a multiple of so many elements
            UNIT: tl.constexpr = 128 // base.dtype.element_ty.primitive_bitwidth
            HEAD_DIM = HEAD_DIM // UNIT * UNIT
        inside = inside & (offs_d[None, :] < HEAD_DIM)
    return inside


@triton.jit
def load_tile(base, offs_row, offs_d, stride_row, stride_d, rows, HEAD_DIM,
              PADDED: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    """Rows `offs_row` of a [rows, HEAD_DIM] matrix; 0 outside it.  -> [len(offs_row), len(offs_d)]"""
    pointers = addresses(base, offs_row, offs_d, stride_row, stride_d, ALIGNED)
    inside = inside_of(base, offs_row, offs_d, rows, HEAD_DIM, PADDED, ALIGNED)
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def row_tiles(base, rows, HEAD_DIM, stride_row, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
              DESCRIPTORS: tl.constexpr):  # fmt: skip
    """A [rows, HEAD_DIM] matrix as `load_rows` takes it: behind a tensor descriptor, or by its first element."""
    if DESCRIPTORS:
        matrix = tl.make_tensor_descriptor(base, [rows, HEAD_DIM], [stride_row, 1], [BLOCK, BLOCK_D])
    else:
        matrix = base
    return matrix  # one return: what it returns has one type


@triton.jit
def load_rows(matrix, start, offs_d, stride_row, stride_d, rows, HEAD_DIM, BLOCK: tl.constexpr,
              PADDED: tl.constexpr, ALIGNED: tl.constexpr, DESCRIPTORS: tl.constexpr):  # fmt: skip
    """Rows from `start` on of what `row_tiles` returned; 0 outside the matrix.  -> [BLOCK, len(offs_d)]

    A whole tile behind a descriptor is one instruction of one thread, and the bounds are the hardware's to check.
    """
    if DESCRIPTORS:
        tile = matrix.load([start, 0])
    else:
        offs_row = start + tl.arange(0, BLOCK)
        tile = load_tile(matrix, offs_row, offs_d, stride_row, stride_d, rows, HEAD_DIM, PADDED, ALIGNED)
    return tile


@triton.jit
def store_tile(base, tile, offs_row, offs_d, stride_row, stride_d, rows, HEAD_DIM,
               PADDED: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    """The inverse of `load_tile`; rounds to the element type of `base`, to nearest even."""
    pointers = addresses(base, offs_row, offs_d, stride_row, stride_d, ALIGNED)
    inside = inside_of(base, offs_row, offs_d, rows, HEAD_DIM, PADDED, ALIGNED)
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def key_range(start_m, M, N, diagonal, left, right,
              BAND: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """First (a multiple of BLOCK_N) and one past the last key that any query of a tile may see."""
    low, high = 0, N
    if BAND:
        low = tl.maximum(start_m + diagonal - left, 0) // BLOCK_N * BLOCK_N
        last_query = tl.minimum(start_m + BLOCK_M, M) - 1
        high = tl.minimum(N, last_query + diagonal + right + 1)
    return low, high


@triton.jit
def query_range(start_n, M, N, diagonal, left, right,
                BAND: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """First (a multiple of BLOCK_M) and one past the last query that may see any key of a tile."""
    low, high = 0, M
    if BAND:
        low = tl.maximum(start_n - diagonal - right, 0) // BLOCK_M * BLOCK_M
        last_key = tl.minimum(start_n + BLOCK_N, N) - 1
        high = tl.minimum(M, last_key - diagonal + left + 1)
    return low, high


@triton.jit
def positive_scale(tile, scale):
    """A tile of Q (or of K) and s > 0 whose product is scale * tile, exactly: the sign goes into the tile.

    Then max(s x) = s max(x), and -inf stays -inf when it is scaled, so that logits can be masked before.
    """
    signed = tl.where(scale < 0.0, -tile, tl.where(scale == 0.0, 0.0, tile)).to(tile.dtype)
    return signed, tl.where(scale == 0.0, 1.0, tl.abs(scale))


@triton.jit
def masked_logits(qk, mask, s, start_m, start_n, i, j, M, N, diagonal, left, right, stride_mm, stride_mn,
                  BAND: tl.constexpr, MASK_KIND: tl.constexpr,
                  BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """Logits in base 2 of a tile of queries `i` and keys `j`, -inf where the key is hidden.  -> logits / f, f

    Query i sees keys `i + diagonal - left <= j <= i + diagonal + right`.  Most tiles hide nothing, and pass.  The
    factor f > 0 is left for the exponential, which multiplies for nothing: of the scale, or 1 after adding a bias.
    """
    f = s * LOG2E
    if MASK_KIND == 2:
        pointers = mask + i.to(tl.int64) * stride_mm + j.to(tl.int64) * stride_mn
        bias = tl.load(pointers, mask=(i < M) & (j < N), other=0.0).to(tl.float32)
        bias = tl.where(bias == float("-inf"), bias, tl.maximum(bias, LOWEST))
        qk = qk * f + bias * LOG2E
        f = 1.0
    edge = start_n + BLOCK_N > N
    if BAND:
        edge = edge | (start_n < start_m + BLOCK_M - 1 + diagonal - left)
        edge = edge | (start_n + BLOCK_N - 1 > start_m + diagonal + right)
    if MASK_KIND == 1:
        edge = True
    if edge:
        visible = j < N
        if BAND:
            visible = visible & (j >= i + diagonal - left)
            visible = visible & (j <= i + diagonal + right)
        if MASK_KIND == 1:
            pointers = mask + i.to(tl.int64) * stride_mm + j.to(tl.int64) * stride_mn
            visible = visible & (tl.load(pointers, mask=(i < M) & (j < N), other=0) != 0)
        qk = tl.where(visible, qk, float("-inf"))
    return qk, f
