"""From a judgement to a verdict: pass, fail or nothing measured, the three answers, and the sentence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from ..reports.record import Algebra, Answer, Check, Exactness, Finding, Row, Verdict
from ..reports.words import plural
from .algebra import answer as algebraic_answer
from .algebra import sentence
from .budgets import Budgets, beyond_default
from .judge import Judgement, known

State = Literal["pass", "fail", "nothing-measured"]
_VERBS = {"fail": "fails", "waived": "fails, waived,"}


def verdict_of(
    judgement: Judgement,
    findings: Sequence[Finding],
    implementation: str,
    budgets: Budgets,
    rows: Sequence[Row],
    seconds: float,
    algebra: Algebra | None = None,
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
        algebraic=algebraic_answer(algebra),
        bitwise=_bitwise(judgement, rows),
        accuracy=_accuracy(judgement, state),
    )
    return Verdict(
        implementation=implementation, verdict=state, sentence=_sentence(judgement, implementation, state, exactness),
        exactness=exactness, checks=judgement.checks, findings=tuple(findings), cells=judgement.cells,
        not_covered=judgement.not_covered, waived=judgement.waived, counts=judgement.counts, algebra=algebra,
        allowed=beyond_default(budgets, implementation),
        seconds=round(seconds, 2),
    )  # fmt: skip


def _of(judgement: Judgement, name: str) -> list[Check]:
    return [c for c in judgement.checks if c.name == name and c.status != "skipped"]


def _bitwise(judgement: Judgement, rows: Sequence[Row]) -> Answer:
    repeat, batch = _of(judgement, "repeat"), _of(judgement, "batch-invariance")
    shares = known(r.bitwise_standard for r in rows if r.tensor == "out" and r.phase == "survey" and r.elements)
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
    return Answer(status="same bits" if stable and not differing else "different bits", evidence=sentence(parts))


def _accuracy(judgement: Judgement, state: str) -> Answer:
    bounds = _of(judgement, "bound")
    if not bounds or state == "nothing-measured":
        return Answer(status="not measured", evidence="No case gave a result.")
    names = (
        "returns",
        "finite",
        "bound",
        "memory",
        "kept",
        "inputs-unchanged",
        "ratio",
        "predictor",
        "bias",
        "systematic",
        "accumulators",
    )
    asked = [c for name in names for c in _of(judgement, name)]
    failed, waived = ([c for c in asked if c.status == status] for status in ("fail", "waived"))
    cells = [c for c in judgement.cells if c.tensor != "lse" and c.ratio]
    parts = []
    if cells:
        best, worst = min(cells, key=lambda c: c.ratio or 0), max(cells, key=lambda c: c.ratio or 0)
        parts.append(
            f"RMS error / standard attention's from {best.ratio:.2f} ({best.tensor}, {best.dtype}, {best.regime}) "
            f"to {worst.ratio:.2f} ({worst.tensor}, {worst.dtype}, {worst.regime}) over {len(cells)} cells"
        )
    said = [f"{c.name} {_VERBS[c.status]} for {c.tensor or 'the call'}: {c.detail}" for c in (*failed, *waived)[:3]]
    parts.append("; ".join(said) or f"every element within its a priori bound in {max(c.n for c in bounds)} cases")
    status = "fail" if failed else "waived" if waived else "pass" if state == "pass" else state
    return Answer(status=status, evidence=sentence(parts))


def _sentence(judgement: Judgement, implementation: str, state: str, exactness: Exactness) -> str:
    cases = judgement.counts.survey + judgement.counts.hunt
    if state == "nothing-measured":
        return f"{implementation}: nothing was measured that could be judged ({cases} cases gave a result)."
    refused = sum(line.startswith("refused") for line in judgement.not_covered)
    but = " It refused other cases: see what is not covered." if refused else ""
    if state == "fail":
        tensors: dict[str, list[str]] = defaultdict(list)
        for c in judgement.failed:
            tensors[c.name].append("expired" if c.name == "waivers" else c.tensor or "the call")
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
    algebra = {"equal": "its algebra is attention's, exactly; ", "nearly equal": "its algebra is nearly attention's; "}
    said = algebra.get(exactness.algebraic.status, "")
    needed = "; ".join(f"{w.scope} in {plural(w.cases, 'case')} until {w.expires}" for w in judgement.waived if w.cases)
    if needed:
        return f"{implementation} passes, but for what is waived: {needed}. Nothing else fails in {cases} cases.{but}"
    return (
        f"{implementation} is as accurate as attention can be expected to be in {cases} cases: {', '.join(claims)}; "
        f"{said}bit for bit it {bits} standard attention.{but}"
    )
