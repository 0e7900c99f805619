"""Many kernels put to the same cases, so that truth, bounds and predictions are computed once per case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..reports.kills import Phase
from .algebra import accumulator_checks
from .algebra import checks as algebra_checks
from .budgets import Budgets
from .evaluate import Result, without_result
from .judge import judge
from .loading import load
from .pool import Pool
from .problems import LostError
from .profiles import PROFILES
from .selftest_tasks import Task, solve_all, try_all
from .settings import Progress
from .subjects import CLEAN, Subject
from .survey import plain_sample, survey

_TOGETHER = 32  # kernels that a task puts to a case: enough to share its truth, few enough to keep all workers busy


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
        going, by_spec = list(subjects), {s.spec: s for s in subjects}
        if numbers.start == 1:  # a survey of its own: no case counts twice
            for s in going:
                s.rows.clear()
        for begin in range(numbers.start, numbers.stop, step):
            if not going:
                return
            tasks = [
                Task(n, cases[n - 1], tuple(s.spec for s in some), n <= thorough)
                for n in range(begin, min(begin + step, numbers.stop))
                for at in range(0, len(going), _TOGETHER) for some in [going[at : at + _TOGETHER]]
            ]  # fmt: skip
            for task, results in self._tried(tasks):
                for spec, result in zip(task.specs, results, strict=True):
                    by_spec[spec].note(result, task.number)
            for subject in going:
                self._look(subject)
            if not keep_killed:
                going = [s for s in going if not s.kills]
            self.progress("survey", min(begin + step, numbers.stop) - 1, numbers.stop - 1)

    def sampled(self, subjects: Sequence[Subject], count: int) -> None:
        """Put all subjects to a sample for distributions alone."""
        cases = list(plain_sample(load("flash"), PROFILES[self.profile], self.seed, count))
        sound = Subject("flash")
        everyone = [sound, *subjects]
        specs = tuple(s.spec for s in everyone)
        for s in everyone:
            s.rows.clear()
        for task, results in self._tried([Task(n, c, specs, thorough=False) for n, c in enumerate(cases, start=1)]):
            for subject, result in zip(everyone, results, strict=True):
                subject.rows += result.rows
            self.progress("sample", task.number, count)
        for subject in subjects:
            self._look(subject, "sample", count)
            subject.compare(sound)

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
                subject.note(result, subject.cases + (result.status != "unsupported"))
            self.progress("clean", task.number, count)
        for subject in subjects:
            self._look(subject)
            subject.fits.add(subject.rows)
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
            subject = by_spec[spec]
            if isinstance(algebra, LostError):
                subject.details.append(f"in exact arithmetic it was lost: {algebra}")
                continue
            failed = [*algebra_checks(algebra), *accumulator_checks(algebra, self.budgets, spec)]
            count = next((i for i, c in enumerate(algebra.comparisons, start=1) if c.status == "different"),
                         len(algebra.comparisons))  # fmt: skip
            for check in (c for c in failed if c.status == "fail"):
                subject.found(check.name, check.tensor, "exact", count, check.detail)
