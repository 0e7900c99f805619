"""Findings: a failed check with its smallest case, a replay line, and a script that needs only the implementation.

Which failures deserve a finding of their own: one per check and tensor, those first that failed in other cases than
the ones before them, and a gradient only where the forward pass of the same case is sound (else it repeats the
forward's finding).
"""

from __future__ import annotations

import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from ..reports.record import TENSORS, Finding, Row, write_json_atomic
from ..reports.record import Check as JudgedCheck
from .budgets import Budgets
from .case import Case, case_of, parse_case
from .check import Check
from .evaluate import Result
from .expected import MODERATE
from .gates import STATISTICAL
from .implementation import Implementation
from .judge import Judgement
from .plain import is_plain
from .pool import Pool
from .regimes import REGIMES
from .script import script_of
from .settings import Progress, Settings
from .shrink import shrink
from .traits import where
from .waivers import Waivers

_ORDER = (
    "returns",
    "finite",
    "bound",
    "inputs-unchanged",
    "memory",
    "repeat",
    "kept",
    "inference",
    "invariance",
    "bias",
    "systematic",
    "predictor",
    "ratio",
)
_TENSORS = (None, *TENSORS)
_SHRINK_SECONDS = 25.0
_ALL = 100  # relations of a case to others
_LOST_SECONDS = 10.0  # for kernels that hang or die: every try costs a process


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A failed check and the case to start from: what was `seen` of it, or the survey's `row` for a distribution's."""

    check: str
    tensor: str | None
    case: Case
    row: Row | None = None
    seen: Check | None = None
    cases: frozenset[Case] = frozenset()  # all in which it failed

    @property
    def options(self) -> dict[str, Any]:
        """How its cases are to be evaluated, so that the failure can show."""
        return {"statistical": self.row is not None, "relations": _ALL if self.check == "invariance" else 1}

    def is_shown_by(self, check: Check) -> bool:
        """Whether a smaller case that fails so shows the same fault."""
        return check.tensor == self.tensor and (check.name == self.check or check.name not in STATISTICAL)


def findings_of(
    judgement: Judgement, results: Sequence[Result], pool: Pool, settings: Settings, progress: Progress
) -> list[Finding]:
    """The findings of a failed run, shrunk."""
    suspects = _case_suspects(results, Waivers(settings.budgets.waivers, settings.spec, date.today()))
    shown = {s.tensor for s in suspects}
    of_survey = _survey_suspects(judgement, results, settings.budgets)
    suspects += [s for s in of_survey if s.tensor not in shown and (s.tensor == "out" or not shown)]
    chosen = _most_telling(suspects, settings.profile.max_findings)
    found: list[Finding] = []
    of_many: list[Finding] = []  # that no single case shows
    for n, suspect in enumerate(chosen, start=1):
        finding, by_itself = _shrunk(suspect, pool, settings, judgement.failed)
        known = {(f.check, f.tensor) for f in (found if by_itself else [*found, *of_many])}
        if (finding.check, finding.tensor) not in known:
            (found if by_itself else of_many).append(finding)
        progress("shrink", n, len(chosen))
    return found or of_many  # their checks are in the verdict all the same


def _most_telling(suspects: list[_Suspect], limit: int) -> list[_Suspect]:
    """The gravest, then whichever failed in most cases in which none before it did: most likely another fault.

    Where no more such cases are left, one per tensor first.
    """
    left = sorted(suspects, key=lambda s: (_ORDER.index(s.check), _TENSORS.index(s.tensor)))
    chosen: list[_Suspect] = []
    told: set[Case] = set()
    while left and len(chosen) < limit:
        tensors = {s.tensor for s in chosen}
        best = max(left, key=lambda s: (len(s.cases - told), s.tensor not in tensors)) if chosen else left[0]
        left.remove(best)
        chosen.append(best)
        told |= best.cases
    return chosen


def _size(case: Case) -> int:
    return case.B * case.H * (case.M + 1) * (case.N + 1) * case.D


def _case_suspects(results: Sequence[Result], waivers: Waivers) -> list[_Suspect]:
    best: dict[tuple[str, str | None], tuple[Case, Check]] = {}
    cases: dict[tuple[str, str | None], set[Case]] = defaultdict(set)
    for r in results:
        forward_failed = any(c.tensor in ("out", "lse") for c in r.failed)
        for c in r.failed:
            if c.name == "batch-invariance" or (forward_failed and c.tensor in ("dq", "dk", "dv")):
                continue
            if any(waivers.covers(c.name, row) for row in r.rows if c.tensor in (None, row.tensor)):
                continue
            key = (c.name, c.tensor)
            cases[key].add(r.case)
            if key not in best or _size(r.case) < _size(best[key][0]):
                best[key] = r.case, c
    return [
        _Suspect(name, tensor, case, seen=check, cases=frozenset(cases[name, tensor]))
        for (name, tensor), (case, check) in best.items()
    ]


def _survey_suspects(judgement: Judgement, results: Sequence[Result], budgets: Budgets) -> list[_Suspect]:
    """For a check that only a distribution fails: the case that shows it most.  One check per tensor will do."""
    suspects = []
    named: set[str | None] = set()
    for check in sorted(judgement.failed, key=lambda c: _ORDER.index(c.name) if c.name in _ORDER else 0):
        if check.name not in STATISTICAL or check.tensor in named:
            continue
        named.add(check.tensor)
        rows = [row for r in results if r.status == "ok" for row in r.rows
                if row.tensor == check.tensor and row.phase == "survey" and (row.elements or 0) >= 64
                and row.regime in REGIMES and REGIMES[row.regime].independent]  # fmt: skip
        if check.name == "bias":
            rows = [r for r in rows if r.kernel_bias is not None and r.rounded_bias is not None]
            rows.sort(key=lambda r: -abs((r.kernel_bias or 0) - (r.rounded_bias or 0)) * (r.elements or 0) ** 0.5)
        elif check.name == "systematic":
            rows = [r for r in rows if (r.max_logit or 0.0) <= MODERATE]
            rows.sort(key=lambda r: -abs(r.slope or 0.0) * (r.elements or 0) ** 0.5)
        else:
            rows.sort(key=lambda r: -(r.envelope_ratio or 0.0))
            # few elements may lie far off by chance: where plain cases show it too, they are the better evidence
            rows = [r for r in rows if is_plain(r) and (r.envelope_ratio or 0.0) > budgets.predictor.margin] or rows
        if rows and rows[0].case_json:
            suspects.append(_Suspect(check.name, check.tensor, parse_case(rows[0].case_json), rows[0]))
    return suspects


def _shrunk(
    suspect: _Suspect, pool: Pool, settings: Settings, failed: Sequence[JudgedCheck]
) -> tuple[Finding, bool]:  # fmt: skip
    """The finding, and whether its case shows it."""
    first = pool.one(suspect.case, "hunt", **suspect.options)
    deadline = time.monotonic() + (_LOST_SECONDS if first.lost else _SHRINK_SECONDS)
    # a GPU that many processes break at once may not recover
    at_once = 1 if first.lost and settings.device == "cuda" else 2 * pool.workers
    case, steps, minimal = suspect.case, 0, False
    shown = bool(_shows(first, suspect))
    if shown and first.status != "timeout":

        def failing(candidates: Sequence[Case], shows: Callable[[Check], bool]) -> int | None:
            for start in range(0, len(candidates), at_once):
                if first.lost and time.monotonic() > deadline:
                    return None  # `shrink` sees that it was too late
                batch = candidates[start : start + at_once]
                results = list(pool.evaluate(batch, "hunt", **suspect.options))  # to cancel one would end its worker
                found = next((i for i, r in enumerate(results) if any(shows(c) for c in _serious(r))), None)
                if found is not None:
                    return start + found
            return None

        def alike(c: Check) -> bool:  # a function that raises on an empty sequence has not shown why it is wrong
            return (c.name == "returns") == (suspect.check == "returns")

        # first toward this tensor's own failure; then nothing smaller may fail in any such way
        case, steps, minimal = shrink(case, lambda c: failing(c, suspect.is_shown_by), deadline=deadline)
        if minimal and suspect.row is None:  # among many small cases, some distribution looks odd by chance
            case, more, minimal = shrink(case, lambda c: failing(c, alike), deadline=deadline + _LOST_SECONDS)
            steps += more
    last = first if case == suspect.case else pool.one(case, "hunt", **suspect.options)
    check = _representative(last, suspect)
    why = "each try costs the whole limit" if first.status == "timeout" else "the time for shrinking ran out"
    detail = check.detail if minimal or not shown else f"{check.detail} ({why}: not proven minimal)"
    detail += next((where(c.detail) for c in failed if (c.name, c.tensor) == (suspect.check, suspect.tensor)), "")
    finding = Finding(
        check=check.name, tensor=check.tensor, case=case.to_dict(), replay=replay_line(case, settings.spec),  # type: ignore[arg-type]
        observed=check.observed, allowed=check.allowed, detail=detail, original_case=suspect.case.to_dict(),
        shrink_steps=steps,
    )  # fmt: skip
    return finding, suspect.row is None or bool(_shows(last, suspect))


def _shows(result: Result, suspect: _Suspect) -> list[Check]:
    """The failed checks that may stand for the suspect, its own first; for a distribution's nothing else may."""
    failed = sorted(_serious(result), key=lambda c: (_ORDER.index(c.name), _TENSORS.index(c.tensor)))
    own = [c for c in failed if suspect.is_shown_by(c)]
    return own or ([] if suspect.row is not None else failed)


def _serious(result: Result) -> list[Check]:
    return [c for c in result.failed if c.name != "batch-invariance"]


def _representative(result: Result, suspect: _Suspect) -> Check:
    """The failed check that names the finding: the suspect's own if it still fails, else the most telling one."""
    if shown := _shows(result, suspect):
        return shown[0]
    if suspect.seen is not None:
        return replace(suspect.seen, detail=f"{suspect.seen.detail}; not seen again when the case was repeated")
    row = suspect.row
    observed = 0.0 if row is None else abs((row.kernel_bias or 0.0) - (row.rounded_bias or 0.0))
    if row is not None and suspect.check != "bias":
        observed = row.envelope_ratio or 0.0
    detail = "shown by the distribution over the survey's cases; this one adds most, but does not show it alone"
    return Check(suspect.check, suspect.tensor, False, observed, 0.0 if suspect.check == "bias" else 1.0, detail)


def replay_line(case: Case, spec: str) -> str:
    """The command that shows this case again."""
    return f"flashproof replay {shlex.quote(case.to_json())} {shlex.quote(spec)}"


def write_finding(
    folder: Path, number: int, finding: Finding, implementation: Implementation, *, stores_scores: bool, device: str
) -> None:  # fmt: skip
    """`NNN.json` and its standalone script `NNN.py`; what only the interpreter can show has no script."""
    folder.mkdir(exist_ok=True)
    write_json_atomic(folder / f"{number:03d}.json", finding)
    if (
        finding.check in ("algebra", "accumulators", "invariance") or "ConflictError" in finding.detail
    ):  # nothing else has the means to show them
        return
    case = case_of(finding.case)
    text = script_of(finding, case, implementation, stores_scores=stores_scores, device=device)
    (folder / f"{number:03d}.py").write_text(text)
