"""A selftest on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...reports.kills import SelfTest


def print_selftest(out: Console, result: SelfTest, said: Sequence[str]) -> None:
    """Mutants with what kills them, clean kernels, figures, and what failed."""
    table = Table("mutant", "killed by", "cases", "worst", title=None, box=None, pad_edge=False)
    for m in result.mutants:
        kills = {k.check: k for k in m.kills}
        named = ", ".join(f"{c} ({', '.join(k.tensors)})" if k.tensors else c for c, k in list(kills.items())[:6])
        first = m.first("survey") or m.first("exact")
        table.add_row(
            escape(m.name), escape(named) or "[red]SURVIVES[/]", "-" if first is None else str(first),
            "-" if m.worst is None else f"{m.worst:.2g}",
        )  # fmt: skip
    out.print(table)
    for c in result.clean:
        alarms = f"[red]{escape('; '.join(c.alarms))}[/]" if c.alarms else "no alarm"
        out.print(f"clean  {c.name}: {alarms} in {c.cases:,} cases" + (f", without {c.left_out}" if c.left_out else ""))
    total = sum(c.cases for c in result.clean)
    if total and not any(c.alarms for c in result.clean):
        out.print(f"no alarm in {total:,} cases of clean kernels: less than {3 / total:.2g} per case at 95 %")
    firsts = [n for m in result.mutants if (n := m.first("survey")) is not None]
    if not result.mutants:
        for line in said:
            out.print(f"[red]FAIL[/] {escape(line)}")
        return
    killed = len(result.mutants) - len(result.survivors())
    out.print(
        f"{killed} of {len(result.mutants)} mutants killed, {sum(m.subtle for m in result.mutants)} of them subtle "
        f"(largest error on normal inputs within twice standard attention's); cases to the first detection: median "
        f"{median(firsts):g}, at most {max(firsts)}; {result.seconds:.0f} s" if firsts else "no mutant found out"
    )  # fmt: skip
    if not result.quick:
        for gate, names in result.alone().items():
            out.print(f"only {gate} kills {len(names)}: {', '.join(names[:4])}")
    for line in said:
        out.print(f"[red]FAIL[/] {escape(line)}")
