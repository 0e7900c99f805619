"""The judge judged: every mutant must turn the gate red, every clean kernel must leave it green.

`quick` lets a mutant go as soon as it is found out; otherwise every kernel meets the same cases and checks, which makes
the table of which check kills which mutant: a gate that no mutant needs is one that nobody would miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..kernels.mutants import MUTANTS
from ..reports.kills import QUICK_SHARE, CleanResult, MutantResult, PeerRule, SelfTest
from .budgets import load as load_budgets
from .peers import PEERS
from .pool import Pool
from .problems import LostError
from .profiles import PROFILES
from .selftest_tasks import accepted_by, hunted
from .settings import Progress
from .subjects import CLEAN, Subject
from .trial import Trial

THOROUGH = 24  # cases on which kernels are also run again, alone, without gradients, on twins
UNTIRING = 200  # such cases for those that are not found out by then: of the relations, a case is asked for one
SAMPLE = 96  # further cases that every kernel meets, for distributions alone
LONGEST = 1000
LIMIT = 900.0  # seconds that a task may take: some hundred kernels on one case


def mutants_tried(
    pool: Pool, seed: int, progress: Progress, *, quick: bool, names: Sequence[str] = ()
) -> list[MutantResult]:
    """All mutants, or those named."""
    chosen = [MUTANTS[n] for n in names] if names else list(MUTANTS.values())
    subjects = [Subject(f"mutant:{m.name}") for m in chosen]
    trial = Trial(pool, load_budgets(), seed, progress)
    if quick:
        trial.surveyed(subjects, range(1, 9), thorough=0, keep_killed=False, step=2)
        trial.surveyed(_alive(subjects), range(1, 11), thorough=10, keep_killed=False, step=2)  # translated already
        trial.surveyed(_alive(subjects), range(11, 33), thorough=0, keep_killed=False, step=4)
        trial.sampled(_alive(subjects), SAMPLE // 2)
        trial.solved(_alive(subjects), quick=True)
    else:
        trial.surveyed(subjects, range(1, THOROUGH + 1), thorough=THOROUGH, keep_killed=True)
        trial.solved(subjects, quick=True)
        trial.surveyed(_alive(subjects), range(THOROUGH + 1, LONGEST + 1), thorough=UNTIRING, keep_killed=False)
        trial.sampled(subjects, SAMPLE)
        trial = replace(trial, profile="ci")
        trial.surveyed(_alive(subjects), range(1, LONGEST + 1), thorough=UNTIRING, keep_killed=False)
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
        peers = None if isinstance(names, LostError) else names
        hunted_after = None if isinstance(count, LostError) else count
        found.append(mutant.model_copy(update={"accepted_by": peers, "hunted": hunted_after}))
        progress("peers", n, len(mutants))
    return found


def rules() -> list[PeerRule]:
    """The peers, in words."""
    said = (dict(name=p.name, source=p.source, differs=p.differs, tensors=tuple(p.criterion)) for p in PEERS.values())
    return [PeerRule.model_validate(rule) for rule in said]


def clean_tried(pool: Pool, seed: int, progress: Progress, *, cases: int, exact: bool) -> list[CleanResult]:
    """The clean kernels on so many cases; every failed check is an alarm."""
    subjects = [Subject(c.spec) for c in CLEAN]
    for number, begin in enumerate(range(0, cases, PROFILES["quick"].survey)):
        trial = Trial(pool, load_budgets(), seed + number, progress)
        trial.surveyed_clean(subjects, min(PROFILES["quick"].survey, cases - begin))
    if exact:
        Trial(pool, load_budgets(), seed, progress).solved(subjects)
    return [
        CleanResult(
            name=c.spec, what=c.what, cases=s.cases, alarms=tuple(s.details), left_out=c.reason, fits=s.fits.result()
        )
        for c, s in zip(CLEAN, subjects, strict=True)
    ]  # fmt: skip


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
