"""What a worker does in a selftest: a case for many kernels at once, and questions to one kernel alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import lru_cache

from ..reports.record import Algebra, Share
from .attribution import sample, sample_case, shares
from .case import Case
from .evaluate import Attempt, Result, attempt, evaluate, inputs_for, judged, without_result
from .exact import solve
from .exact_problems import problems
from .expected import Posed
from .gates import GATES
from .hunt import hunt
from .implementation import Implementation
from .loading import load
from .peers import PEERS, accepts
from .profiles import PROFILES
from .related import Again

HUNT = 16  # examples per dtype that the hunt has to find a mutant


@dataclass(frozen=True, slots=True)
class Task:
    """A case, and the kernels to try on it."""

    number: int  # of the case in the survey, from 1
    case: Case
    specs: tuple[str, ...]
    thorough: bool


@lru_cache(maxsize=512)
def _loaded(spec: str) -> Implementation:
    return load(spec)


def try_all(base: Implementation, device: str, task: Task) -> list[Result]:
    """The results of all kernels of a task, in order; each on the same tensors and against the same truth."""
    case = task.case
    posed: Posed | None = None
    results = []
    for spec in task.specs:
        implementation = _loaded(spec)
        start = time.perf_counter()
        if (lacking := implementation.lacks(case)) is not None:
            results.append(without_result(case, "survey", "unsupported", lacking, 0.0))
            continue
        if posed is None:  # in the layout of the bundled kernel, which all of them have; none is excused for its scores
            posed = Posed.of(case, inputs_for(case, base, device), stores_scores=False)
        outcome = attempt(case, posed.inputs, implementation, "survey", start)
        if isinstance(outcome, Attempt):
            again = Again(implementation, posed.inputs, outcome.before, posed.inputs)
            outcome = judged(posed, outcome, again, "survey", start, thorough=task.thorough)
        results.append(outcome)
    return results


def solve_all(_: Implementation, device: str, task: tuple[str, bool]) -> Algebra:
    """One kernel in exact arithmetic, and where its roundings arise, as `verify --profile quick` has it.

    `quick` leaves out most problems, and a dtype.
    """
    spec, quick = task
    implementation = _loaded(spec)
    chosen = problems(implementation, 0, thorough=False)
    comparisons = tuple(solve(implementation, device, p) for p in (chosen[::6] if quick else chosen))
    found: list[Share] = []
    if any(c.status == "equal" for c in comparisons):
        for dtype in PROFILES["quick"].dtypes[: 1 if quick else None]:
            found += shares(dtype, [sample(implementation, device, sample_case(implementation, dtype, 0))])
    return Algebra(comparisons=comparisons, shares=tuple(found))


def accepted_by(_: Implementation, device: str, spec: str) -> tuple[str, ...]:
    """The peers whose own test would let a kernel pass."""
    del device  # their problems are small enough for the interpreter
    return tuple(name for name, peer in PEERS.items() if accepts(peer, _loaded(spec)).accepted)


def hunted(_: Implementation, device: str, spec: str) -> int | None:
    """After how many examples of the hunt a kernel fails a case; None if it never does."""
    implementation, seen = _loaded(spec), 0

    class FoundError(Exception):
        """Ends the hunt."""

    def measured(case: Case) -> Result:
        nonlocal seen
        seen += 1
        result = evaluate(case, implementation, "hunt", device=device, thorough=False)
        if any(c.name in GATES for c in result.failed):
            raise FoundError
        return result

    profile = replace(PROFILES["quick"], hunt=HUNT)
    for dtype in profile.dtypes:
        try:
            hunt(implementation, profile, dtype, 0, measured)
        except FoundError:
            return seen
    return None
