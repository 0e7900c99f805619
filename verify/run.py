"""A whole run: survey, hunt, judgement, findings, and the record in a folder."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


import pebble

from ..reports.record import Finding, Git, Manifest, Row, ShardWriter, Verdict, write_json_atomic, write_parquet_atomic
from .budgets import Budgets
from .evaluate import Result
from .findings import findings_of, write_finding
from .hunt import hunt
from .implementation import Implementation
from .judge import judge, verdict_of
from .pool import Pool
from .problems import UsageError
from .profiles import Profile
from .survey import mask_templates, survey

Progress = Callable[[str, int, int], None]  # phase, done, total


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for."""

    spec: str
    profile: Profile
    budgets: Budgets
    seed: int
    device: str
    workers: int
    out: Path
    command: str
    phases: tuple[str, ...] = ("survey", "hunt")


def prepare_folder(out: Path, *, force: bool) -> None:
    """An empty folder to write to.

    Raises:
        UsageError: it cannot be written, or it already holds a run and `force` is not given.
    """
    try:
        if out.exists() and not out.is_dir():
            raise UsageError(f"{out} is a file; give a folder with --out")
        if (out / "manifest.json").exists():
            if not force:
                raise UsageError(f"{out} already holds a run; use another --out, or --force to replace it")
            _remove_run(out)
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as e:
        raise UsageError(f"{out} cannot be written to: {e.strerror or e}") from e


def _remove_run(out: Path) -> None:
    """Remove what a run writes, and nothing else."""
    for name in ("manifest.json", "results.parquet", "verdict.json", "report.html", "junit.xml", "summary.md"):
        (out / name).unlink(missing_ok=True)
    for folder, patterns in (("findings", ("*.json", "*.py")), ("shards", ("*.jsonl",))):
        for pattern in patterns:
            for path in (out / folder).glob(pattern):
                path.unlink()


def run(settings: Settings, implementation: Implementation, progress: Progress) -> Verdict:
    """Measure, judge, find, record.  The folder is complete at every moment: interrupted, it says so.

    Raises:
        KeyboardInterrupt: after what was measured has been recorded.
    """
    start = time.perf_counter()
    manifest = _manifest(settings, implementation)
    write_json_atomic(settings.out / "manifest.json", manifest.model_copy(update={"interrupted": True}))
    pool = Pool(settings.spec, settings.device, settings.workers, settings.profile.case_limit)
    results: list[Result] = []
    findings: list[Finding] = []
    interrupted = False
    try:
        with ShardWriter(settings.out / "shards" / "main.jsonl") as shard:
            _measure(settings, implementation, pool, results, shard, progress)
        rows = [row for r in results for row in r.rows]
        judgement = judge(rows, settings.budgets, settings.spec)
        if judgement.failed:
            findings = findings_of(judgement, results, pool, settings, progress)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        pool.stop()
    rows = [row for r in results for row in r.rows]
    write_parquet_atomic(settings.out / "results.parquet", rows)
    for number, finding in enumerate(findings, start=1):
        write_finding(settings.out / "findings", number, finding, implementation)
    judgement = judge(rows, settings.budgets, settings.spec, _not_covered(implementation))
    verdict = verdict_of(judgement, findings, settings.spec, settings.budgets, rows, time.perf_counter() - start)
    write_json_atomic(settings.out / "verdict.json", verdict)
    write_json_atomic(settings.out / "manifest.json", manifest.model_copy(update={"interrupted": interrupted}))
    for path in (settings.out / "shards").glob("*.jsonl"):
        path.unlink()
    (settings.out / "shards").rmdir()
    if interrupted:
        raise KeyboardInterrupt
    return verdict


def _measure(
    settings: Settings, implementation: Implementation, pool: Pool, results: list[Result], shard: ShardWriter, progress: Progress
) -> None:
    def keep(result: Result) -> None:
        results.append(result)
        shard.append(result.rows)

    profile = settings.profile
    if "survey" in settings.phases:
        for n, result in enumerate(pool.evaluate(survey(implementation, profile, settings.seed), "survey"), start=1):
            keep(result)
            progress("survey", n, profile.survey)
    lost = any(r.status in ("timeout", "crashed") for r in results)
    if "hunt" in settings.phases and not lost:  # a kernel that hangs or dies has been found out already
        for n, dtype in enumerate(profile.dtypes, start=1):
            limit = profile.case_limit + 2.0 * profile.hunt
            try:
                found: list[Result] = pool.call(hunt, profile, dtype, settings.seed, profile.hunt, limit=limit)
            except (TimeoutError, pebble.ProcessExpired):
                continue
            for result in found:
                keep(result)
            progress("hunt", n, len(profile.dtypes))


def _not_covered(implementation: Implementation) -> list[str]:
    """What the function's signature leaves out."""
    from .case import Case

    base = Case(B=1, H=1, HK=1, M=4, N=4, D=16, dtype="fp16", regime="normal", seed=0)
    probes = [base.with_(mask=m) for m in mask_templates()]
    probes += [base.with_(mask=m, M=3) for m in mask_templates()]
    probes += [base.with_(scale=0.5), base.with_(H=2), base]
    missing = [reason for p in probes if (reason := implementation.lacks(p)) is not None]
    if implementation.lse_option is None:
        missing.append("the log-sum-exp")
    return list(dict.fromkeys(missing))


def _manifest(settings: Settings, implementation: Implementation) -> Manifest:
    names = ("flashproof", "torch", "triton", "numpy", "hypothesis", "ml_dtypes")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = version(name)
        except Exception:  # noqa: BLE001, S112  (a package that is not installed has no version)
            continue
    profile = asdict(settings.profile)
    return Manifest(
        schema=1, implementation=settings.spec, profile=settings.profile.name, seed=settings.seed,  # type: ignore[call-arg]
        created=datetime.now(UTC).isoformat(timespec="seconds"), command=settings.command,
        device="cpu (interpreted)" if settings.device == "cpu" else settings.device, versions=versions,
        machine={"cpu": _cpu(), "cores": os.cpu_count() or 1, "platform": platform.platform()}, git=_git(),
        conventions=dict(implementation.conventions()),
        profile_settings={k: list(v) if isinstance(v, tuple) else v for k, v in profile.items()},
    )  # fmt: skip


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git() -> Git | None:
    def ask(*args: str) -> str:
        return subprocess.run(["git", *args], capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603, S607

    try:
        return Git(commit=ask("rev-parse", "HEAD"), dirty=bool(ask("status", "--porcelain", "-uno")))
    except (OSError, subprocess.SubprocessError):
        return None


def command_line(arguments: list[str] | None = None) -> str:
    """The command as typed, for the record."""
    import shlex

    return shlex.join(["flashproof", *(sys.argv[1:] if arguments is None else arguments)])


