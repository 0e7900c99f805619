"""Matrices of marks: which check kills which mutant, and which peer accepts it; rows in groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import words
from .kills import Kill, MutantResult, SelfTest
from .tallies import asked, columns_of, compares, peer_names

_PHASES = {
    "survey": "after {} of the survey",
    "hunt": "after {} of the hunt",
    "exact": "in exact arithmetic, after {}",
    "sample": "in a sample of {}",
}


@dataclass(frozen=True, slots=True)
class Square:
    """A mark, its class, and what it says."""

    kind: str
    said: str


@dataclass(frozen=True, slots=True)
class Line:
    """A mutant's row."""

    mutant: MutantResult
    first: int | None  # case of the first detection in the survey
    later: str  # what it says where the survey did not find it
    squares: list[Square | None]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Groups of rows; per column its name, a total, and a part of it."""

    columns: list[str]
    groups: list[tuple[str, list[Line]]]
    totals: list[int]
    parts: list[int]
    left_out: int


def kill_matrix(selftest: SelfTest, limit: int) -> Matrix:
    """Mutants by checks, those first that fewest checks kill; so many rows."""
    columns = columns_of(selftest)
    alone = {c: [m.name for m in selftest.mutants if m.killers() == {c}] for c in columns}

    def rank(m: MutantResult) -> tuple[int, list[bool]]:
        n = len(m.killers())
        group = min(n, 1) if selftest.quick else next(i for i, most in enumerate((0, 1, 3, n)) if n <= most)
        return group, [c not in m.killers() for c in columns]

    killed = (
        ("Killed",) if selftest.quick else ("One check alone kills these", "Two or three checks do", "Four or more do")
    )
    titles = ("No check kills these", *killed)
    ranked = sorted(selftest.mutants, key=rank)
    return Matrix(
        columns=columns,
        groups=_grouped([(titles[rank(m)[0]], _kill_line(m, columns, quick=selftest.quick)) for m in ranked[:limit]]),
        totals=[sum(c in m.killers() for m in selftest.mutants) for c in columns],
        parts=[len(alone[c]) for c in columns],
        left_out=max(0, len(ranked) - limit),
    )


def _kill_line(m: MutantResult, columns: Sequence[str], *, quick: bool) -> Line:
    kind = "only" if not quick and len(m.killers()) == 1 else "kill"
    squares = [Square(kind, _told(m, c)) if c in m.killers() else None for c in columns]
    others = [p for p in ("exact", "sample", "hunt") if any(k.phase == p for k in m.kills)]
    return Line(m, m.first("survey"), others[0] if others else "", squares)


def _told(m: MutantResult, check: str) -> str:
    return f"{check}: " + "; ".join(_when(k) for k in m.kills if k.check == check)


def _when(kill: Kill) -> str:
    found = _PHASES[kill.phase].format(words.plural(kill.cases, "problem" if kill.phase == "exact" else "case"))
    return found + (f" ({', '.join(kill.tensors)})" if kill.tensors else "")


def _grouped(lines: Sequence[tuple[str, Line]]) -> list[tuple[str, list[Line]]]:
    found: dict[str, list[Line]] = {}
    for title, line in lines:
        found.setdefault(title, []).append(line)
    return list(found.items())


def missed_matrix(selftest: SelfTest, limit: int) -> Matrix | None:
    """Mutants by peers, those first that most peers accept; None where no peer was asked."""
    if not asked(selftest):
        return None
    names = peer_names(selftest)

    def title(m: MutantResult) -> str:
        n = len(m.accepted_by or ())
        if not n:
            return "Every peer rejects these"
        if n == len(names):
            return "Every peer accepts these"
        return "At least half of the peers accept these" if 2 * n >= len(names) else "Fewer than half accept these"

    def key(m: MutantResult) -> tuple[int, list[bool]]:
        return -len(m.accepted_by or ()), [p not in (m.accepted_by or ()) for p in names]

    ranked = sorted(selftest.mutants, key=key)
    lines = []
    for m in ranked[:limit]:
        ours = None if m.kills else Square("missed", "")
        peers = [_missed(selftest, m, p) if p in (m.accepted_by or ()) else None for p in names]
        lines.append((title(m), Line(m, None, "", [ours, *peers])))
    accepted = [[m for m in selftest.mutants if p in (m.accepted_by or ())] for p in names]
    return Matrix(
        columns=["flashproof", *names],
        groups=_grouped(lines),
        totals=[len(selftest.survivors()), *map(len, accepted)],
        parts=[
            sum(m.subtle for m in selftest.survivors()),
            *(sum(m.subtle for m in found) for found in accepted),
        ],
        left_out=max(0, len(ranked) - limit),
    )


def _missed(selftest: SelfTest, m: MutantResult, peer: str) -> Square:
    if compares(selftest, peer, m):
        return Square("missed", "")
    return Square("unseen", f"{peer} does not compare {', '.join(m.tensors)}")
