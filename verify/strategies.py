"""Hypothesis strategies that draw recipes.  They shrink toward the smallest, plainest case.

Order matters: the first element of every choice is what a failing case shrinks to.
"""

from __future__ import annotations

from typing import get_args

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from .case import Bias, BooleanMask, Case, DType, Layout, MaskRecipe
from .regimes import REGIMES
from .shapes import lengths_up_to
from .survey import SCALES, WINDOWS


def lengths(limit: int) -> SearchStrategy[int]:
    """Sequence lengths: any, with weight on tile edges, 0, 1 and primes."""
    return st.one_of(st.integers(0, limit), st.sampled_from((0, *lengths_up_to(limit))))


@st.composite
def masks(draw: DrawFn) -> MaskRecipe:
    """Any combination of masks."""
    return MaskRecipe(
        causal=draw(st.booleans()),
        window=draw(st.one_of(st.none(), st.sampled_from(WINDOWS), st.tuples(*[st.none() | st.integers(0, 40)] * 2))),
        alignment=draw(st.sampled_from(("top-left", "bottom-right"))),
        boolean=draw(st.sampled_from((None, *get_args(BooleanMask)))),
        bias=draw(st.sampled_from((None, *get_args(Bias)))),
        key_lengths=draw(st.booleans()),
    )


@st.composite
def heads(draw: DrawFn) -> tuple[int, int]:
    """(H, HK) with HK dividing H."""
    HK, group = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    return HK * group, HK


@st.composite
def cases(
    draw: DrawFn,
    *,
    dtypes: tuple[DType, ...] = ("fp16", "bf16"),
    max_length: int = 130,
    head_dims: tuple[int, ...] = (1, 2, 3, 8, 16, 24, 32, 40, 64, 96, 128, 256),
) -> Case:
    """Any case within the limits."""
    H, HK = draw(heads())
    return Case(
        B=draw(st.integers(1, 3)), H=H, HK=HK,
        M=draw(lengths(max_length)), N=draw(lengths(max_length)), D=draw(st.sampled_from(sorted(head_dims))),
        dtype=draw(st.sampled_from(dtypes)),
        regime=draw(st.sampled_from(tuple(REGIMES))),
        seed=draw(st.integers(0, 2**31 - 1)),
        scale=draw(st.sampled_from(tuple(dict.fromkeys(SCALES)))),
        mask=draw(masks()),
        layout=draw(st.sampled_from(get_args(Layout))),
    )  # fmt: skip
