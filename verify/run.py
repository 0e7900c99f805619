"""A whole run: survey, hunt, judgement, findings, and the record in a folder."""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from ..reports.record import (
    Algebra,
    Finding,
    Manifest,
    Row,
    ShardWriter,
    Share,
    Verdict,
    write_json_atomic,
    write_parquet_atomic,
)
from . import interrupts
from .algebra import findings as algebra_findings
from .attribution import attribution, sample_case
from .case import UNIT_ROUNDOFF, Case, MaskRecipe
from .circumstances import git, gpu, machine, versions
from .comparison import PHASE, comparison, stages, still_open
from .draws import Draws
from .evaluate import Result
from .exact import NO_KERNEL, compare
from .exact_problems import gradients_of, problems
from .findings import findings_of, write_finding
from .hunt import hunt
from .implementation import UNTESTED, Implementation
from .judge import judge
from .masking import drawn_mask
from .plain import plain_case
from .pool import PULSE, Pool
from .problems import LostError, UsageError
from .profiles import Profile
from .regimes import REGIMES
from .settings import Progress, Settings
from .shapes import HEADS, LARGE, LONG, MANY
from .storing import stores_scores
from .survey import LAYOUTS, WINDOWS, mask_templates, simplified, survey
from .verdict import verdict_of


def prepare_folder(out: Path, *, force: bool) -> None:
    """A folder to write to, which holds no run.

    Raises:
        UsageError: it cannot be written, or it already holds a run and `force` is not given.
    """
    try:
        if out.exists() and not out.is_dir():
            raise UsageError(f"{out} is a file; give a folder with --out")
        present = _files_of_run(out)
        if present and not force:
            held = present[0].name
            raise UsageError(f"{out} already holds a run ({held}); use another --out, or --force to replace it")
        for path in present:
            path.unlink()
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as e:
        raise UsageError(f"{out} cannot be written to ({e.strerror or e}); use another --out") from e


def _files_of_run(out: Path) -> list[Path]:
    """What a run writes, and nothing else."""
    names = ("manifest.json", "results.parquet", "verdict.json", "report.html", "junit.xml", "summary.md")
    paths = [out / name for name in names if (out / name).is_file()]
    for pattern in ("findings/[0-9][0-9][0-9].json", "findings/[0-9][0-9][0-9].py", "shards/*.jsonl"):
        paths += sorted(out.glob(pattern))
    return paths


def run(settings: Settings, implementation: Implementation, progress: Progress) -> Verdict:
    """Measure, judge, find, record.  The folder is whole at every moment: until the run is judged, it says so.

    Raises:
        KeyboardInterrupt: after what was measured has been recorded; there is no verdict then.
    """
    start = time.perf_counter()
    out = settings.out
    manifest = _manifest(settings, implementation)
    write_json_atomic(out / "manifest.json", manifest.model_copy(update={"interrupted": True}))
    pool = Pool(settings.spec, settings.device, settings.workers, settings.profile.case_limit)
    results: list[Result] = []
    findings: list[Finding] = []
    algebra: Algebra | None = None
    left_out: list[str] = []
    interrupted = False
    try:
        first = _first_calls(settings, implementation, pool)
        implementation = replace(implementation, has_backward=gradients_of(pool))
        pool.stores = _stores_scores(pool)
        if first[-1].status == "ok":
            implementation = replace(implementation, refused=_refused(settings, implementation, pool))
        with ShardWriter(out / "shards" / "main.jsonl") as shard:
            measurement = _Measurement(settings, implementation, pool, results, left_out, shard, progress)
            measurement.measure(first[: 2 if implementation.has_backward else 1])
        if "exact" in settings.phases:
            algebra = _algebra(settings, implementation, pool, progress)
        missing = [*not_covered(implementation, settings.profile), *left_out]
        if settings.device == "cpu" and may_launch_kernels(algebra):
            missing.append(_INTERPRETED)
        judgement = judge(_rows(results), settings.budgets, settings.spec, missing, algebra)
        if judgement.failed:
            findings = findings_of(judgement, results, pool, settings, progress)
        sample = sample_case(implementation, settings.profile.dtypes[0], settings.seed)
        findings += algebra_findings(algebra, settings.spec, judgement.failed, sample, settings.budgets)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        pool.stop()
    rows = _rows(results)
    write_parquet_atomic(out / "results.parquet", rows)
    if interrupted:
        _remove_shards(out)
        raise KeyboardInterrupt
    for number, finding in enumerate(findings, start=1):
        write_finding(out / "findings", number, finding, implementation, stores_scores=bool(pool.stores),
                      device=settings.device)  # fmt: skip
    seconds = time.perf_counter() - start
    verdict = verdict_of(judgement, findings, settings.spec, settings.budgets, rows, seconds, algebra)
    write_json_atomic(out / "verdict.json", verdict)
    write_json_atomic(out / "manifest.json", manifest)
    _remove_shards(out)
    return verdict


def _rows(results: Iterable[Result]) -> list[Row]:
    return [row for r in results for row in r.rows]


def _first_calls(settings: Settings, implementation: Implementation, pool: Pool) -> list[Result]:
    """Made before anything else is asked of the function: a process's first call, and its first with gradients.

    Whatever a function prepares then, or leaves unprepared, shows in no later call.
    """
    phase = "survey" if "survey" in settings.phases else "hunt"
    case = plain_case(Draws(settings.seed, "first"), settings.profile.dtypes[0], "normal")
    case = case.with_(HK=case.H)  # nothing that a function may refuse
    options = {"thorough": False, "stores": True}  # to find out whether it stores its scores would be a call before
    results = [pool.one(simplified(case.with_(backward=False), implementation), phase, **options)]
    if results[0].status != "timeout":  # each try costs the whole limit
        results.append(pool.one(simplified(case, implementation), phase, **options))
    return results


def _refused(settings: Settings, implementation: Implementation, pool: Pool) -> frozenset[str]:
    """What the function's signature has, and the function always refuses, loudly, in shapes that it takes otherwise.

    Its cases are then drawn without; else most of a survey would be refused for the sake of one option.  Grouped heads
    are no option in flash_attn's signature, so that nothing in a function's own says whether it takes them: one that
    raises, whatever it is, does not.
    """
    masks = (MaskRecipe(causal=True), MaskRecipe(window=(3, 5)), MaskRecipe(boolean="random"),
             MaskRecipe(bias="random"), MaskRecipe(key_lengths=True))  # fmt: skip
    groups = [(2, 1), (4, 2)] if implementation.signature == "flash_attn" else [(2, 1)]  # one key head may broadcast
    nothing, answers = replace(implementation, signature="sdpa", options=frozenset()), []
    for n, d, dimensions in ((16, 32, 4), (128, 64, 4), (16, 32, 2)):  # of masks: [B, H, M, N] and [M, N]
        plain = Case(B=2, H=2, HK=2, M=n, N=n, D=d, dtype=settings.profile.dtypes[0], regime="normal", seed=0,
                     backward=False)  # fmt: skip
        plain = _with_masks_of((2, 2, n, n)[-dimensions:], plain)
        asked = [plain, *(plain.with_(mask=m) for m in masks), plain.with_(scale=0.3)]
        asked += [plain.with_(H=h, HK=hk) for h, hk in groups]
        results = list(pool.evaluate([c for c in asked if implementation.lacks(c) is None], "survey", thorough=False))
        if results[0].status == "ok":
            refusing = [r.case for r in results if r.status == "unsupported" or _raises_for_groups(r, implementation)]
            answers.append({what for case in refusing if (what := nothing.lacks(case))})
            if not answers[-1]:
                break
    return frozenset(set.intersection(*answers)) if answers else frozenset()


def _with_masks_of(shape: tuple[int, ...], case: Case) -> Case:
    """The case with a seed by which masks have this shape."""
    seeds = (case.with_(seed=s, mask=MaskRecipe(boolean="random")) for s in itertools.count())
    found = next(c for c in seeds if (allowed := drawn_mask(c).allowed) is not None and allowed.shape == shape)
    return case.with_(seed=found.seed)


def _raises_for_groups(result: Result, implementation: Implementation) -> bool:
    grouped = result.case.H != result.case.HK
    return grouped and implementation.signature == "flash_attn" and result.status == "raised"


def _algebra(settings: Settings, implementation: Implementation, pool: Pool, progress: Progress) -> Algebra:
    """The kernel's source in exact arithmetic, and where its roundings arise."""
    thorough = settings.profile.name != "quick"
    comparisons = compare(pool, problems(implementation, settings.seed, thorough=thorough), progress)
    shares: list[Share] = []
    if any(c.status == "equal" for c in comparisons):
        samples = 4 if thorough else 1
        with suppress(LostError):  # the survey tells that better
            shares = attribution(pool, implementation, settings.profile.dtypes, settings.seed, samples)
    return Algebra(comparisons=tuple(comparisons), shares=tuple(shares))


def _stores_scores(pool: Pool) -> bool:
    """Asked once, in a worker, since the function may hang or die there: then it is taken to."""
    try:
        return pool.call(stores_scores)
    except LostError:
        return True


def may_launch_kernels(algebra: Algebra | None) -> bool:
    """Whether there is a Triton kernel in the function, for all that is known."""
    comparisons = algebra.comparisons if algebra is not None else ()
    ran = any(c.status in ("equal", "different") for c in comparisons)
    return ran or (bool(comparisons) and not any(c.detail == NO_KERNEL for c in comparisons))


_INTERPRETED = (
    "compiled Triton kernels, which were interpreted: a GPU's tensor cores, its approximate exponential and the order "
    "of its atomics"
)


_NOTHING_BUT_LOWEST = (
    "gradients of queries that see nothing but keys with bf16's lowest number as bias, beside which a log-sum-exp in "
    "fp32 keeps no trace of how many they are"
)

_FOUND_OUT = "more of the hunt: a function that hangs or dies has been found out already"


def _remove_shards(out: Path) -> None:
    """`results.parquet` holds their rows by now."""
    for path in (out / "shards").glob("*.jsonl"):
        path.unlink()
    with suppress(OSError):  # something in there is not ours
        (out / "shards").rmdir()


@dataclass(frozen=True, slots=True)
class _Measurement:
    """The measuring part of a run: every result is kept as it comes."""

    settings: Settings
    implementation: Implementation
    pool: Pool
    results: list[Result]
    left_out: list[str]
    shard: ShardWriter
    progress: Progress
    lost: list[Result] = field(default_factory=list)  # of the results, those that hung or died
    hunted: list[Result] = field(default_factory=list)  # by the hunt, which goes on beside the survey; the last results
    keeping: Lock = field(default_factory=Lock)

    def measure(self, first: Sequence[Result]) -> None:
        """Survey and hunt, after what is known by now; what had to be left out is noted."""
        profile = self.settings.profile
        for n, result in enumerate(first[: profile.survey] if self.surveys else first, start=1):
            self._keep(result)
            if self.surveys:
                self.progress("survey", n, profile.survey)
        avoided = self._fatal_layouts() if self.surveys else frozenset()
        try:
            with ThreadPoolExecutor(len(profile.dtypes)) as threads:  # a climb waits for each of its cases
                try:
                    hunts = "hunt" in self.settings.phases and profile.hunt
                    climbs = set(self._climbs(threads)) if hunts else set()
                    if self.surveys:
                        self._survey(avoided)
                        self._compare()
                    self._finish(climbs)
                except BaseException:
                    self.pool.stop()  # else the climbs would be waited for
                    raise
        finally:
            self.results.extend(self.hunted)
        if self._too_many():
            self.left_out.append(
                f"the cases after the first {len(self.results)}: {len(self.lost)} of these hung or died"
            )

    @property
    def surveys(self) -> bool:
        """Whether there is a survey, or a hunt alone."""
        return "survey" in self.settings.phases

    def _too_many(self) -> bool:
        return len(self.lost) >= self.settings.profile.max_lost

    def _keep(self, result: Result) -> None:
        with self.keeping:
            self.results.append(result)
            self._note(result)

    def _note(self, result: Result) -> None:
        if result.lost:
            self.lost.append(result)
        self.shard.append(result.rows)

    def _fatal_layouts(self) -> frozenset[str]:
        """Memory layouts in which the first case hangs or kills its process, and lives without them.

        That is a finding, and once is enough: a GPU on which every such case breaks a context may not recover.
        """
        if self.lost or not self.results:
            return frozenset()
        cases = [self.results[-1].case.with_(layout=x) for x in dict.fromkeys(LAYOUTS) if x != "contiguous"]
        lost = [r for r in self.pool.evaluate(cases, "survey", thorough=False) if r.lost]
        for result in lost:
            self._keep(result)
            self.left_out.append(f"more cases in the memory layout {result.case.layout!r}, after one that hung or died")
        return frozenset(r.case.layout for r in lost)

    def _survey(self, avoided: frozenset[str]) -> None:
        profile, before = self.settings.profile, len(self.results)
        drawn = survey(self.implementation, profile, self.settings.seed, count=profile.survey - before)
        cases = (case.with_(layout="contiguous") if case.layout in avoided else case for case in drawn)
        self._evaluate(cases, "survey", before, profile.survey)

    def _compare(self) -> None:
        profile, seed = self.settings.profile, self.settings.seed
        regimes: Sequence[str] = tuple(REGIMES)
        for numbers in stages(profile):
            if self._too_many():
                return
            cases = list(comparison(self.implementation, profile, seed, regimes, numbers))
            self._evaluate(cases, PHASE, 0, len(cases), thorough=False)
            rows = _rows(self.results)
            regimes = still_open(rows)
            if regimes and judge(rows, self.settings.budgets, self.settings.spec).failed:
                self.left_out.append(f"more than {numbers.stop} cases of each kind of input: it fails without them")
                return

    def _evaluate(self, cases: Iterable[Case], phase: str, before: int, total: int, **options: bool) -> None:
        """Keep the results of cases, of which `before` are done already, until too many have hung."""
        for n, result in enumerate(self.pool.evaluate(cases, phase, **options), start=1 + before):
            self._keep(result)
            self.progress(phase, n, total)
            if self._too_many():
                return

    def _climbs(self, threads: ThreadPoolExecutor) -> Iterator[Future[None]]:
        """The hunts of all dtypes, under way; beside a survey they end where a function hangs or dies."""
        profile = self.settings.profile

        def evaluated(case: Case) -> Result | None:
            if self.surveys and self.lost:
                if _FOUND_OUT not in self.left_out:
                    self.left_out.append(_FOUND_OUT)
                return None
            if self._too_many():
                return None
            result = self.pool.one(case, "hunt", thorough=False)
            with self.keeping:
                self.hunted.append(result)
                self._note(result)
                self.progress("hunt", len(self.hunted), profile.hunt * len(profile.dtypes))
            return result

        for dtype in profile.dtypes:
            yield threads.submit(hunt, self.implementation, profile, dtype, self.settings.seed, evaluated)

    def _finish(self, climbs: set[Future[None]]) -> None:
        while climbs:
            done, climbs = wait(climbs, timeout=PULSE)
            interrupts.check()
            for climb in done:
                climb.result()


def not_covered(implementation: Implementation, profile: Profile) -> list[str]:
    """What the function's signature leaves out, and what the profile does."""
    base = Case(B=1, H=1, HK=1, M=4, N=4, D=16, dtype="fp16", regime="normal", seed=0)
    probes = [base.with_(mask=m) for m in mask_templates()]
    probes += [base.with_(mask=m, M=3) for m in mask_templates()]
    probes += [base.with_(scale=0.5), base.with_(H=2), base]
    missing = [reason for p in probes if (reason := implementation.lacks(p)) is not None]
    missing += ["the log-sum-exp"] if implementation.lse_option is None else []
    missing += [f"the option {o}" for o in UNTESTED if o in implementation.options]
    longest = max(profile.max_length, *LARGE)
    long = f"sequences longer than {longest} (one axis beside a short one: than {max(LONG)})"
    missing.append(f"{long}, head dimensions other than those of the profile")
    batch, heads = max(B for B, _, _ in MANY), max(H for H, _ in (*HEADS, *(many[1:] for many in MANY)))
    both = max(B * H for B, H, _ in MANY)
    missing.append(f"more than {batch} batch elements, more than {heads} heads, more than {both} of both multiplied")
    if implementation.lacks(base.with_(mask=MaskRecipe(bias="random"), backward=False)) is None:
        missing.append("an additive bias in another dtype than the inputs'")
        missing += [_NOTHING_BUT_LOWEST] if implementation.has_backward and "bf16" in profile.dtypes else []
        missing += ["gradients of an additive bias"] if implementation.has_backward else []
    if {"is_causal", "attn_mask"} <= implementation.options and "alignment" not in implementation.options:
        missing.append("is_causal given together with attn_mask, which torch refuses")  # a case gives one mask of both
    if implementation.lacks(base.with_(mask=MaskRecipe(window=(0, 0)))) is None:
        widest = max(side or 0 for window in WINDOWS for side in window)
        missing.append(f"windows of more than {widest} keys to a side")
    missing += [f"{d} inputs" for d in UNIT_ROUNDOFF if d not in profile.dtypes]
    missing.append("inputs that hold NaN or infinity")
    if implementation.has_backward:
        missing.append("second derivatives, inputs or output changed in place before the backward pass")
    return list(dict.fromkeys(missing))


def _manifest(settings: Settings, implementation: Implementation) -> Manifest:
    found = {"python": platform.python_version()}
    found |= versions("flashproof", "torch", "triton", "numpy", "hypothesis", "ml_dtypes")
    profile = asdict(settings.profile)
    hardware, device = machine(), "cpu (Triton kernels interpreted)"
    if settings.device != "cpu":
        hardware |= (card := gpu())
        device = f"{settings.device} ({card['gpu']}, driver {card['driver']})"
    return Manifest(
        schema=1, implementation=settings.spec, profile=settings.profile.name, seed=settings.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"), command=settings.command,
        device=device, versions=found, machine=dict(hardware), git=git(),
        conventions=dict(implementation.conventions()),
        profile_settings={k: list(v) if isinstance(v, tuple) else v for k, v in profile.items()},
    )  # fmt: skip
