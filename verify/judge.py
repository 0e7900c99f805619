"""From rows to a verdict: every check of a run, the cells behind them, and the sentence that answers the questions.

A pure function of the record: `verify` and `gate` call it with the same rows and get the same answer.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..reports.record import Answer, Cell, Check, Counts, Exactness, Finding, Row, Verdict
from ..reports.record import Tensor as TensorName
from .budgets import Budgets
from .regimes import REGIMES
from .statistics import mean_interval, rule_of_three

TENSORS: tuple[TensorName, ...] = ("out", "lse", "dq", "dk", "dv")
#: checks that a single case answers, and what they ask
CASE_CHECKS = {
    "returns": "the function returns attention's result, of the right shape, dtype and device",
    "finite": "no NaN or infinity where the truth is finite",
    "bound": "no error beyond the a priori bound",
    "written": "every element of the results is written",
    "inputs-unchanged": "the inputs, and the memory around them, are left alone",
    "repeat": "the same bits when run again",
    "inference": "without gradients, no error beyond the a priori bound",
    "batch-invariance": "the same bits when a batch element is alone",
}
_WITH_PREDICTION: tuple[TensorName, ...] = ("out", "dq", "dk", "dv")
_FORWARD: tuple[TensorName, ...] = ("out", "lse")
_PER_TENSOR = ("finite", "bound", "written", "repeat", "batch-invariance")


State = Literal["pass", "fail", "nothing-measured"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict without its findings, and which checks failed for want of one."""

    checks: tuple[Check, ...]
    cells: tuple[Cell, ...]
    counts: Counts
    not_covered: tuple[str, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(c for c in self.checks if c.status == "fail")


def judge(rows: Sequence[Row], budgets: Budgets, implementation: str, not_covered: Iterable[str] = ()) -> Judgement:
    """All checks over all rows."""
    survey = [r for r in rows if r.phase == "survey" and r.tensor is not None]
    independent = [r for r in survey if r.regime in REGIMES and REGIMES[r.regime].independent]
    cells = _ratio_cells(independent, budgets, implementation)
    checks = [
        *_case_checks(rows, budgets),
        *_ratio_checks(cells),
        *_predictor_checks(independent, budgets, implementation),
        *_bias_checks(independent, budgets, implementation),
    ]
    measured = {
        phase: len({r.case_id for r in rows if r.phase == phase and r.status == "ok"}) for phase in ("survey", "hunt")
    }
    counts = Counts(
        cases=len({r.case_id for r in rows if r.status != "unsupported"}),
        survey=measured["survey"],
        hunt=measured["hunt"],
    )
    return Judgement(tuple(checks), tuple(cells), counts, tuple(dict.fromkeys((*not_covered, *_refused(rows)))))


def _refused(rows: Sequence[Row]) -> list[str]:
    refused = Counter(r.message or "" for r in rows if r.status == "unsupported")
    cases = len({r.case_id for r in rows})
    return [f"refused in {n} of {cases} cases: {message}" for message, n in refused.most_common(8)]


# -- one case at a time ------------------------------------------------------------------------------------------------


def _case_checks(rows: Sequence[Row], budgets: Budgets) -> list[Check]:
    checks = []
    tried = {r.case_id for r in rows if r.status != "unsupported"}
    lost = {r.case_id for r in rows if r.status not in ("ok", "unsupported")}
    statuses = Counter(r.status for r in rows if r.case_id in lost)
    detail = ", ".join(f"{n} {s}" for s, n in statuses.items()) or _none_in(len(tried))
    checks.append(_check("returns", None, bool(lost), len(tried), detail))
    by_tensor: dict[str, list[Row]] = defaultdict(list)
    for r in rows:
        if r.tensor is not None:
            by_tensor[r.tensor].append(r)
    checks += [_tensor_check(name, t, by_tensor[t], budgets) for name in _PER_TENSOR for t in TENSORS]
    checks += [_tensor_check("inference", tensor, by_tensor[tensor], budgets) for tensor in _FORWARD]
    outs = by_tensor["out"]
    changed = [r for r in outs if "inputs-unchanged" in _failed(r)]
    checks.append(_check("inputs-unchanged", None, bool(changed), len(outs), _some_in(changed, len(outs))))
    return checks


def _tensor_check(name: str, tensor: TensorName, rows: list[Row], budgets: Budgets) -> Check:
    asked = rows
    if name in ("written", "repeat", "inference"):
        asked = [r for r in rows if r.phase == "survey"]
    elif name == "batch-invariance":
        asked = [r for r in rows if r.phase == "survey" and (r.B or 0) > 1]
    if not asked:
        return Check(name=name, status="skipped", tensor=tensor, detail="not measured")
    if name == "bound":
        worst = max(asked, key=lambda r: r.bound_ratio or 0.0)
        limit = budgets.bound.max_ratio
        over = [r for r in asked if (r.bound_ratio or 0.0) > limit]
        detail = f"largest error / bound {worst.bound_ratio:.3g}; beyond {limit:g} in {len(over)} of {len(asked)} cases"
        return _check(name, tensor, bool(over), len(asked), detail)
    hit = [r for r in asked if name in _failed(r)]
    detail = _some_in(hit, len(asked))
    reported = {"repeat": budgets.invariance.repeat, "batch-invariance": budgets.invariance.batch}.get(name) == "report"
    return _check(name, tensor, bool(hit) and not reported, len(asked), detail)


def _failed(row: Row) -> list[str]:
    return (row.failed or "").split(",")


def _check(name: str, tensor: TensorName | None, failed: bool, n: int, detail: str) -> Check:
    return Check(
        name=name, status="skipped" if n == 0 else "fail" if failed else "pass", tensor=tensor, n=n, detail=detail
    )


def _none_in(n: int) -> str:
    return f"0 of {n} cases; probability below {rule_of_three(n):.2g} at 95 %" if n else "no cases"


def _some_in(hit: Sequence[Row], n: int) -> str:
    return f"{len(hit)} of {n} cases" if hit else _none_in(n)


# -- distributions -----------------------------------------------------------------------------------------------------


def _groups(rows: Iterable[Row], key: Callable[[Row], tuple[str, ...]]) -> dict[tuple[str, ...], list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for r in rows:
        groups[key(r)].append(r)
    return dict(sorted(groups.items()))


def _known(values: Iterable[float | None]) -> list[float]:
    return [v for v in values if v is not None and math.isfinite(v)]


def _log(values: Iterable[float | None]) -> list[float]:
    return [math.log(v) for v in values if v is not None and math.isfinite(v) and v > 0]


def _ratio_cells(rows: list[Row], budgets: Budgets, implementation: str) -> list[Cell]:
    """Per dtype, tensor and regime: is the kernel's RMS error no more than standard attention's?

    A cell fails when the ratio is surely beyond the margin, and the kernel's error is also surely beyond what any known
    arrangement's roundings predict: where standard attention is lucky, being as good as flash should be is no fault.
    """
    cells = []
    for (dtype, tensor, regime), group in _groups(rows, lambda r: (str(r.dtype), str(r.tensor), str(r.regime))).items():
        ratios = mean_interval(_known(r.log_ratio for r in group), budgets.ratio.confidence)
        if ratios.n < budgets.ratio.min_cases:
            continue
        margin = budgets.allowance("ratio_margin", budgets.ratio.margin, implementation, dtype, tensor, regime)
        predicted = mean_interval(_log(r.envelope_ratio for r in group), budgets.ratio.confidence)
        excused = predicted.n >= budgets.ratio.min_cases and predicted.low <= math.log(budgets.ratio.margin)
        worse = ratios.low > math.log(margin)
        status = "fail" if worse and not excused else "predicted" if worse else "pass"
        if tensor == "lse" and worse:  # its yardstick is the bound: standard's own LSE has fp32 accuracy at times
            status = "predicted"
        cells.append(
            Cell(
                dtype=dtype, tensor=next(t for t in TENSORS if t == tensor), mask="all", regime=regime, n=ratios.n,
                ratio=math.exp(ratios.mean), low=math.exp(max(-700.0, ratios.low)),
                high=math.exp(min(700.0, ratios.high)), allowed=margin, status=status,
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
        checks.append(_check("ratio", tensor, bool(bad), sum(c.n for c in own), detail))
    return checks


def _predictor_checks(rows: list[Row], budgets: Budgets, implementation: str) -> list[Check]:
    """Per dtype and tensor: is the RMS error what the roundings of a known arrangement predict?"""
    checks = []
    for tensor in _WITH_PREDICTION:
        worst, failed, n = None, False, 0
        for (dtype, regime), group in _groups(
            (r for r in rows if r.tensor == tensor), lambda r: (str(r.dtype), str(r.regime))
        ).items():
            found = mean_interval(_log(r.envelope_ratio for r in group), budgets.ratio.confidence)
            if found.n < budgets.ratio.min_cases:
                continue
            margin = budgets.allowance(
                "predictor_margin", budgets.predictor.margin, implementation, dtype, tensor, regime
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
        checks.append(_check("predictor", tensor, failed, n, detail))
    return checks


def _bias_checks(rows: list[Row], budgets: Budgets, implementation: str) -> list[Check]:
    """Per dtype and tensor: is the mean signed error that of rounding to nearest?"""
    checks = []
    for tensor in _WITH_PREDICTION:
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
            details.append(f"{dtype} {found.mean:+.3f} ulp (t = {found.t:.1f}, n = {found.n})")
        checks.append(_check("bias", tensor, failed, n, "; ".join(details) or "not measured"))
    return checks


# -- the verdict -------------------------------------------------------------------------------------------------------


def verdict_of(
    judgement: Judgement,
    findings: Sequence[Finding],
    implementation: str,
    budgets: Budgets,
    rows: Sequence[Row],
    seconds: float,
) -> Verdict:
    """The verdict, with the three answers and the sentence."""
    measured = judgement.counts.survey + judgement.counts.hunt
    state: State
    if judgement.failed:
        state = "fail"
    elif measured < budgets.coverage.min_cases:
        state = "nothing-measured"
    else:
        state = "pass"
    exactness = Exactness(
        algebraic=Answer(
            status="not yet measured", evidence="The kernel's source has not been run in exact arithmetic."
        ),
        bitwise=_bitwise(judgement, rows),
        accuracy=_accuracy(judgement, state),
    )
    return Verdict(
        implementation=implementation, verdict=state, sentence=_sentence(judgement, implementation, state, exactness),
        exactness=exactness, checks=judgement.checks, findings=tuple(findings), cells=judgement.cells,
        not_covered=judgement.not_covered, counts=judgement.counts, seconds=round(seconds, 2),
    )  # fmt: skip


def _of(judgement: Judgement, name: str) -> list[Check]:
    return [c for c in judgement.checks if c.name == name and c.status != "skipped"]


def _bitwise(judgement: Judgement, rows: Sequence[Row]) -> Answer:
    repeat, batch = _of(judgement, "repeat"), _of(judgement, "batch-invariance")
    shares = _known(r.bitwise_standard for r in rows if r.tensor == "out" and r.phase == "survey" and r.elements)
    if not repeat:
        return Answer(status="not measured", evidence="No case gave a result.")
    stable = all(c.status == "pass" for c in repeat)
    differing = [c for c in batch if not c.detail.startswith("0 of")]
    parts = [f"run to run the same bits in all {repeat[0].n} cases" if stable else "not the same bits run to run"]
    if batch:
        parts.append(
            f"batch elements change with their company in {', '.join(f'{c.tensor} ({c.detail})' for c in differing)}"
            if differing else f"batch elements do not depend on their company ({batch[0].n} cases)"
        )  # fmt: skip
    stable = stable and bool(shares)
    if shares:
        identical = sum(s == 1.0 for s in shares)
        parts.append(f"{sum(shares) / len(shares):.0%} of the output's elements have standard attention's bits, "
                     f"all of them in {identical} of {len(shares)} cases")  # fmt: skip
        stable = stable and identical == len(shares)
    return Answer(status="same bits" if stable and not differing else "different bits", evidence="; ".join(parts) + ".")


def _accuracy(judgement: Judgement, state: str) -> Answer:
    bounds = _of(judgement, "bound")
    if not bounds or state == "nothing-measured":
        return Answer(status="not measured", evidence="No case gave a result.")
    names = ("returns", "finite", "bound", "written", "inputs-unchanged", "ratio", "predictor", "bias")
    failed = [c for name in names for c in _of(judgement, name) if c.status == "fail"]
    cells = [c for c in judgement.cells if c.tensor != "lse" and c.ratio]
    parts = []
    if cells:
        best, worst = min(cells, key=lambda c: c.ratio or 0), max(cells, key=lambda c: c.ratio or 0)
        parts.append(
            f"RMS error / standard attention's from {best.ratio:.2f} ({best.tensor}, {best.dtype}, {best.regime}) "
            f"to {worst.ratio:.2f} ({worst.tensor}, {worst.dtype}, {worst.regime}) over {len(cells)} cells"
        )
    parts.append("; ".join(f"{c.name} fails for {c.tensor or 'the call'}: {c.detail}" for c in failed[:3])
                 or f"every element within its a priori bound in {max(c.n for c in bounds)} cases")  # fmt: skip
    return Answer(status="fail" if failed else "pass" if state == "pass" else state, evidence="; ".join(parts) + ".")


def _sentence(judgement: Judgement, implementation: str, state: str, exactness: Exactness) -> str:
    cases = judgement.counts.survey + judgement.counts.hunt
    if state == "nothing-measured":
        return f"{implementation}: nothing was measured that could be judged ({cases} cases gave a result)."
    refused = sum(line.startswith("refused") for line in judgement.not_covered)
    but = " It refused other cases: see what is not covered." if refused else ""
    if state == "fail":
        tensors: dict[str, list[str]] = defaultdict(list)
        for c in judgement.failed:
            tensors[c.name].append(c.tensor or "the call")
        which = ", ".join(f"{name} ({', '.join(t)})" for name, t in tensors.items())
        return f"{implementation} fails: {which}, over {cases} cases.{but}"
    claims = ["every error within its a priori bound"]
    if _of(judgement, "bias"):
        claims.append("no bias")
    cells = [c for c in judgement.cells if c.tensor != "lse"]
    worse = [c for c in cells if (c.low or 0) > 1.0]
    if worse:
        claims.append(f"worse than standard attention in {len(worse)} of {len(cells)} cells, as its roundings predict")
    elif cells:
        claims.append(f"in none of {len(cells)} cells measurably less accurate than standard attention")
    bits = "equals" if exactness.bitwise.status == "same bits" else "differs from"
    return (
        f"{implementation} is as accurate as attention can be expected to be in {cases} cases: {', '.join(claims)}; "
        f"bit for bit it {bits} standard attention.{but}"
    )
