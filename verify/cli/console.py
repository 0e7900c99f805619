"""What a person sees: progress on a terminal, plain lines in CI."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ...reports.record import Algebra, Allowed, Answer, Comparison, Share, Verdict
from ...reports.words import plural, size
from ..case import case_of

if TYPE_CHECKING:
    from ..evaluate import Result
    from ..probe import Fact
    from ..settings import Progress as Report
    from ..yardstick import Straightness

_MARK = {
    "pass": "[green]pass[/]",
    "fail": "[red]FAIL[/]",
    "skipped": "[dim]-[/]",
    "waived": "[yellow]waived[/]",
    "nothing-measured": "[yellow]nothing measured[/]",
}


def _briefly(c: Comparison) -> str:
    case = case_of(c.case)
    heads = f"H{case.H}" if case.H == case.HK else f"H{case.H}/{case.HK}"
    layout = "" if case.layout == "contiguous" else f" {case.layout}"
    return f"{case.dtype} B{case.B} {heads} M{case.M} N{case.N} D{case.D} {case.mask} {case.regime}{layout}"


_RESULT = {
    "equal": "[green]equal[/]",
    "different": "[red]DIFFERENT[/]",
    "unavailable": "[yellow]not available:[/]",
    "refused": "[dim]refused:[/]",
}


class _Terminal(RichConsole):
    """rich ends the program when nobody reads its output (`| head`); the exit code is the verdict's all the same."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Console:
    """Prints to standard output; progress to standard error."""

    def __init__(self) -> None:
        plain = not os.isatty(1) or bool(os.environ.get("CI"))
        self.out = _Terminal(width=None if not plain else 140, highlight=False)
        self.err = RichConsole(stderr=True, highlight=False)
        self.live = self.err.is_terminal and not os.environ.get("CI")

    @contextmanager
    def progress(self) -> Iterator[Report]:
        """A function (phase, done, total) to call as work is done."""
        if not self.live:
            last: dict[str, int] = {}

            def line(phase: str, done: int, total: int) -> None:
                tenth = 10 * done // max(1, total)
                if last.get(phase) != tenth:
                    last[phase] = tenth
                    self.err.print(f"{phase}: {done}/{total}")

            yield line
            return
        columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.err, transient=True) as bars:
            tasks: dict[str, object] = {}

            def bar(phase: str, done: int, total: int) -> None:
                if phase not in tasks:
                    tasks[phase] = bars.add_task(phase, total=total)
                bars.update(tasks[phase], completed=done)  # type: ignore[arg-type]

            yield bar

    def verdict(self, verdict: Verdict, folder: Path) -> None:
        """The verdict, its checks, its findings."""
        table = Table(title=None, box=None, padding=(0, 2, 0, 0))
        for column in ("check", "tensor", "status", "n", "what was seen"):
            table.add_column(column, overflow="fold")
        for c in verdict.checks:
            table.add_row(c.name, c.tensor or "", _MARK[c.status], str(c.n or ""), escape(c.detail))
        self.out.print(table)
        for number, f in enumerate(verdict.findings, start=1):
            self.out.print(
                f"\n[bold]finding {number}[/]: {f.check}{f' of {f.tensor}' if f.tensor else ''}: {escape(f.detail)}",
                soft_wrap=True,
            )
            self.out.print(f"  {escape(f.replay)}", soft_wrap=True)
            script = folder / "findings" / f"{number:03d}.py"
            if script.is_file():
                self.out.print(escape(f"  python {script}"), soft_wrap=True)
        for w in verdict.waived:
            said = f"{w.scope} in {plural(w.cases, 'case')} until {w.expires}: {w.reason}"
            self.out.print(f"\n[yellow]waived[/]: {escape(said)}", soft_wrap=True)
        self.allowed(verdict.allowed)
        if verdict.not_covered:
            self.out.print(f"\n[dim]not covered:[/] {escape('; '.join(verdict.not_covered))}", soft_wrap=True)
        for question in ("algebraic", "bitwise", "accuracy"):
            answer = getattr(verdict.exactness, question)
            self.out.print(f"\n[bold]{question}[/]: {answer.status}. {escape(answer.evidence)}", soft_wrap=True)
        self.out.print(f"\n{_MARK[verdict.verdict]}  {escape(verdict.sentence)}", soft_wrap=True)
        page = folder / "report.html"
        report = f"; report: {page}, {size(page.stat().st_size)}" if page.is_file() else ""
        self.out.print(f"[dim]{verdict.counts.cases} cases, {verdict.seconds:.0f} s{escape(report)}[/]", soft_wrap=True)

    def allowed(self, allowed: Sequence[Allowed]) -> None:
        """What the budgets allow beyond the defaults, and why."""
        for a in allowed:
            self.out.print(f"\n[yellow]allowed[/]: {escape(a.what)}: {escape(a.reason)}", soft_wrap=True)

    def result(self, result: Result, name: str) -> None:
        """One case in full."""
        self.out.print(f"[bold]{escape(name)}[/] on {escape(str(result.case))}", soft_wrap=True)
        if result.status != "ok":
            self.out.print(f"{result.status}: {escape(result.rows[0].message or '')}", soft_wrap=True)
        else:
            table = Table(box=None, padding=(0, 2, 0, 0))
            heads = ("tensor", "max error", "RMS error", "standard's RMS", "rounded truth's", "error / bound",
                     "RMS / predicted", "bias (ulp)", "non-finite")  # fmt: skip
            for head in heads:
                table.add_column(head, justify="left" if head == "tensor" else "right")
            for r in result.rows:
                errors = (r.kernel_max, r.kernel_rms, r.standard_rms, r.rounded_rms)
                ratios = (r.bound_ratio, r.predictor_ratio, r.kernel_bias)
                shown = ("-" if x is None else f"{x:.9g}" for x in errors + ratios)
                table.add_row(str(r.tensor), *shown, str(r.nonfinite))
            self.out.print(table)
        for c in result.checks:
            if not c.passed:
                figures = f"observed {c.observed:.9g}, allowed {c.allowed:.9g}"
                what = f"{c.name} {c.tensor or ''}: {escape(c.detail)}"
                self.out.print(f"{_MARK['fail']} {what} ({figures})", soft_wrap=True)
        if not result.failed and result.status == "ok":
            self.out.print(f"{_MARK['pass']} all {len(result.checks)} checks")

    def probe(self, name: str, facts: Sequence[Fact]) -> None:
        """What was measured of an implementation."""
        table = Table(title=escape(name), box=None, padding=(0, 2, 0, 0))
        for column in ("question", "measured", "convention"):
            table.add_column(column, overflow="fold")
        for f in facts:
            table.add_row(f.question, escape(f.measured), escape(f.expected))
        self.out.print(table)

    def algebra(self, algebra: Algebra, answer: Answer) -> None:
        """Every problem in exact arithmetic, then the answer."""
        reasons = {c.detail for c in algebra.comparisons}
        if len(reasons) != 1 or any(c.status != "unavailable" for c in algebra.comparisons):  # else the answer says it
            self._comparisons(algebra)
        self.out.print(f"\n[bold]algebraic[/]: {answer.status}. {escape(answer.evidence)}", soft_wrap=True)

    def _comparisons(self, algebra: Algebra) -> None:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("problem", "tiles", "arithmetic", "elements", "result"):
            table.add_column(column, overflow="fold", justify="right" if column == "elements" else "left")
        for c in algebra.comparisons:
            result = _RESULT[c.status] + (f" {escape(c.detail)}" if c.detail else "")
            if c.digits:
                result += " " + ", ".join(f"1e{x:.1f}" if x > -1e6 else "0" for _, x in c.digits)
            tiles = "" if c.tiles is None else f"{c.tiles[0]} x {c.tiles[1]}"
            table.add_row(_briefly(c), tiles, c.arithmetic, f"{c.elements:,}", result)
        self.out.print(table)
        for c in algebra.comparisons:
            for m in c.mismatches:
                said = f"{m.tensor}: {m.count:,} of {m.elements:,} elements; {m.where}"
                self.out.print(f"{_briefly(c)}: {escape(said)}", soft_wrap=True)

    def shares(self, shares: Sequence[Share]) -> None:
        """What each rounding site contributes."""
        if not shares:
            self.out.print(
                "no Triton kernel was launched, or it does what no other arithmetic can: nothing to attribute"
            )
            return
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("dtype", "tensor", "rounding site", "RMS error", "part of the squared error", "n"):
            table.add_column(column, justify="left" if column in ("dtype", "tensor", "rounding site") else "right")
        for s in shares:
            table.add_row(s.dtype, s.tensor, s.site, f"{s.rms:.3g}", f"{s.part:.1%}", str(s.n or "-"))
        self.out.print(table)

    def yardstick(self, rows: Sequence[Straightness]) -> None:
        """float64 against balls."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("regime", "dtype", "largest |logit|", "out", "lse", "dq", "dk", "dv", "ball radius"):
            table.add_column(column, justify="right" if column not in ("regime", "dtype") else "left")
        for r in rows:
            distances = (f"{r.distance[t]:.1e}" for t in ("out", "lse", "dq", "dk", "dv"))
            table.add_row(r.regime, r.dtype, f"{r.max_logit:.3g}", *distances, f"{r.radius:.0e}")
        self.out.print(table)
        worst = max(max(r.distance.values()) for r in rows)
        self.out.print(f"worst |float64 - truth| / natural scale: {worst:.2e} (limit 1e-12) over {len(rows)} cases")
