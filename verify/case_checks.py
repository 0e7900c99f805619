"""The checks that single cases answer, over all rows of a run: one failure is enough."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from ..reports.record import TENSORS, Check, Row
from ..reports.record import Tensor as TensorName
from .budgets import Budgets
from .statistics import rule_of_three
from .traits import in_common
from .waivers import Waivers

_FORWARD: tuple[TensorName, ...] = ("out", "lse")
_PER_TENSOR = ("finite", "bound", "repeat", "memory", "kept", "invariance", "batch-invariance")
_ONLY_SURVEYED = ("repeat", "memory", "kept", "invariance", "inference")


def case_checks(rows: Sequence[Row], budgets: Budgets, implementation: str, waivers: Waivers) -> list[Check]:
    """All of them; what a waiver covers fails none."""
    checks = []
    tried = {r.case_id for r in rows if r.status != "unsupported"}
    lost = [r for r in rows if r.status not in ("ok", "unsupported")]
    without = {r.case_id for r in lost}
    statuses = Counter(r.status for r in rows if r.case_id in without)
    detail = ", ".join(f"{n} {s}" for s, n in statuses.items()) or none_in(len(tried), _surveyed(rows))
    one_each = list({r.case_id: r for r in rows if r.status != "unsupported"}.values())
    checks.append(_judged("returns", None, lost, len(tried), detail + in_common(lost, one_each), waivers))
    by_tensor: dict[str, list[Row]] = defaultdict(list)
    for r in rows:
        if r.tensor is not None:
            by_tensor[r.tensor].append(r)
    checks += [
        _tensor_check(name, t, by_tensor[t], budgets, implementation, waivers) for name in _PER_TENSOR for t in TENSORS
    ]
    checks += [
        _tensor_check("inference", tensor, by_tensor[tensor], budgets, implementation, waivers) for tensor in _FORWARD
    ]
    outs = by_tensor["out"]
    changed = [r for r in outs if "inputs-unchanged" in failed_in(r)]
    checks.append(_judged("inputs-unchanged", None, changed, len(outs), _some_in(changed, outs), waivers))
    return checks


def _tensor_check(
    name: str, tensor: TensorName, rows: list[Row], budgets: Budgets, implementation: str, waivers: Waivers
) -> Check:  # fmt: skip
    asked = rows
    if name in _ONLY_SURVEYED:
        asked = [r for r in rows if r.phase == "survey"]
    elif name == "batch-invariance":
        asked = [r for r in rows if r.phase == "survey" and (r.B or 0) > 1]
    if not asked:
        return Check(name=name, status="skipped", tensor=tensor, detail="not measured")
    if name == "bound":
        worst = max(asked, key=lambda r: r.bound_ratio or 0.0)
        limits = [_allowed_bound(r, budgets, implementation) for r in asked]
        over = [r for r, limit in zip(asked, limits, strict=True) if (r.bound_ratio or 0.0) > limit]
        limit = min(limits)
        bound = "it" if limit == 1 else f"{limit:g} times it"
        beyond = f"beyond {bound} in {len(over)} of {len(asked)} cases{in_common(over, asked)}"
        detail = f"largest error / bound {worst.bound_ratio or 0.0:.3g}; {beyond}"
        return _judged(name, tensor, over, len(asked), detail, waivers)
    hit = [r for r in asked if name in failed_in(r)]
    detail = _some_in(hit, asked)
    policy = {"repeat": budgets.invariance.repeat, "batch-invariance": budgets.invariance.batch}.get(name)
    judged = [] if policy == "report" else hit
    detail += "; reported, not judged" if hit and not judged else ""
    return _judged(name, tensor, judged, len(asked), detail, waivers)


def _judged(
    name: str, tensor: TensorName | None, failed: Sequence[Row], n: int, detail: str, waivers: Waivers
) -> Check:  # fmt: skip
    """Failed, unless waivers cover every row that fails."""
    left, said = waivers.uncovered(name, failed)
    detail += said
    if failed and not left:
        return Check(name=name, status="waived", tensor=tensor, n=n, detail=detail)
    return check(name, tensor, bool(left), n, detail)


def _allowed_bound(r: Row, budgets: Budgets, implementation: str) -> float:
    """Error / bound that a row may show."""
    if not budgets.exceptions:
        return budgets.bound.max_ratio
    at = (implementation, str(r.dtype), str(r.tensor), r.regime)
    return budgets.allowance("bound_max_ratio", budgets.bound.max_ratio, *at)


def failed_in(row: Row) -> list[str]:
    """The names of the checks that failed for a row."""
    return (row.failed or "").split(",")


def check(name: str, tensor: TensorName | None, failed: bool, n: int, detail: str) -> Check:
    """A check of n cases; of none, it is skipped."""
    return Check(
        name=name, status="skipped" if n == 0 else "fail" if failed else "pass", tensor=tensor, n=n, detail=detail
    )


def none_in(n: int, surveyed: int) -> str:
    """No failure in n cases, in words; only the independent ones, which were surveyed, say how probable one is."""
    if not n:
        return "no cases"
    rare = f"; probability in the survey below {rule_of_three(surveyed):.2g} at 95 %" if surveyed else ""
    return f"0 of {n} cases{rare}"


def _surveyed(rows: Sequence[Row]) -> int:
    return len({r.case_id for r in rows if r.phase == "survey" and r.status != "unsupported"})


def _some_in(hit: Sequence[Row], asked: Sequence[Row]) -> str:
    if not hit:
        return none_in(len(asked), _surveyed(asked))
    return f"{len(hit)} of {len(asked)} cases{in_common(hit, asked)}"
