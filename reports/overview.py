"""What the tables of a report say: what passes, where it is worse, what was covered, what broke."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from .record import TENSORS, Cell, Run, Standing
from .rows import Row
from .words import DTYPES, clip, did_not_return, measured, order, replay, violates

# A ratio's colour: blue where the kernel is closer to the truth, orange where it is further away.
_STEPS = (0.25, 0.5, 0.8, 0.95, 1.05, 1.25, 2.0)


@dataclass(frozen=True, slots=True)
class Square:
    """One tensor in one dtype: pass, fail, or 'not measured'; cases, worst error / bound."""

    status: str
    n: int
    bound: float | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table: the head of its columns, and rows of a head and one entry per column."""

    columns: list[str]
    rows: list[tuple[str, list[Square | None]]]


def grid(run: Run) -> Table:
    """Pass or fail per tensor and dtype."""
    seen = {row.dtype for row in run.rows} | {cell.dtype for cell in run.verdict.cells}
    dtypes = order([dtype for dtype in seen if dtype], DTYPES)
    cases: dict[tuple[str, str], set[str]] = defaultdict(set)
    worst: dict[tuple[str, str], float] = {}
    for row in run.rows:
        if measured(row):
            key = (str(row.tensor), str(row.dtype))
            cases[key].add(row.case_id)
            if row.bound_ratio is not None:
                worst[key] = max(worst.get(key, 0.0), row.bound_ratio)
    bad = _failed(run, dtypes)
    let_off = _violations(run) - bad

    def square(tensor: str, dtype: str) -> Square:
        key = (tensor, dtype)
        status = "fail" if key in bad else "pass" if cases[key] and run.judged else "not measured"
        status = "waived" if status == "pass" and key in let_off else status
        return Square(
            "not judged" if cases[key] and not run.judged else status,
            len(cases[key]),
            worst.get(key),
        )

    return Table(dtypes, [(tensor, [square(tensor, dtype) for dtype in dtypes]) for tensor in TENSORS])


def _failed(run: Run, dtypes: Sequence[str]) -> set[tuple[str, str]]:
    """Tensors and dtypes that something failed for; a failure that names no dtype counts for all of them."""
    waived = {c.tensor for c in run.verdict.checks if c.status == "waived"}
    waived -= {c.tensor for c in run.verdict.checks if c.status == "fail"}
    bad = {(tensor, dtype) for tensor, dtype in _violations(run) if tensor not in waived}
    bad |= {(cell.tensor, cell.dtype) for cell in run.verdict.cells if cell.status == "fail"}
    for finding in run.findings:
        dtype = finding.case.get("dtype")
        one = isinstance(dtype, str) and dtype in dtypes and finding.check != "algebra"  # in which nothing rounds
        hit = [str(dtype)] if one else dtypes
        bad |= {(finding.tensor, name) for name in hit} if finding.tensor else set()
    located = {tensor for tensor, _ in bad}
    for check in run.verdict.checks:
        if check.status == "fail" and check.tensor and check.tensor not in located:
            bad |= {(check.tensor, name) for name in dtypes}
    return bad


def _violations(run: Run) -> set[tuple[str, str]]:
    """Tensors and dtypes with an error beyond any statistics, whatever was decided about it."""
    return {(str(row.tensor), str(row.dtype)) for row in run.rows if measured(row) and violates(row)}


# ------------------------------------------------------------------------------------------------- heat map


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Cells of the paired comparison: one row per regime and mask, one column per tensor and dtype."""

    columns: list[tuple[str, str]]
    rows: list[tuple[str, str, list[Cell | None]]]
    left_out: int  # rows that are not shown; the worst are

    @property
    def by_mask(self) -> bool:
        """Whether cells are split by mask at all."""
        return any(mask != "all" for _, mask, _ in self.rows)


def heat_map(cells: Sequence[Cell], limit: int) -> HeatMap:
    """Regimes, and within them masks, with the worst cell first."""
    where = {(cell.regime, cell.mask, str(cell.tensor), cell.dtype): cell for cell in cells}
    tensors = order([cell.tensor for cell in cells], TENSORS)
    dtypes = order([cell.dtype for cell in cells], DTYPES)
    columns = [
        (tensor, dtype)
        for dtype in dtypes
        for tensor in tensors
        if any(cell.tensor == tensor and cell.dtype == dtype for cell in cells)
    ]
    worst: dict[str | tuple[str, str], tuple[bool, float]] = defaultdict(lambda: (False, 0.0))
    for cell in cells:
        for key in (cell.regime, (cell.regime, cell.mask)):
            worst[key] = max(worst[key], badness(cell))
    ranked = sorted(
        {(cell.regime, cell.mask) for cell in cells},
        key=lambda key: (worst[key[0]], key[0], worst[key], key),
        reverse=True,
    )
    rows = [
        (regime, mask, [where.get((regime, mask, tensor, dtype)) for tensor, dtype in columns])
        for regime, mask in ranked[:limit]
    ]
    return HeatMap(columns, rows, max(0, len(ranked) - limit))


def badness(cell: Cell) -> tuple[bool, float]:
    """Failed cells before the others, then by the ratio."""
    return cell.status == "fail", _known(cell.ratio)


def closeness(cell: Cell) -> tuple[bool, float]:
    """Failed cells before the others, then by how near the interval's lower end is to what is allowed."""
    low = _known(cell.low if cell.low is not None else cell.ratio)
    return cell.status == "fail", low / cell.allowed if cell.allowed else low


def _known(value: float | None) -> float:
    return -1.0 if value is None else math.inf if math.isnan(value) else value


def heat(ratio: float | None) -> str:
    """The colour class of a ratio: h0 (far better than standard) to h7 (more than twice its error)."""
    if ratio is None:
        return "none"
    return f"h{sum(ratio > step for step in _STEPS)}"


@dataclass(frozen=True, slots=True)
class Kinds:
    """Standings: one row per kind of input, the worst first, and one column per tensor."""

    columns: list[str]
    rows: list[tuple[str, list[Standing | None]]]


def kinds(standings: Sequence[Standing]) -> Kinds:
    """On which kinds of input the error is larger than standard attention's."""
    tensors = order([s.tensor for s in standings], TENSORS)
    where = {(s.regime, str(s.tensor)): s for s in standings}
    worst: dict[str, float] = defaultdict(float)
    for s in standings:
        worst[s.regime] = max(worst[s.regime], s.ratio)
    ranked = sorted(worst, key=lambda regime: -worst[regime])
    return Kinds(tensors, [(regime, [where.get((regime, tensor)) for tensor in tensors]) for regime in ranked])


# -------------------------------------------------------------------------------------------------- coverage


Seen = tuple[int, int]  # cases of the survey, cases of the hunt


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many cases returned a result: by regime and by mask per dtype, and by all three."""

    dtypes: list[str]
    by_regime: list[tuple[str, list[Seen]]]
    by_mask: list[tuple[str, list[Seen]]]
    regimes: list[str]
    rows: list[tuple[str, str, list[Seen]]]  # dtype, mask, one entry per regime


def coverage(run: Run) -> Coverage:
    """How many cases of each kind were measured."""
    cases: dict[str, tuple[str, str, str, bool]] = {}
    for row in run.rows:
        if measured(row):
            kind = (str(row.dtype), row.mask or "none", row.regime or "unnamed")
            cases[row.case_id] = (*kind, row.phase == "hunt")  # those of the comparison were drawn, as the survey's
    found = list(cases.values())
    dtypes = order([dtype for dtype, _, _, _ in found], DTYPES)
    masks = order([mask for _, mask, _, _ in found], ("none",))
    regimes = order([regime for _, _, regime, _ in found], ("normal",))
    counts: dict[tuple[str, str | None, str | None, bool], int] = Counter(
        (dtype, m, r, hunt) for dtype, mask, regime, hunt in found for m in (mask, None) for r in (regime, None)
    )

    def seen(dtype: str, mask: str | None, regime: str | None) -> Seen:
        return counts[dtype, mask, regime, False], counts[dtype, mask, regime, True]

    rows = [(dtype, mask, [seen(dtype, mask, regime) for regime in regimes]) for dtype in dtypes for mask in masks]
    return Coverage(
        dtypes=dtypes,
        by_regime=[(regime, [seen(dtype, None, regime) for dtype in dtypes]) for regime in regimes],
        by_mask=[(mask, [seen(dtype, mask, None) for dtype in dtypes]) for mask in masks],
        regimes=regimes,
        rows=[row for row in rows if any(map(sum, row[2]))],
    )


# ------------------------------------------------------------------------------------- cases without a result


@dataclass(frozen=True, slots=True)
class Broken:
    """Cases that ended alike: how, why, how many, and the command that runs one of them again."""

    status: str
    message: str
    n: int
    dtypes: list[str]
    replay: str


# What the interpreter raises ends with the line of the kernel; between its name and that are numbers of the case.
_AT_A_LINE = re.compile(r"(\w+): .*(\[[^\[\]]+:\d+\])", re.DOTALL)


def broken(run: Run, limit: int) -> tuple[list[Broken], int]:
    """Cases that gave no result, grouped by status and message (by error and line, where it names a line of the
    kernel), most frequent first; and how many groups are left out.
    """
    groups: dict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for row in run.rows:
        if did_not_return(row):
            message = (row.message or "").strip()
            placed = _AT_A_LINE.fullmatch(message)
            groups[row.status, " ".join(placed.groups()) if placed else message].setdefault(row.case_id, row)
    ranked = sorted(groups.items(), key=lambda item: -len(item[1]))
    found = [
        Broken(
            status=status,
            message=clip((next(iter(cases.values())).message or "").strip(), 600),
            n=len(cases),
            dtypes=order([row.dtype for row in cases.values() if row.dtype], DTYPES),
            replay=clip(min((replay(r, run.manifest.implementation) for r in cases.values()), key=len), 2000),
        )
        for (status, _), cases in ranked[:limit]
    ]
    return found, len(ranked) - len(found)
