"""From rows to checks: every question of a run answered, and the cells behind the answers.

A pure function of the record and, where budgets hold waivers, of the day: `verify` and `gate` call it with the same
rows and get the same answer.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date

from ..reports.record import IN_DTYPE, PHASES, TENSORS, Algebra, Cell, Check, Counts, Row, Waived
from ..reports.record import Tensor as TensorName
from ..reports.words import plural
from .algebra import accumulator_checks
from .algebra import checks as algebra_checks
from .budgets import Budgets
from .case import UNIT_ROUNDOFF
from .case_checks import case_checks, check, failed_in
from .expected import MODERATE, PARAMETER
from .plain import is_plain
from .regimes import REGIMES
from .statistics import bounded_exp, common_slope, mean_interval
from .waivers import Waivers

#: an fp32 kernel rounds scale and log2(e) themselves, once for all elements: that much is in every error
_FP32_CONSTANTS = 2.0**-18

_ALIKE = 80  # characters of a message, by which refusals are grouped
_TOGETHER = "all regimes"
_PLAIN = ", plain"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict without its findings, and which checks failed for want of one."""

    checks: tuple[Check, ...]
    cells: tuple[Cell, ...]
    counts: Counts
    not_covered: tuple[str, ...]
    waived: tuple[Waived, ...] = ()

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(c for c in self.checks if c.status == "fail")


def judge(
    rows: Sequence[Row], budgets: Budgets, implementation: str, not_covered: Iterable[str] = (),
    algebra: Algebra | None = None, today: date | None = None,
) -> Judgement:  # fmt: skip
    """All checks over all rows, and over what was run in exact arithmetic."""
    waivers = Waivers(budgets.waivers, implementation, today or date.today())
    cases = case_checks(rows, budgets, implementation, waivers)
    survey = [r for r in rows if r.phase == "survey" and r.tensor is not None and not waivers.leaves_out(r)]
    independent = [r for r in survey if r.regime in REGIMES and REGIMES[r.regime].independent]
    cells = _ratio_cells(independent, budgets, implementation)
    checks = [
        *cases,
        *_ratio_checks(cells),
        *_predictor_checks(independent, budgets, implementation),
        *_bias_checks(independent, budgets, implementation),
        *_systematic_checks(independent, budgets, implementation),
        *algebra_checks(algebra),
        *accumulator_checks(algebra, budgets, implementation),
        *waivers.check(),
    ]
    measured = {phase: len({r.case_id for r in rows if r.phase == phase and r.status == "ok"}) for phase in PHASES}
    counts = Counts(
        cases=len({r.case_id for r in rows if r.status != "unsupported"}),
        **measured,
    )
    missing = tuple(dict.fromkeys((*not_covered, *_refused(rows), *_excused(rows))))
    return Judgement(tuple(checks), tuple(cells), counts, missing, waivers.told())


def _refused(rows: Sequence[Row]) -> list[str]:
    """The commonest reasons; those that begin alike but for their numbers are one."""
    groups: dict[str, list[str]] = defaultdict(list)
    for r in rows:
        if r.status == "unsupported":
            groups[re.sub(r"\d+", "", r.message or "")[:_ALIKE]].append(r.message or "")
    cases = len({r.case_id for r in rows})
    commonest = sorted(groups.values(), key=len, reverse=True)[:8]
    return [
        f"refused in {len(group)} of {cases} cases{', as in' if len(set(group)) > 1 else ''}: "
        f"{Counter(group).most_common(1)[0][0]}"
        for group in commonest
    ]


def _excused(rows: Sequence[Row]) -> list[str]:
    """Cases where the kernel gave NaN or infinity, as standard attention did, and was not asked for more."""
    cases = {r.case_id for r in rows if r.nonfinite and r.standard_rms is None and "finite" not in failed_in(r)}
    if not cases:
        return []
    some = plural(len(cases), "case")
    return [
        f"overflow: in {some} its result, or scores that it stores in half precision, overflow as standard attention's"
    ]


# -- distributions -----------------------------------------------------------------------------------------------------


def _groups(rows: Iterable[Row], key: Callable[[Row], tuple[str, ...]]) -> dict[tuple[str, ...], list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for r in rows:
        groups[key(r)].append(r)
    return dict(sorted(groups.items()))


def _cells(rows: Sequence[Row], tensor: TensorName, *, together: bool) -> dict[tuple[str, str], list[Row]]:
    """A tensor's rows by (dtype, regime): of all cases, and of the plain ones alone.

    `together` adds cells of all regimes: what is in all of them alike shows sooner there.
    """
    own = [r for r in rows if r.tensor == tensor]
    cells: dict[tuple[str, str], list[Row]] = {}
    for chosen, suffix in ((own, ""), ([r for r in own if is_plain(r)], _PLAIN)):
        groups = _groups(chosen, lambda r: (str(r.dtype), str(r.regime)))
        groups |= _groups(chosen, lambda r: (str(r.dtype), _TOGETHER)) if together else {}
        cells |= {(dtype, regime + suffix): group for (dtype, regime), group in groups.items()}
    return cells


def real_regime(cell: str) -> str:
    """The regime of a cell's cases, plain or not."""
    return cell.removesuffix(_PLAIN)


def known(values: Iterable[float | None]) -> list[float]:
    """The finite values among those that were measured."""
    return [v for v in values if v is not None and math.isfinite(v)]


def logs(values: Iterable[float | None]) -> list[float]:
    """The logarithms of those that are finite and positive."""
    return [math.log(v) for v in values if v is not None and math.isfinite(v) and v > 0]


def _ratio_cells(rows: list[Row], budgets: Budgets, implementation: str) -> list[Cell]:
    """Per dtype, tensor and regime: is the kernel's RMS error no more than standard attention's?

    A cell fails when the ratio is surely beyond the margin, and the kernel's error is also surely beyond what any known
    arrangement's roundings predict: where standard attention is lucky, being as good as flash should be is no fault.
    That does not excuse where the budgets ask for more than the default: there more has been reached, or is wanted.
    """
    cells = []
    by_cell = {(t, *cell): group for t in TENSORS for cell, group in _cells(rows, t, together=False).items()}
    for (tensor, dtype, regime), group in by_cell.items():
        ratios = mean_interval(known(r.log_ratio for r in group), budgets.ratio.confidence)
        if ratios.n < budgets.ratio.min_cases:
            continue
        real = real_regime(regime)
        margin = budgets.allowance("ratio_margin", budgets.ratio.margin, implementation, dtype, tensor, real)
        predicted = mean_interval(logs(r.envelope_ratio for r in group), budgets.ratio.confidence)
        excused = predicted.n >= budgets.ratio.min_cases and predicted.low <= math.log(budgets.ratio.margin)
        excused = excused and margin >= budgets.ratio.margin
        worse = ratios.low > math.log(margin)
        status = "fail" if worse and not excused else "predicted" if worse else "pass"
        if tensor == "lse" and worse:  # its yardstick is the bound: standard's own LSE has fp32 accuracy at times
            status = "predicted"
        cells.append(
            Cell(
                dtype=dtype, tensor=tensor, mask="all", regime=regime, n=ratios.n,
                ratio=bounded_exp(ratios.mean), low=bounded_exp(ratios.low), high=bounded_exp(ratios.high),
                allowed=margin, status=status,
            )
        )  # fmt: skip
    return cells


def _ratio_checks(cells: list[Cell]) -> list[Check]:
    checks = []
    for tensor in TENSORS:
        own = [c for c in cells if c.tensor == tensor]
        if not own:
            checks.append(Check(name="ratio", status="skipped", tensor=tensor, detail="not measured"))
            continue
        bad = [c for c in own if c.status == "fail"]
        worst = max(own, key=lambda c: (c.status == "fail", c.low or 0.0))
        detail = (
            f"RMS error / standard's at worst {worst.ratio:.3g} [{worst.low:.3g}, {worst.high:.3g}] "
            f"({worst.dtype}, {worst.regime}, n = {worst.n}); {len(bad)} of {len(own)} cells fail"
        )
        checks.append(check("ratio", tensor, bool(bad), sum(c.n for c in own), detail))
    return checks


def _predictor_checks(rows: list[Row], budgets: Budgets, implementation: str) -> list[Check]:
    """Per dtype and tensor: is the RMS error what the roundings of a known arrangement predict?"""
    checks = []
    for tensor in TENSORS:
        worst, failed, n = None, False, 0
        for (dtype, regime), group in _cells(rows, tensor, together=True).items():
            found = mean_interval(logs(r.envelope_ratio for r in group), budgets.ratio.confidence)
            if found.n < budgets.ratio.min_cases:
                continue
            real = real_regime(regime)
            margin = budgets.allowance(
                "predictor_margin", budgets.predictor.margin, implementation, dtype, tensor, real
            )
            n += found.n
            failed |= found.low > math.log(margin)
            if worst is None or found.low > worst[0].low:
                worst = (found, dtype, regime, margin)
        if worst is None:
            checks.append(Check(name="predictor", status="skipped", tensor=tensor, detail="not measured"))
            continue
        m, dtype, regime, margin = worst
        detail = (
            f"RMS error / predicted at worst {math.exp(m.mean):.3g} [{math.exp(m.low):.3g}, {math.exp(m.high):.3g}] "
            f"({dtype}, {regime}, n = {m.n}); allowed {margin:g}"
        )
        checks.append(check("predictor", tensor, failed, n, detail))
    return checks


def _bias_checks(rows: list[Row], budgets: Budgets, implementation: str) -> list[Check]:
    """Per dtype and tensor: is the mean signed error that of rounding to nearest?"""
    checks = []
    for tensor in IN_DTYPE:
        details, failed, n = [], False, 0
        for (dtype,), group in _groups(
            (r for r in rows if r.tensor == tensor and (r.elements or 0) >= 64), lambda r: (str(r.dtype),)
        ).items():
            excess = [
                r.kernel_bias - r.rounded_bias
                for r in group
                if r.kernel_bias is not None and r.rounded_bias is not None
            ]
            found = mean_interval(excess, budgets.ratio.confidence)
            if found.n < budgets.bias.min_cases:
                continue
            limit = budgets.allowance("bias_max_ulp", budgets.bias.max_ulp, implementation, dtype, tensor)
            n += found.n
            failed |= abs(found.mean) > limit and abs(found.t) > budgets.bias.min_t
            details.append(f"{dtype} {found.mean:+.3f} ulp (t = {found.t:.1f}, n = {found.n}, allowed {limit:g})")
        allowed = f"; fails where it is beyond what is allowed and |t| > {budgets.bias.min_t:g}"
        checks.append(check("bias", tensor, failed, n, "; ".join(details) + allowed if details else "not measured"))
    return checks


def _systematic_checks(rows: list[Row], budgets: Budgets, implementation: str) -> list[Check]:
    """Per dtype and tensor: do errors lie along the derivative by a parameter, as no rounding makes them lie?"""
    checks = []
    for tensor in TENSORS:
        details, failed, n = [], False, 0
        for (dtype,), group in _groups(
            (r for r in rows if r.tensor == tensor and (r.max_logit or 0.0) <= MODERATE), lambda r: (str(r.dtype),)
        ).items():
            found = common_slope([(r.slope, r.slope_weight) for r in group if r.slope is not None and r.slope_weight])
            if found is None or found.n < budgets.systematic.min_cases:
                continue
            part = budgets.allowance("systematic_max_part", budgets.systematic.max_part, implementation, dtype, tensor)
            limit = part * max(UNIT_ROUNDOFF[next(d for d in UNIT_ROUNDOFF if d == dtype)], _FP32_CONSTANTS)
            n += found.n
            failed |= abs(found.mean) > limit and abs(found.t) > budgets.systematic.min_t
            details.append(f"{dtype} {found.mean:+.2g} (t = {found.t:.1f}, n = {found.n}, allowed {limit:.2g})")
        allowed = f"; fails where it is beyond what is allowed and |t| > {budgets.systematic.min_t:g}"
        text = f"relative error of the {PARAMETER[tensor]}: {'; '.join(details)}{allowed}"
        text = text if details else "not measured"
        checks.append(check("systematic", tensor, failed, n, text))
    return checks
