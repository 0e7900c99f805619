"""The shapes of a survey's cases: kinds that go round, so that each has its share and comes early."""

from __future__ import annotations

from collections.abc import Sequence

from .draws import Draws

#: lengths where kernels break: one, tile edges, primes; "any" has the others, as 12 and 100, which are 4 modulo 8
LENGTHS = (1, 2, 3, 5, 7, 13, 15, 16, 17, 23, 31, 32, 33, 47, 61, 63, 64, 65, 79, 95, 96, 97, 113, 127, 128, 129, 130,
           191, 193, 251, 255, 256, 257, 299, 383, 385, 509, 511, 512, 513, 769, 1021, 1023, 1024, 1025)  # fmt: skip
#: what a kernel may meet on one axis in any profile: the other axes are short then, so that it costs little
LONG = (257, 511, 513, 1023, 1024, 1025, 2049)
SHORT = (1, 2, 3, 5)
#: both axes of a few tiles and a rest, in any profile: what a kernel makes of a tile between others shows nowhere else
LARGE = (191, 193, 256, 257, 299)

HEADS = ((1, 1), (2, 2), (2, 1), (4, 2), (8, 1), (4, 4), (6, 2), (6, 3), (7, 1))  # H, HK
#: of one query, whose heads may fill a tile: the groups of models in use
DECODING = (*HEADS, (16, 2), (14, 2), (16, 1), (12, 4))
#: B, H, HK: more of them than a tile of few holds, or a GPU has processors; the groups of 7, 8 and 16 are of models
#: in use
MANY = ((17, 1, 1), (9, 2, 1), (5, 4, 4), (1, 16, 16), (1, 32, 8), (2, 12, 4), (3, 8, 1), (2, 14, 2), (1, 32, 2),
        (5, 16, 2), (5, 32, 8))  # fmt: skip
_BATCHES = (1, 1, 2, 2, 3)
_ONE = ((1, 1, 1), (1, 2, 1), (2, 1, 1))  # B, H, HK where an axis is long

Lengths = tuple[int, int]  # M, N


def lengths_up_to(limit: int) -> tuple[int, ...]:
    """The lengths worth having, up to a profile's limit."""
    return tuple(n for n in LENGTHS if n <= limit)


def _lengths(kind: str, draws: Draws, limit: int) -> Lengths:
    usual = lengths_up_to(limit)
    if kind == "any":
        M, N = (int(x) for x in draws.integers(1, limit + 1, 2))
        return M, N
    if kind == "square":
        M = draws.choice(usual)
        return M, M
    axes: dict[str, tuple[Sequence[int], Sequence[int]]] = {
        "free": (usual, usual), "no queries": ((0,), usual), "no keys": (usual, (0,)), "many keys": (SHORT, LONG),
        "many queries": (LONG, SHORT), "decoding": ((1,), (*usual, *LONG)), "many heads": (SHORT, SHORT),
        "large": (LARGE, LARGE),
    }  # fmt: skip
    M, N = (axis[0] if len(axis) == 1 else draws.choice(axis) for axis in axes[kind])
    return M, N


#: the B, H, HK of kinds that have their own
OWN_HEADS = {"many keys": _ONE, "many queries": _ONE, "many heads": MANY, "large": _ONE}
#: one round: how often each kind comes; "plain" cases are `plain.plain_case`
ROUND = (
    *["free"] * 9, *["any"] * 4, *["square"] * 8, *["plain"] * 6, *["decoding"] * 2, *["large"] * 2,
    "no queries", "no keys", "many keys", "many queries", "many heads",
)  # fmt: skip


def shape_of(kind: str, draws: Draws, limit: int) -> tuple[int, int, int, int, int]:
    """B, H, HK, M, N of a kind, with M and N up to a limit where the kind has no lengths of its own.

    Batch and heads are cut down where B H M N would cost more than four heads of the longest square.
    """
    M, N = _lengths(kind, draws, limit)
    if kind in OWN_HEADS:
        return (*draws.choice(OWN_HEADS[kind]), M, N)
    B, (H, HK) = draws.choice(_BATCHES), draws.choice(DECODING if kind == "decoding" else HEADS)
    while 4 * limit**2 < B * H * M * N and (B > 1 or H > HK):
        B, H = max(1, B - 1), H if B > 1 else HK
    return B, H, HK, M, N
