"""The kernel's source in other arithmetics, as the tables and figures of a report: is it the definition, and where
does its rounding error arise?
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from .record import TENSORS, Comparison, Mismatch, Run, Share
from .words import DTYPES, briefly, clip, count, number, order, percent, plural, replay_exact

#: kinds of rounding sites, in the order in which a kernel meets them
KINDS = ("scores", "exp", "P", "dP", "dS", "operands", "accumulators", "output", "host", "constants", "other")
_TOTALS = ("whole", "sum of the parts")
_COMPARED = ("equal", "different")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem in short words, and its result."""

    case: str
    tiles: str
    arithmetic: str
    elements: int
    status: str
    result: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A problem, the smallest that shows it, of which some tensors are not the definition's."""

    case: str
    replay: str  # empty where a finding has it
    tensors: list[tuple[str, str, str]]  # name, how much of it, where


@dataclass(frozen=True, slots=True)
class Exact:
    """All comparisons of a run; there is nothing in it when no problem could be compared."""

    problems: list[Problem]
    left_out: int
    compared: str  # how many elements of how many problems
    differences: list[Difference]


def exact(run: Run, limit: int) -> Exact:
    """At most `limit` problems, those that differ first."""
    comparisons = run.verdict.algebra.comparisons if run.verdict.algebra else ()
    if not any(c.status in _COMPARED for c in comparisons):
        return Exact([], 0, "", [])
    ranked = sorted(comparisons, key=lambda c: c.status != "different")
    return Exact(
        problems=[_problem(c) for c in ranked[:limit]],
        left_out=max(0, len(ranked) - limit),
        compared=_compared(comparisons),
        differences=_differences(run, comparisons),
    )


def _compared(comparisons: Sequence[Comparison]) -> str:
    parts = []
    for words, wanted in (("in rationals", False), ("in many digits", True)):
        own = [c for c in comparisons if c.status in _COMPARED and bool(c.digits) == wanted]
        if own:
            elements = sum(c.elements for c in own)
            parts.append(f"{plural(elements, 'element')} of {plural(len(own), 'problem')} {words}")
    return "; ".join(parts)


def _problem(c: Comparison) -> Problem:
    parts = [f"{m.tensor}: {count(m.count)} of {count(m.elements)}" for m in c.mismatches]
    if c.digits:
        parts = [", ".join(f"{_power(exponent)} at {n} digits" for n, exponent in c.digits[:8])]
    if c.detail:
        parts.append(clip(c.detail, 300))
    tiles = f"{c.tiles[0]} × {c.tiles[1]}" if c.tiles else "–"
    case = clip(briefly(c.case), 200)
    return Problem(case, tiles, clip(c.arithmetic, 60), c.elements, c.status, "; ".join(parts))


def _power(exponent: float) -> str:
    """A power of ten, even where no float holds it."""
    if math.isfinite(exponent) and abs(exponent) > 300:
        return f"1e{exponent:.0f}".replace("-", "−")
    return number(10.0**exponent, 2).replace("-", "−")


def _differences(run: Run, comparisons: Sequence[Comparison]) -> list[Difference]:
    """Every tensor that differs anywhere, at the smallest problem that shows it; those of one problem together."""
    asked = sum(c.status in _COMPARED for c in comparisons)
    by_tensor: dict[str, list[tuple[Comparison, Mismatch]]] = defaultdict(list)
    for c in comparisons:
        for m in c.mismatches if c.status == "different" else ():
            by_tensor[m.tensor].append((c, m))
    found: dict[int, Difference] = {}
    for tensor in order(list(by_tensor), TENSORS):
        c, m = min(by_tensor[tensor], key=lambda item: (bool(item[0].digits), item[0].elements))
        if id(c) not in found:
            known = any(f.check == "algebra" and f.case == c.case for f in run.findings)
            again = "" if known else clip(replay_exact(c.case, run.manifest.implementation), 4000)
            found[id(c)] = Difference(clip(f"{briefly(c.case)}, in {c.arithmetic}", 300), again, [])
        amount = "" if c.digits else f"{count(m.count)} of {count(m.elements)} elements, "
        amount += f"off by up to {number(m.deviation)} times the largest element"
        seen = f"in {len(by_tensor[tensor])} of {plural(asked, 'problem')}"
        found[id(c)].tensors.append((tensor, f"{amount}, {seen}", clip(m.where, 600)))
    return list(found.values())


# --------------------------------------------------------------------------------------------------- digits


@dataclass(frozen=True, slots=True)
class Digits:
    """log10 of the largest relative difference of one problem of one run, at so many digits."""

    run: int
    case: str
    status: str
    points: list[tuple[int, float]]


def digits(runs: Sequence[Run], limit: int) -> list[Digits]:
    """Every problem that was run in many digits."""
    found = [
        Digits(index, clip(briefly(c.case), 200), c.status, list(c.digits[:20]))
        for index, run in enumerate(runs)
        for c in (run.verdict.algebra.comparisons if run.verdict.algebra else ())
        if c.digits
    ]
    return found[:limit]


# ---------------------------------------------------------------------------------------------------- sites


@dataclass(frozen=True, slots=True)
class Bar:
    """Where one tensor's squared error arises in one dtype and run, by kind of site.

    `parts` are (index in KINDS, part of the whole, the sites in words); `total` is their sum, about 1; `failed` says
    that too much of it arises in the accumulators; it is the mean of n cases.
    """

    run: int
    tensor: str
    dtype: str
    total: float
    parts: list[tuple[int, float, str]]
    failed: bool
    n: int | None


def sample(found: Sequence[Bar]) -> str:
    """How many cases each bar rests on, in words."""
    counts = sorted({bar.n for bar in found if bar.n is not None})
    if not counts or any(bar.n is None for bar in found):
        return "n not recorded"
    return f"n = {' or '.join(map(count, counts))} {'case' if counts == [1] else 'cases'} per dtype"


def bars(runs: Sequence[Run], limit: int = 100) -> list[Bar]:
    """At most `limit`, by tensor, dtype and run, so that the runs stand next to each other."""
    found = []
    for index, run in enumerate(runs):
        by_bar: dict[tuple[str, str], list[Share]] = defaultdict(list)
        for share in run.verdict.algebra.shares if run.verdict.algebra else ():
            by_bar[share.tensor, share.dtype].append(share)
        bad = {c.tensor for c in run.verdict.checks if c.name == "accumulators" and c.status == "fail"}
        found += [
            _bar(index, tensor, dtype, shares, failed=tensor in bad and dtype != "fp32")
            for (tensor, dtype), shares in by_bar.items()
        ]
    dtypes = order([bar.dtype for bar in found], DTYPES)
    return sorted(found, key=lambda bar: (TENSORS.index(bar.tensor), dtypes.index(bar.dtype), bar.run))[:limit]


def _bar(run: int, tensor: str, dtype: str, shares: Sequence[Share], *, failed: bool) -> Bar:
    own = [s for s in shares if s.site not in _TOTALS and math.isfinite(s.part) and s.part > 0]
    parts = []
    for number_of, kind in enumerate(KINDS):
        same = [s for s in own if kind_of(s.site) == kind]
        if same:
            sites = "\n".join(clip(f"{s.site} {percent(s.part)}", 60) for s in same[:6])
            parts.append((number_of, sum(s.part for s in same), sites))
    return Bar(run, tensor, dtype, sum(part for _, part, _ in parts), parts, failed, shares[0].n)


def kind_of(site: str) -> str:
    """`dS` of `backward_dq:dS`."""
    kind = site.rpartition(":")[2]
    return kind if kind in KINDS else "other"


def shares(run: Run, limit: int) -> list[Share]:
    """The rows of the table behind the bars: per dtype and tensor the whole, the sum, and the sites, largest first."""
    found = list(run.verdict.algebra.shares if run.verdict.algebra else ())
    dtypes = order([s.dtype for s in found], DTYPES)

    def key(s: Share) -> tuple[int, int, int, float]:
        total = _TOTALS.index(s.site) if s.site in _TOTALS else len(_TOTALS)
        return TENSORS.index(s.tensor), dtypes.index(s.dtype), total, -s.part if math.isfinite(s.part) else 0.0

    return sorted(found, key=key)[:limit]


def unattributed(run: Run) -> str:
    """Why there is no attribution, in one line."""
    if run.verdict.algebra is None:
        return "Not measured in this run."
    comparisons = run.verdict.algebra.comparisons
    if any(c.status == "equal" for c in comparisons):
        return "Not available: the source does something that cannot be run with the roundings of one site alone."
    if any(c.status == "different" for c in comparisons):
        return "Not measured: without any rounding this is not attention either, so its errors are not its roundings'."
    return "Not measured: this needs a kernel whose source runs in other arithmetics."
