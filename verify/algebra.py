"""From runs in exact arithmetic to the first of the three answers: is the kernel's algebra attention's?

The answer has zero tolerance.  The gate has not: a kernel that adds 1e-9 to a denominator is not attention, but no
format can tell.  It fails the kernel whose algebra is off by more than `exact.NEGLIGIBLE`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ..reports.record import TENSORS, Algebra, Answer, Check, Comparison, Finding, Mismatch, Share
from ..reports.record import Tensor as TensorName
from .attribution import REST
from .budgets import Budgets
from .case import Case, case_of
from .exact import NEGLIGIBLE


def answer(algebra: Algebra | None) -> Answer:
    """The algebraic answer: equal, nearly equal, different, or not available."""
    if algebra is None:
        return Answer(status="not measured", evidence="The kernel's source was not run in exact arithmetic.")
    asked = [c for c in algebra.comparisons if c.status in ("equal", "different")]
    different = [c for c in asked if c.status == "different"]
    if not asked:
        why = next((c.detail for c in algebra.comparisons if c.detail), "it took none of the problems")
        return Answer(
            status="not available", evidence=f"Its source cannot be run in exact arithmetic: {why.rstrip('.')}."
        )
    rational = [c for c in asked if not c.digits]
    elements = sum(c.elements for c in rational)
    if not different:
        parts = []
        if rational:
            parts.append(f"all {elements:,} elements of {len(rational)} problems in rationals equal the definition's")
        parts += [_digits(c) for c in asked if c.digits][:1]
        parts += _left_out(algebra)
        return Answer(status="equal", evidence=sentence(parts))
    small = all(_deviation(c) <= NEGLIGIBLE for c in different)
    parts = [f"{_some(len(different), len(asked))} from the definition", *_worst(different)]
    if small:
        parts.append(f"by less than {NEGLIGIBLE:.1g} of the largest element, so that no half format can tell")
    return Answer(status="nearly equal" if small else "different", evidence=sentence(parts + _left_out(algebra)))


def checks(algebra: Algebra | None) -> list[Check]:
    """One check per tensor that was compared; it fails on an algebra that rounding cannot excuse."""
    if algebra is None:
        return []
    found = []
    asked = [c for c in algebra.comparisons if c.status in ("equal", "different")]
    for tensor in TENSORS:
        off = [m for c in asked for m in c.mismatches if m.tensor == tensor]
        if off:
            worst = max(off, key=lambda m: m.deviation)
            detail = f"in exact arithmetic {_share(worst)}: {worst.where}"
            found.append(_check("algebra", tensor, failed=worst.deviation > NEGLIGIBLE, n=len(asked), detail=detail))
    if not asked:
        return [Check(name="algebra", status="skipped", detail="not available")]
    return found or [_check("algebra", None, failed=False, n=len(asked), detail="equal to the definition")]


def _check(name: str, tensor: TensorName | None, *, failed: bool, n: int, detail: str) -> Check:
    return Check(name=name, status="fail" if failed else "pass", tensor=tensor, n=n, detail=detail)


def accumulator_checks(algebra: Algebra | None, budgets: Budgets, implementation: str) -> list[Check]:
    """Per tensor: do the accumulators of a half-precision kernel have the precision to carry its result?"""
    found = []
    for tensor in TENSORS[:1] + TENSORS[2:]:
        parts = _accumulated(algebra, tensor)
        if not parts:
            continue
        limits = {d: _limit(budgets, implementation, share) for d, share in parts.items()}
        failed = any(share.part > limits[d] for d, share in parts.items())
        worst = max(parts.values(), key=lambda share: share.part)
        detail = f"{worst.part:.1%} of its squared error arises in the accumulators ({worst.dtype}"
        detail += f", {worst.lines})" if worst.lines else ")"
        detail += f"; allowed {min(limits.values()):.0%}"
        cases = sum(s.n or 1 for s in parts.values())
        found.append(_check("accumulators", tensor, failed=failed, n=cases, detail=detail))
    return found


def _limit(budgets: Budgets, implementation: str, share: Share) -> float:
    default = budgets.accumulators.max_part
    return budgets.allowance("accumulators_max_part", default, implementation, share.dtype, share.tensor)


def _accumulated(algebra: Algebra | None, tensor: TensorName) -> dict[str, Share]:
    """By half-precision dtype: what all accumulators together contribute to a tensor's error.

    Nothing where the parts do not add up to the whole: then something other than rounding makes the error.
    """
    out: dict[str, Share] = {}
    own = [s for s in (algebra.shares if algebra is not None else ()) if s.tensor == tensor and s.dtype != "fp32"]
    additive = {s.dtype for s in own if s.site == REST and 0.5 < s.part < 1.5}
    for s in (s for s in own if s.dtype in additive):
        known = out.setdefault(s.dtype, s.model_copy(update=dict(site="accumulators", rms=0.0, part=0.0, lines="")))
        if s.site.endswith(":accumulators"):
            lines = ", ".join(x for x in (known.lines, s.lines) if x)
            rms = (known.rms**2 + s.rms**2) ** 0.5
            out[s.dtype] = known.model_copy(update=dict(part=known.part + s.part, rms=rms, lines=lines))
    return out


def findings(
    algebra: Algebra | None, spec: str, failed: Sequence[Check], case: Case, budgets: Budgets
) -> list[Finding]:
    """One for a wrong algebra, at the smallest problem that shows it, and one for accumulators, at `case`."""
    found = _wrong_algebra(algebra, spec)
    for check in [c for c in failed if c.name == "accumulators"][:1]:
        assert check.tensor is not None
        worst = max(_accumulated(algebra, check.tensor).values(), key=lambda share: share.part)
        replay = f"flashproof attribution {shlex.quote(spec)} --dtype {worst.dtype}"
        found.append(
            Finding(
                check="accumulators", tensor=check.tensor, case=case.with_(dtype=worst.dtype).to_dict(), replay=replay,
                observed=worst.part, allowed=_limit(budgets, spec, worst), detail=check.detail,
            )
        )  # fmt: skip
    return found


def _wrong_algebra(algebra: Algebra | None, spec: str) -> list[Finding]:
    """For the tensor whose algebra is furthest off: the smallest problem that shows it."""
    candidates: list[tuple[int, Comparison, Mismatch]] = []
    for c in algebra.comparisons if algebra is not None else ():
        if c.status == "different":
            size = case_of(c.case)
            candidates += [
                (size.M * size.N * size.D * size.B * size.H, c, m) for m in c.mismatches if m.deviation > NEGLIGIBLE
            ]
    first = [x for x in candidates if x[2].tensor in ("out", "lse")] or candidates
    if not first:
        return []
    _, c, m = min(first, key=lambda x: (TENSORS.index(x[2].tensor), x[0]))
    return [
        Finding(
            check="algebra", tensor=m.tensor, case=c.case, replay=replay_line(c, spec), observed=m.deviation,
            allowed=NEGLIGIBLE, detail=f"in exact arithmetic {_share(m)}: {m.where}",
        )
    ]  # fmt: skip


def replay_line(c: Comparison, spec: str) -> str:
    """The command that shows this comparison again."""
    case = case_of(c.case).to_json()
    return f"flashproof exact {shlex.quote(spec)} --case {shlex.quote(case)}"


def _some(n: int, of: int) -> str:
    return f"{n} of {of} problems {'differs' if n == 1 else 'differ'}"


def _deviation(c: Comparison) -> float:
    return max(m.deviation for m in c.mismatches)


def _share(m: Mismatch) -> str:
    return f"{m.count:,} of {m.elements:,} elements of {m.tensor} are not the definition's"


def _worst(different: Sequence[Comparison]) -> list[str]:
    mismatches = [m for c in different for m in c.mismatches]
    m = min(mismatches, key=lambda m: (TENSORS.index(m.tensor), -m.deviation))
    return [f"{m.tensor}: {m.where}"]


def _digits(c: Comparison) -> str:
    pairs = ", ".join(f"1e{round(exponent)} at {n}" if exponent > -1e6 else f"0 at {n}" for n, exponent in c.digits)
    return f"on generic inputs the largest difference falls a digit per digit: {pairs} digits"


def _left_out(algebra: Algebra) -> list[str]:
    """Per arithmetic the first reason: others tend to be the same with other numbers."""
    reasons: dict[str, str] = {}
    for c in algebra.comparisons:
        if c.status == "unavailable":
            reasons.setdefault(c.arithmetic, c.detail)
    return [f"{arithmetic} not available: {why}" for arithmetic, why in reasons.items()]


def sentence(parts: Sequence[str]) -> str:
    """The parts of an answer's evidence as one sentence."""
    text = "; ".join(parts)
    return text[0].upper() + text[1:].rstrip(".") + "."
