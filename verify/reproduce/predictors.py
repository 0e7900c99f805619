"""What this project claims itself: the roundings of flash attention predict the error that its kernel makes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from ...kernels import interpreter
from ...reports.published import Claim, Figure, Outcome, Reproduction
from ...reports.record import IN_DTYPE, Row
from ..budgets import load as load_budgets
from ..case import Case, DType, MaskRecipe
from ..evaluate import evaluate
from ..loading import load
from ..statistics import rule_of_three
from .common import figure, outcome, span

_DTYPES: tuple[DType, ...] = ("fp16", "bf16")
_LENGTHS = (64, 256)
_MASKS = {"no mask": MaskRecipe(), "causal": MaskRecipe(causal=True)}
_HEADS = {"a key head per query head": 2, "one key head for both": 1}
_CASE = Case(B=1, H=2, HK=2, M=64, N=64, D=64, dtype="fp16", regime="normal", seed=0)
_CLAIMED = (0.8, 1.2)
#: the least fault that a format can have, in the dQ pass of fp16, and how long its cases are
_FAULT, _FAULTY, _FAULTY_LENGTHS = "mutant:ds-of-ten-bits", "dq", _LENGTHS[:1]
Setting = tuple[str, str]  # keys of _MASKS and _HEADS
Measured = Mapping[Setting, Sequence[Mapping[str, float]]]  # per case, by tensor


def reproduce(seeds: int) -> Reproduction:
    """Measured RMS error over what is predicted of it, per tensor, and where a kernel that lacks a bit lies."""
    margin = load_budgets().predictor.margin
    right, faulty = _measured(seeds), _measured_of_fault(seeds)
    return Reproduction(
        name="predictors",
        source="flashproof itself, reference/predictors.py",
        setting=f"The bundled kernel on N(0, 1), {' and '.join(_DTYPES)}, without a mask and causal, with and without "
        f"grouped heads, N = {' and '.join(map(str, _LENGTHS))} squares, D = {_CASE.D}. Ratio: RMS error against the "
        "truth over the RMS error that the roundings of flash attention predict from the inputs, with no constant "
        f"fitted. Every case counts. The gate allows a ratio of {margin:g}, as the geometric mean of a cell of cases "
        "and only if that is sure.",
        claims=(_within(right), _separated(right, faulty, margin)),
    )


def _within(right: Measured) -> Claim:
    figures = [
        figure(f"{tensor}: {mask}, {heads}", (case[tensor] for case in cases), _CLAIMED)
        for tensor in IN_DTYPE
        for (mask, heads), cases in right.items()
    ]
    spans = (f"{t} {span((f for f in figures if f.what.startswith(f'{t}:')), '.3g')}" for t in IN_DTYPE)
    return Claim(
        claim="the bundled kernel's RMS error is what its roundings predict, within a fifth, forward and backward",
        rule=f"every tensor's median, for each mask and each kind of heads, is {_CLAIMED[0]:g} to {_CLAIMED[1]:g}",
        outcome=predicted(figures),
        because=f"medians over dtypes, lengths and seeds: {', '.join(spans)} times what is predicted",
        figures=tuple(figures),
    )


def _separated(right: Measured, faulty: Sequence[float], margin: float) -> Claim:
    largest = [max(case.values()) for cases in right.values() for case in cases]
    beyond = sum(x >= margin for x in largest)
    rate = "" if beyond else f", so less than {100 * rule_of_three(len(largest)):.2g} % of such cases at 95 %"
    worst = figure("the largest ratio of a case's four tensors", largest)
    lacking = figure(f"{_FAULTY} where dS has ten bits of fp16's eleven", faulty)
    return Claim(
        claim=f"{margin:g} times the prediction, the gate's margin, parts the bundled kernel from one that lacks a bit",
        rule=f"the largest ratio of all the cases and their tensors is below {margin:g}, and the median where dS has "
        "ten bits is above",
        outcome=separated(worst, lacking, margin),
        because=f"the largest ratio of {worst.n} cases is {worst.high:.3g}; {beyond} lie beyond{rate}. Without a bit "
        f"of dS, {_FAULTY} is at {lacking.low:.3g} to {lacking.high:.3g}",
        figures=(worst, lacking),
    )


def predicted(figures: Sequence[Figure]) -> Outcome:
    """Of ratios beside the range that is claimed."""
    return outcome(all(f.agrees for f in figures))


def separated(worst: Figure, lacking: Figure, margin: float) -> Outcome:
    """Of the largest ratio per case of a right kernel, and the ratios of one that lacks a bit."""
    return outcome(worst.high < margin < lacking.median)


# -- measured ----------------------------------------------------------------------------------------------------------


def _cases(seeds: int, mask: str, heads: str) -> Iterator[Case]:
    for dtype, n, seed in itertools.product(_DTYPES, _LENGTHS, range(seeds)):
        yield _CASE.with_(dtype=dtype, M=n, N=n, HK=_HEADS[heads], mask=_MASKS[mask], seed=seed)


def _measured(seeds: int) -> Measured:
    """Of the bundled kernel, over what is predicted of the flash arrangement."""
    return {
        (mask, heads): [
            {tensor: _known(rows[tensor], rows[tensor].predictor_ratio) for tensor in IN_DTYPE}
            for rows in map(_rows, itertools.repeat("flash"), _cases(seeds, mask, heads))
        ]
        for mask, heads in itertools.product(_MASKS, _HEADS)
    }


def _measured_of_fault(seeds: int) -> list[float]:
    """Of the mutant, over what the gate allows for: the larger prediction of all flash kernels."""
    cases = itertools.product(_FAULTY_LENGTHS, _MASKS.values(), range(seeds))
    rows = [_rows(_FAULT, _CASE.with_(M=n, N=n, mask=mask, seed=seed))[_FAULTY] for n, mask, seed in cases]
    return [_known(row, row.envelope_ratio) for row in rows]


def _rows(kernel: str, case: Case) -> dict[str, Row]:
    """By tensor."""
    with interpreter.interpret():
        result = evaluate(case, load(kernel), "survey", thorough=False, stores=False)
    return {str(r.tensor): r for r in result.rows}


def _known(row: Row, ratio: float | None) -> float:
    """Infinite where the result is not finite, or where an error is not predicted."""
    return math.inf if ratio is None or row.nonfinite else ratio
