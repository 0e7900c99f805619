"""Has the error grown?  Two runs of the same cases, paired: a pure function of their rows.

Pairing takes out what the input does to the error, so that a few cases show a change of some per cent.  A cell counts
as changed when its whole interval lies beyond the margin, which is the size of the effect, and when that holds among
all cells (Holm 1979), which is its significance.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..reports.drift import DriftCell, Pairing, State
from ..reports.record import TENSORS, Algebra, Check, Row, Share
from .attribution import REST, WHOLE
from .budgets import Budgets
from .errors import floored_log_ratio
from .statistics import bounded_exp, holm, mean_interval, p_above

_SAME_INPUTS = 1e-6  # relative: the truth of the same recipe differs by less from machine to machine
_EXPLAINED = 0.25  # of the growth of the squared error: a site that makes less of it is not the cause
_RANKS: dict[State, int] = {"worse": 0, "suspect": 1, "too few": 2, "unchanged": 3, "better": 4}

TOGETHER = "all regimes"  # sees sooner what is in all of them alike, and what is in those with few cases each

_Key = tuple[str, str]  # case_id, tensor


@dataclass(slots=True)
class _Pairs:
    """One cell's paired cases."""

    logs: list[float] = field(default_factory=list)
    nonfinite: int = 0


def surveyed(rows: Iterable[Row]) -> dict[_Key, Row]:
    """The tensors that a survey's cases gave."""
    found: dict[_Key, Row] = {}
    for r in rows:
        if r.phase == "survey" and r.status == "ok" and r.tensor is not None:
            found.setdefault((r.case_id, r.tensor), r)
    return found


def pairing_of(base: Sequence[Row], head: Sequence[Row]) -> Pairing:
    """How many cases of the two surveys pair, and what became of the others."""
    mine, theirs = surveyed(base), surveyed(head)
    common = mine.keys() & theirs.keys()
    same = {key[0] for key in common if _same_inputs(mine[key], theirs[key])}
    one, other = ({case for case, _ in rows} for rows in (mine, theirs))
    refused = {r.case_id for r in head if r.phase == "survey" and r.status == "unsupported"}
    return Pairing(
        paired=len(same), only_base=len(one - other), only_head=len(other - one), refused=len((one - other) & refused),
        other_inputs=len({case for case, _ in common} - same),
        missing=tuple(t for t in TENSORS if any(t == x for _, x in mine) and not any(t == x for _, x in theirs)),
    )  # fmt: skip


def _same_inputs(a: Row, b: Row) -> bool:
    """What depends on the inputs alone agrees: the truth's rounding, and the natural scale of its errors."""
    return all(
        x is not None and y is not None and math.isclose(x, y, rel_tol=_SAME_INPUTS)
        for x, y in ((a.rounded_rms, b.rounded_rms), (a.natural_scale, b.natural_scale))
    )


def drift_cells(base: Sequence[Row], head: Sequence[Row], budgets: Budgets, implementation: str) -> list[DriftCell]:
    """Per dtype, tensor and regime (and over all), how HEAD's error compares with BASE's; worst first."""
    limits = budgets.drift
    pairs = _paired(surveyed(base), surveyed(head))
    margins = {
        cell: math.log(budgets.allowance("drift_margin", limits.margin, implementation, *cell)) for cell in pairs
    }
    judged = [cell for cell, p in pairs.items() if len(p.logs) >= limits.min_cases]
    worse = holm([_p(pairs[c].logs, margins[c]) for c in judged])
    better = holm([_p([-x for x in pairs[c].logs], margins[c]) for c in judged])
    adjusted = {c: (w, b) for c, w, b in zip(judged, worse, better, strict=True)}
    cells = [_cell(cell, p, margins[cell], adjusted.get(cell), limits.confidence) for cell, p in sorted(pairs.items())]
    return sorted(cells, key=lambda c: (_RANKS[c.status], -c.nonfinite, -(c.low or 0.0)))


def _paired(base: Mapping[_Key, Row], head: Mapping[_Key, Row]) -> dict[tuple[str, str, str], _Pairs]:
    cells: dict[tuple[str, str, str], _Pairs] = defaultdict(_Pairs)
    for key, old in base.items():
        new = head.get(key)
        if new is None or not _same_inputs(old, new) or old.elements == 0:  # an empty tensor cannot be worse
            continue
        cell = cells[str(old.dtype), str(old.tensor), str(old.regime)]
        if old.nonfinite or new.nonfinite:  # an RMS over the other elements would compare other things
            cell.nonfinite += bool(new.nonfinite and not old.nonfinite)
            continue
        assert old.rounded_rms is not None and old.natural_scale is not None  # else their inputs are not the same
        if old.kernel_rms is None or new.kernel_rms is None:
            continue
        log = floored_log_ratio(new.kernel_rms, old.kernel_rms, old.rounded_rms, old.natural_scale)
        if log is not None:
            cell.logs.append(log)
    return _with_all_regimes(cells)


def _with_all_regimes(cells: dict[tuple[str, str, str], _Pairs]) -> dict[tuple[str, str, str], _Pairs]:
    """A further cell per dtype and tensor that has several regimes; what is not finite is told of its own cell."""
    together: dict[tuple[str, str], list[_Pairs]] = defaultdict(list)
    for (dtype, tensor, _), pairs in cells.items():
        together[dtype, tensor].append(pairs)
    pooled = {
        (*key, TOGETHER): _Pairs([x for p in parts for x in p.logs]) for key, parts in together.items() if parts[1:]
    }
    return {**cells, **pooled}


def _p(logs: Sequence[float], margin: float) -> float:
    """Against "the mean is at most the margin"; 1 where there is no need to ask."""
    return p_above(logs, margin) if math.fsum(logs) / len(logs) > margin else 1.0


def _cell(
    cell: tuple[str, str, str], pairs: _Pairs, margin: float, adjusted: tuple[float, float] | None, confidence: float
) -> DriftCell:
    dtype, tensor, regime = cell
    found = mean_interval(pairs.logs, confidence)
    status: State = "too few"
    if adjusted is not None:
        by_chance = (1 - confidence) / 2  # a tail of the interval
        status = "unchanged"
        if found.low > margin:
            status = "worse" if adjusted[0] <= by_chance else "suspect"
        elif found.high < -margin and adjusted[1] <= by_chance:
            status = "better"
    worse, better = adjusted or (1.0, 1.0)
    return DriftCell(
        dtype=dtype, tensor=next(t for t in TENSORS if t == tensor), regime=regime, n=found.n,
        status="worse" if pairs.nonfinite else status, margin=math.exp(margin), p_worse=worse, p_better=better,
        ratio=bounded_exp(found.mean) if found.n else None, low=bounded_exp(found.low) if found.n else None,
        high=bounded_exp(found.high) if found.n else None, nonfinite=pairs.nonfinite,
    )  # fmt: skip


# -- why ---------------------------------------------------------------------------------------------------------------


def cause(dtype: str, tensor: str, base: Algebra | None, head: Algebra | None) -> str:
    """The rounding site whose part of a tensor's squared error grew most, where both records attribute it."""
    old, new = (_squares(a, dtype, tensor) for a in (base, head))
    if WHOLE not in old or WHOLE not in new:
        return ""
    growth = new[WHOLE].rms ** 2 - old[WHOLE].rms ** 2
    if not {_kernel(s) for s in old} & {_kernel(s) for s in new} - {""}:  # renamed: their sites are told by their kinds
        old, new = _by_kind(old), _by_kind(new)
    grown = {s: x.rms**2 - (old[s].rms ** 2 if s in old else 0.0) for s, x in new.items() if s not in (WHOLE, REST)}
    site = max(grown, key=lambda s: grown[s], default="")
    if growth <= 0 or not site or grown[site] < _EXPLAINED * growth:
        return "no rounding site's error grew on the sample that was attributed"
    before = f"{old[site].part:.0%}" if site in old else "none"
    where = f" ({new[site].lines})" if new[site].lines else ""
    return f"roundings at {site}{where} make {new[site].part:.0%} of the squared error, {before} in the base"


def _squares(algebra: Algebra | None, dtype: str, tensor: str) -> dict[str, Share]:
    shares = algebra.shares if algebra is not None else ()
    return {s.site: s for s in shares if s.dtype == dtype and s.tensor == tensor and math.isfinite(s.rms)}


def _kernel(site: str) -> str:
    return site.rpartition(":")[0].replace("torch", "")


def _by_kind(shares: Mapping[str, Share]) -> dict[str, Share]:
    found: dict[str, Share] = {}
    for site, share in shares.items():
        kind = site.rpartition(":")[2]
        if known := found.get(kind):
            lines = ", ".join(filter(None, (known.lines, share.lines)))
            rms = math.hypot(known.rms, share.rms)
            share = share.model_copy(update=dict(part=known.part + share.part, rms=rms, lines=lines))
        found[kind] = share
    return found


# -- checks ------------------------------------------------------------------------------------------------------------


def turned(before: Sequence[Check], after: Sequence[Check]) -> list[Check]:
    """The checks that fail after and did not before; a check of all tensors passes for each of them."""
    passed = {(c.name, c.tensor) for c in before if c.status not in ("fail", "skipped")}
    failed = {(c.name, c.tensor) for c in before if c.status == "fail"}
    return [
        c
        for c in after
        if c.status == "fail"
        and (c.name, c.tensor) not in failed
        and ((c.name, c.tensor) in passed or (c.name, None) in passed)
    ]
