"""A comparison of two runs on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...reports.drift import Drift, DriftCell
from ...reports.record import Check
from ...reports.words import number, plural

_MARKS = {"worse": "[red]WORSE[/]", "suspect": "[yellow]suspect[/]", "better": "[green]better[/]"}
_SHOWN = 40


def print_drift(out: Console, drift: Drift) -> None:
    """What changed, worst first, then the sentence."""
    changed = drift.of("worse", "suspect", "better")
    if changed:
        out.print(_table(changed[:_SHOWN]))
    if len(changed) > _SHOWN:
        out.print(f"and {plural(len(changed) - _SHOWN, 'more cell')}")
    causes = dict.fromkeys((c.tensor, c.dtype, c.cause) for c in drift.of("worse") if c.cause)
    for tensor, dtype, cause in causes:
        out.print(f"cause  {tensor} {dtype}: {escape(cause)}", soft_wrap=True)
    for mark, checks in (("[red]FAILS NOW[/]", drift.failing), ("[green]passes now[/]", drift.repaired)):
        for c in checks:
            out.print(f"{mark} {_named(c)}: {escape(c.detail)}", soft_wrap=True)
    mark = _MARKS["worse"] if drift.verdict == "worse" else "[green]no worse[/]"
    out.print(f"{mark}  {escape(drift.sentence)}", soft_wrap=True)


def _table(cells: list[DriftCell]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "tensor", "dtype", "regime", "RMS error / base's", "interval", "n", "new non-finite"):
        table.add_column(column, justify="left" if column in ("", "tensor", "dtype", "regime") else "right")
    for c in cells:
        interval = "-" if c.ratio is None else f"{number(c.low)} to {number(c.high)}"
        table.add_row(
            _MARKS[c.status], c.tensor, escape(c.dtype), escape(c.regime), number(c.ratio), interval, str(c.n),
            str(c.nonfinite or ""),
        )  # fmt: skip
    return table


def _named(check: Check) -> str:
    return f"{check.name} {check.tensor}" if check.tensor else check.name
