"""The judge judged: every mutant must turn the gate red, every clean kernel must leave it green.

All kernels are put to the same cases, so that truth, bounds and predictions are computed once per case.  `quick` lets
a mutant go as soon as it is found out; otherwise every kernel meets the same cases and checks, which makes the table
of which check kills which mutant: a gate that no mutant needs is one that nobody would miss.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from ..kernels.mutants import MUTANTS, VARIANTS
from ..reports.kills import CleanResult, Kill, MutantResult, PeerRule, Phase, SelfTest
from ..reports.record import Algebra, Row
from .algebra import accumulator_checks
from .algebra import checks as algebra_checks
from .attribution import attribution
from .budgets import Budgets
from .budgets import load as load_budgets
from .case import Case, MaskRecipe
from .evaluate import Attempt, Posed, Result, attempt, evaluate, judged, pose, without_result
from .exact import problems, solve
from .hunt import hunt
from .implementation import Implementation
from .judge import CASE_CHECKS, judge
from .loading import load
from .peers import PEERS, accepts
from .pool import Pool
from .problems import LostError
from .profiles import PROFILES
from .regimes import REGIMES
from .settings import Progress
from .survey import survey

THOROUGH = 24  # cases on which kernels are also run again, alone, without gradients, on twins
SAMPLE = 96  # further cases that every kernel meets, for distributions alone
LONGEST = 1000
HUNT = 16  # examples per dtype that the hunt has to find a mutant
QUICK_SHARE = 0.9  # of the mutants that a quick selftest must kill
LIMIT = 900.0  # seconds that a task may take: some hundred kernels on one case
#: checks of which one failing turns the gate red, under the default budgets
GATES = (
    *(c for c in CASE_CHECKS if c != "batch-invariance"),
    "ratio", "predictor", "bias", "systematic", "algebra", "accumulators",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Clean:
    """A kernel that is right, except where a reason is given to leave a case out."""

    spec: str
    what: str
    avoids: Callable[[Case], bool] = lambda case: False  # noqa: ARG005
    reason: str = ""


CLEAN = (
    Clean("flash", "The bundled kernel."),
    *(Clean(f"variant:{v.name}", v.what) for v in VARIANTS.values()),
    Clean("sdpa-math", "torch's SDPA, math backend."),
    Clean("sdpa-flash", "torch's SDPA, flash backend on the CPU.",
          lambda case: case.mask.causal and case.softmax_scale <= 0,
          "a causal mask with a scale of 0 or below, where torch 2.13 gives NaN"),
)  # fmt: skip


@dataclass(slots=True)
class Subject:
    """A kernel while it is being tried."""

    name: str
    spec: str
    cases: int = 0
    rows: list[Row] = field(default_factory=list)
    kills: dict[tuple[str, Phase], tuple[int, set[str]]] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)
    algebra: Algebra | None = None
    worst: float | None = None  # see `MutantResult`

    def found(self, check: str, tensor: str | None, phase: Phase, cases: int, detail: str = "") -> None:
        """A check failed; the first time counts."""
        known = self.kills.setdefault((check, phase), (cases, set()))
        known[1].add(tensor or "")
        if detail and len(self.details) < 3:
            self.details.append(f"{check} of {tensor}: {detail}" if tensor else f"{check}: {detail}")

    def first(self, phase: Phase) -> int | None:
        """After how many cases of a phase it was found out."""
        return min((n for (_, p), (n, _) in self.kills.items() if p == phase), default=None)

    def killed(self) -> tuple[Kill, ...]:
        """For the record."""
        return tuple(
            Kill(check=check, tensors=tuple(sorted(t for t in tensors if t)), phase=phase, cases=n)
            for (check, phase), (n, tensors) in sorted(self.kills.items(), key=lambda item: item[1][0])
        )


# ---------------------------------------------------------------------------------------------------------------------
# in a worker


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
        posed = pose(case, base, device, stores_scores=False) if posed is None else posed
        outcome = attempt(case, posed.inputs, implementation, "survey", start)
        if isinstance(outcome, Attempt):
            outcome = judged(posed, outcome, implementation, "survey", start, thorough=task.thorough)
        results.append(outcome)
    return results


def solve_all(_: Implementation, device: str, task: tuple[str, bool]) -> Algebra:
    """One kernel in exact arithmetic, and where its roundings arise, as `verify --profile quick` has it.

    `quick` leaves out most problems, and a dtype.
    """
    spec, quick = task
    implementation = _loaded(spec)
    chosen = problems(implementation, 0, thorough=False)
    comparisons = tuple(solve(implementation, device, p) for p in (chosen[::4] if quick else chosen))
    shares = []
    if any(c.status == "equal" for c in comparisons):
        for dtype in PROFILES["quick"].dtypes[: 1 if quick else None]:
            shares += attribution(implementation, device, dtype, 0, 1)
    return Algebra(comparisons=comparisons, shares=tuple(shares))


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


# ---------------------------------------------------------------------------------------------------------------------
# trying


@dataclass(slots=True)
class Trial:
    """All subjects on the same cases."""

    pool: Pool
    budgets: Budgets
    seed: int
    progress: Progress
    profile: str = "quick"

    def surveyed(
        self, subjects: Sequence[Subject], numbers: range, *, thorough: int, keep_killed: bool, step: int = 16
    ) -> None:  # fmt: skip
        """Put the subjects to cases of the survey, thoroughly up to a number; `keep_killed` keeps those found out.

        Every so many cases (`step`) distributions are looked at.
        """
        cases = list(survey(load("flash"), PROFILES[self.profile], self.seed, count=numbers.stop - 1))
        going = list(subjects)
        for begin in range(numbers.start, numbers.stop, step):
            if not going:
                return
            specs = tuple(s.spec for s in going)
            tasks = [Task(n, cases[n - 1], specs, n <= thorough) for n in range(begin, min(begin + step, numbers.stop))]
            for task, results in self._tried(tasks):
                for subject, result in zip(going, results, strict=True):
                    _note(subject, result, task.number)
            for subject in going:
                self._look(subject)
            if not keep_killed:
                going = [s for s in going if not s.kills]
            self.progress("survey", min(begin + step, numbers.stop) - 1, numbers.stop - 1)

    def sampled(self, subjects: Sequence[Subject], count: int) -> None:
        """Put all subjects to a sample for distributions alone: independent regimes, few shapes."""
        regimes = sorted(r.name for r in REGIMES.values() if r.independent)
        plain = (MaskRecipe(), MaskRecipe(causal=True))
        cases = [
            Case(B=1, H=2, HK=1, M=M, N=M, D=(16, 32)[n % 2], dtype=PROFILES["quick"].dtypes[n // 2 % 2],
                 regime=regimes[n // 4 % len(regimes)], seed=self.seed + n, mask=plain[n % 3 == 0])
            for n in range(count) for M in [(64, 65, 96, 33)[n // 16 % 4]]
        ]  # fmt: skip
        specs = tuple(s.spec for s in subjects)
        for s in subjects:
            s.rows.clear()
        for task, results in self._tried([Task(n, c, specs, thorough=False) for n, c in enumerate(cases, start=1)]):
            for subject, result in zip(subjects, results, strict=True):
                subject.rows += result.rows
            self.progress("sample", task.number, count)
        for subject in subjects:
            self._look(subject, "sample", count)
            subject.worst = _worst(subject.rows)

    def surveyed_clean(self, subjects: Sequence[Subject], count: int) -> None:
        """Put the clean kernels to one survey of so many cases, a quarter of them thoroughly, and judge it as one."""
        tasks = [
            Task(n, case, tuple(c.spec for c in CLEAN if not c.avoids(case)), n % 4 == 1)
            for n, case in enumerate(survey(load("flash"), PROFILES["quick"], self.seed, count=count), start=1)
        ]
        by_spec = {s.spec: s for s in subjects}
        for task, results in self._tried(tasks):
            for spec, result in zip(task.specs, results, strict=True):
                subject = by_spec[spec]
                _note(subject, result, subject.cases + (result.status != "unsupported"))
            self.progress("clean", task.number, count)
        for subject in subjects:
            self._look(subject)
            subject.rows.clear()

    def _tried(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, list[Result]]]:
        """A task that is lost is done again kernel by kernel, so that only the kernel that ends its process is lost."""
        for task, results in self.pool.calls(try_all, tasks):
            if not isinstance(results, LostError):
                yield task, results
                continue
            single = [replace(task, specs=(spec,)) for spec in task.specs]
            one_by_one = [
                without_result(task.case, "survey", "crashed", str(r), 0.0) if isinstance(r, LostError) else r[0]
                for _, r in self.pool.calls(try_all, single)
            ]
            yield task, one_by_one

    def _look(self, subject: Subject, phase: Phase = "survey", count: int | None = None) -> None:
        """What the distributions say by now."""
        number = subject.cases if count is None else count
        for check in judge(subject.rows, self.budgets, subject.spec).failed:
            subject.found(check.name, check.tensor, phase, number, check.detail)

    def solved(self, subjects: Sequence[Subject], *, quick: bool = False) -> None:
        """Put the subjects to exact arithmetic."""
        by_spec = {s.spec: s for s in subjects}
        for n, ((spec, _), algebra) in enumerate(self.pool.calls(solve_all, [(s, quick) for s in by_spec]), start=1):
            self.progress("exact", n, len(by_spec))
            if isinstance(algebra, LostError):
                continue
            subject = by_spec[spec]
            subject.algebra = algebra
            failed = [*algebra_checks(algebra), *accumulator_checks(algebra, self.budgets, spec)]
            count = next((i for i, c in enumerate(algebra.comparisons, start=1) if c.status == "different"),
                         len(algebra.comparisons))  # fmt: skip
            for check in (c for c in failed if c.status == "fail"):
                subject.found(check.name, check.tensor, "exact", count, check.detail)


def _note(subject: Subject, result: Result, number: int) -> None:
    """What a case says by itself, and its rows."""
    subject.cases = max(subject.cases, number)
    subject.rows += result.rows
    for check in result.failed:
        if check.name in GATES:
            subject.found(check.name, check.tensor, "survey", number, f"{check.detail} ({result.case})")
    if result.status not in ("ok", "unsupported"):
        subject.found("returns", None, "survey", number, str(result.rows[0].message))


# ---------------------------------------------------------------------------------------------------------------------
# results


def mutants_tried(
    pool: Pool, seed: int, progress: Progress, *, quick: bool, names: Sequence[str] = ()
) -> list[MutantResult]:
    """All mutants, or those named."""
    chosen = [MUTANTS[n] for n in names] if names else list(MUTANTS.values())
    subjects = [Subject(m.name, f"mutant:{m.name}") for m in chosen]
    trial = Trial(pool, load_budgets(), seed, progress)
    if quick:
        trial.surveyed(subjects, range(1, 17), thorough=0, keep_killed=False, step=2)
        trial.surveyed(_alive(subjects), range(1, 17), thorough=16, keep_killed=False, step=4)  # translated already
        trial.surveyed(_alive(subjects), range(17, 25), thorough=24, keep_killed=False, step=4)
        trial.sampled(_alive(subjects), SAMPLE // 2)
        trial.solved(_alive(subjects), quick=True)
    else:
        trial.surveyed(subjects, range(1, THOROUGH + 1), thorough=THOROUGH, keep_killed=True)
        trial.solved(subjects, quick=True)
        trial.surveyed(_alive(subjects), range(THOROUGH + 1, LONGEST + 1), thorough=2 * THOROUGH, keep_killed=False)
        trial.sampled(subjects, SAMPLE)
        trial = replace(trial, profile="ci")
        trial.surveyed(_alive(subjects), range(1, LONGEST + 1), thorough=2 * THOROUGH, keep_killed=False)
    return [
        MutantResult(
            name=m.name, mirrors=m.mirrors, what=m.what, tensors=m.tensors, kills=s.killed(), cases=s.cases,
            worst=s.worst,
        )
        for m, s in zip(chosen, subjects, strict=True)
    ]  # fmt: skip


def _alive(subjects: Sequence[Subject]) -> list[Subject]:
    return [s for s in subjects if not s.kills]


def peers_asked(pool: Pool, mutants: Sequence[MutantResult], progress: Progress) -> list[MutantResult]:
    """The mutants with the peers that accept them, and with when the hunt alone finds them."""
    found = []
    specs = [f"mutant:{m.name}" for m in mutants]
    asked = zip(mutants, pool.calls(accepted_by, specs), pool.calls(hunted, specs), strict=True)
    for n, (mutant, (_, names), (_, count)) in enumerate(asked, start=1):
        peers = () if isinstance(names, LostError) else names
        hunted_after = 1 if isinstance(count, LostError) else count
        found.append(mutant.model_copy(update={"accepted_by": peers, "hunted": hunted_after}))
        progress("peers", n, len(mutants))
    return found


def rules() -> list[PeerRule]:
    """The peers, in words."""
    said = (dict(name=p.name, source=p.source, differs=p.differs, tensors=tuple(p.criterion)) for p in PEERS.values())
    return [PeerRule.model_validate(rule) for rule in said]


def clean_tried(pool: Pool, seed: int, progress: Progress, *, cases: int, exact: bool) -> list[CleanResult]:
    """The clean kernels on so many cases; every failed check is an alarm."""
    subjects = [Subject(c.spec, c.spec) for c in CLEAN]
    for number, begin in enumerate(range(0, cases, PROFILES["quick"].survey)):
        trial = Trial(pool, load_budgets(), seed + number, progress)
        trial.surveyed_clean(subjects, min(PROFILES["quick"].survey, cases - begin))
    if exact:
        Trial(pool, load_budgets(), seed, progress).solved(subjects)
    return [
        CleanResult(name=c.spec, what=c.what, cases=s.cases, alarms=tuple(s.details), left_out=c.reason)
        for c, s in zip(CLEAN, subjects, strict=True)
    ]  # fmt: skip


def _worst(rows: Sequence[Row]) -> float | None:
    """Largest error / the largest of standard attention and of the rounded truth, over normal inputs of some size."""
    ratios: dict[str, float] = defaultdict(float)
    for r in rows:
        if r.regime != "normal" or r.tensor in (None, "lse") or (r.elements or 0) < 1000:
            continue
        usual = max(r.standard_max or 0.0, r.rounded_max or 0.0)
        if r.nonfinite or not usual:
            return None
        ratios[str(r.tensor)] = max(ratios[str(r.tensor)], (r.kernel_max or 0.0) / usual)
    return max(ratios.values(), default=None)


def problems_of(result: SelfTest) -> list[str]:
    """What makes a selftest fail, each in a line."""
    survivors = result.survivors()
    killed = 1 - len(survivors) / max(1, len(result.mutants))
    said = []
    if survivors and (not result.quick or killed < QUICK_SHARE):
        said.append(
            f"{len(survivors)} of {len(result.mutants)} mutants survive: {', '.join(m.name for m in survivors)}"
        )
    said += [f"{c.name} is clean and was flagged: {'; '.join(c.alarms)}" for c in result.clean if c.alarms]
    if not result.quick:
        needless = [gate for gate, names in result.alone().items() if not names]
        said += [f"no mutant needs {', '.join(needless)}: nobody would miss it"] if needless else []
    return said
