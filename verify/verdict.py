"""From a judgement to a verdict: pass, fail or nothing measured, the three answers, and the sentence."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from ..reports.intervals import share_interval
from ..reports.record import IN_DTYPE, Algebra, Answer, Check, Exactness, Finding, Row, Standing, Tensor, Verdict
from ..reports.words import in_scale, number, plural
from .algebra import answer as algebraic_answer
from .algebra import sentence
from .budgets import Budgets, beyond_default
from .comparison import WHY, WORSE, standings
from .errors import NEGLIGIBLE
from .judge import Judgement, known
from .statistics import dominates, rule_of_three

State = Literal["pass", "fail", "nothing-measured"]
_NAMED = 4
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
    counts, places = judgement.counts, standings(rows)
    # where there is no query or no key there is nothing to get wrong: such a case alone is no measurement
    measured = len({r.case_id for r in rows if r.status == "ok" and r.M != 0 and r.N != 0})
    state: State
    if judgement.failed:
        state = "fail"
    elif measured < budgets.coverage.min_cases:
        state = "nothing-measured"
    else:
        state = "pass"
    gave = f"{plural(measured, 'case')} with queries and keys gave a result"
    too_few = sentence([f"{gave}, and a verdict takes {budgets.coverage.min_cases}"])
    exactness = Exactness(
        algebraic=algebraic_answer(algebra),
        bitwise=_bitwise(judgement, rows),
        accuracy=_accuracy(judgement, places, rows, state, too_few),
    )
    return Verdict(
        implementation=implementation, verdict=state,
        sentence=f"{implementation}: nothing was judged. {too_few}" if state == "nothing-measured" else
        _sentence(judgement, places, implementation, state, exactness, budgets.bias.max_ulp, measured),
        exactness=exactness,
        checks=judgement.checks, findings=tuple(findings), cells=judgement.cells, standings=tuple(places),
        not_covered=judgement.not_covered, waived=judgement.waived, allowed=beyond_default(budgets, implementation),
        counts=counts, algebra=algebra, seconds=round(seconds, 2),
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
    rare = number(100 * rule_of_three(repeat[0].n), 2)
    parts = [
        f"run to run the same bits in all {repeat[0].n} cases (other bits in less than {rare}% at 95 %)"
        if stable else "not the same bits run to run"
    ]  # fmt: skip
    if batch:
        parts.append(
            f"batch elements change with their company in {', '.join(f'{c.tensor} ({c.detail})' for c in differing)}"
            if differing else f"batch elements do not depend on their company ({batch[0].n} cases)"
        )  # fmt: skip
    stable = stable and bool(shares)
    if shares:
        identical = sum(s == 1.0 for s in shares)
        low, high = share_interval(identical, len(shares))
        parts.append(
            f"in a case on average {sum(shares) / len(shares):.0%} of the output's elements have standard attention's "
            f"bits, all of them in {identical} of {len(shares)} cases ({low:.1%} to {high:.1%} at 95 %)"
        )
        stable = stable and identical == len(shares)
    return Answer(status="same bits" if stable and not differing else "different bits", evidence=sentence(parts))


def _accuracy(
    judgement: Judgement, places: Sequence[Standing], rows: Sequence[Row], state: str, too_few: str
) -> Answer:
    bounds = _of(judgement, "bound")
    if state == "nothing-measured" or not bounds:
        return Answer(status="not measured", evidence=too_few if bounds else "No case gave a result.")
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
    first: dict[tuple[str, str], Check] = {}  # of each check its first tensor
    for c in (*failed, *waived):
        first.setdefault((c.name, c.status), c)
    told = list(first.values())[:3]
    said = [f"{c.name} {_VERBS[c.status]} for {c.tensor or 'the call'}: {c.detail}" for c in told]
    parts = ["; ".join(said) or _within(max(c.n for c in bounds), judgement.counts.survey)]
    if cells:
        best, worst = min(cells, key=lambda c: c.ratio or 0), max(cells, key=lambda c: c.ratio or 0)
        parts.append(
            f"RMS error {best.ratio:.2f} ({best.tensor}, {best.dtype}, {best.regime}) to {worst.ratio:.2f} "
            f"({worst.tensor}, {worst.dtype}, {worst.regime}) times standard attention's in {len(cells)} cells"
        )
    parts += [*_distributions(rows), *([_compared(places)] if places else [])]
    status = "fail" if failed else "waived" if waived else "pass" if state == "pass" else state
    return Answer(status=status, evidence=sentence(parts))


def _within(cases: int, survey: int) -> str:
    rare = number(100 * rule_of_three(survey), 2) if survey else ""
    beyond = f" (beyond it in less than {rare}% of the survey's kind, at 95 %)" if survey else ""
    return f"every element within its a priori bound in {cases} cases{beyond}"


def _distributions(rows: Sequence[Row]) -> list[str]:
    """For which tensors the distribution of the survey's errors is ahead of standard attention's, and for which behind.

    Errors that are both negligible, and where neither is finite, are no difference.
    """
    said: dict[bool, list[str]] = defaultdict(list)
    for tensor in IN_DTYPE:
        own = [r for r in rows if r.phase == "survey" and r.tensor == tensor and r.natural_scale and r.status == "ok"]
        mine, usual = ([_told_apart(getattr(r, name), r) for r in own] for name in ("kernel_rms", "standard_rms"))
        if (smaller := dominates(mine, usual)) is not None:
            said[smaller].append(tensor)
    parts = []
    if said[True]:
        parts.append(f"its distribution ahead of that for {', '.join(said[True])}")
    if said[False]:
        parts.append(f"its distribution somewhere behind it for {', '.join(said[False])}")
    return parts


def _told_apart(error: float | None, row: Row) -> float:
    scaled = in_scale(error, row)
    return math.inf if scaled is None or not math.isfinite(scaled) else max(scaled, NEGLIGIBLE)


def _compared(places: Sequence[Standing]) -> str:
    """Where the error is surely more than WORSE times standard attention's, with n, intervals and the reason."""
    kinds = len({s.regime for s in places})
    said = f"on {kinds} kinds of input (n = {_span([s.n for s in places])}) "
    worse = sorted((s for s in places if s.status == "worse"), key=lambda s: -s.ratio)
    if not worse:
        said += f"nowhere surely more than {WORSE:g} times"
    for tensor, group in _by_tensor(worse).items():
        which = ", ".join(f"{s.regime} {s.ratio:.2f} [{s.low:.2f}, {s.high:.2f}] (n = {s.n})" for s in group[:_NAMED])
        more = f" and {len(group) - _NAMED} more" if len(group) > _NAMED else ""
        reason = f", {WHY[tensor]}" if tensor in WHY and all(s.predicted for s in group) else ""
        said += f"surely more than {WORSE:g} times for {tensor} on {which}{more}{reason}, "
    still = [f"{s.tensor} on {s.regime}" for s in places if s.status == "open"]
    return said.rstrip(", ") + (f"; open for {', '.join(still[:_NAMED])}" if still else "")


def _span(counts: Sequence[int]) -> str:
    return f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"


def _by_tensor(places: Sequence[Standing]) -> dict[Tensor, list[Standing]]:
    groups: dict[Tensor, list[Standing]] = defaultdict(list)
    for s in places:
        groups[s.tensor].append(s)
    return groups


def _sentence(
    judgement: Judgement, places: Sequence[Standing], implementation: str, state: str, exactness: Exactness,
    limit: float, cases: int,
) -> str:  # fmt: skip
    """No figure in a pass depends on what was drawn: the same kernel gets the same sentence, whatever the seed."""
    refused = sum(line.startswith("refused") for line in judgement.not_covered)
    but = " It refused other cases: see what is not covered." if refused else ""
    if state == "fail":
        tensors: dict[str, list[str]] = defaultdict(list)
        for c in judgement.failed:
            tensors[c.name].append("expired" if c.name == "waivers" else c.tensor or "the call")
        which = ", ".join(f"{name} ({', '.join(t)})" for name, t in tensors.items())
        return f"{implementation} fails: {which}, over {judgement.counts.cases} cases.{but}"
    claims = ["within their a priori bounds"]
    claims += [f"without bias beyond {limit:g} ulp"] if _of(judgement, "bias") else []
    claims += [f"and {_where_worse(places)}"] if places else []
    bits = "equals" if exactness.bitwise.status == "same bits" else "differs from"
    algebra = {"equal": "its algebra is attention's, exactly; ", "nearly equal": "its algebra is nearly attention's; "}
    said = algebra.get(exactness.algebraic.status, "")
    needed = "; ".join(f"{w.scope} in {plural(w.cases, 'case')} until {w.expires}" for w in judgement.waived if w.cases)
    if needed:
        return f"{implementation} passes, but for what is waived: {needed}. Nothing else fails in {cases} cases.{but}"
    return (
        f"{implementation} is as accurate as its roundings allow: its errors are {', '.join(claims)}; "
        f"{said}bit for bit it {bits} standard attention.{but}"
    )


def _where_worse(places: Sequence[Standing]) -> str:
    worse = [s for s in places if s.status == "worse"]
    if not worse:
        return f"on no kind of input surely more than {WORSE:g} times standard attention's"
    which = "; ".join(f"{tensor} on {_names(group)} inputs" for tensor, group in _by_tensor(worse).items())
    expected = ", as its roundings predict" if all(s.predicted for s in worse) else ""
    return f"surely more than {WORSE:g} times standard attention's only in {which}{expected}"


def _names(places: Sequence[Standing]) -> str:
    names = sorted(s.regime for s in places)
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more kinds of"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
