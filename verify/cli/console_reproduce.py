"""Reproduced publications on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...reports.published import HEADS, METHOD, Reproductions

_COLOURS = {"confirmed": "green", "confirmed under an assumption": "yellow", "not confirmed": "red"}


def print_reproductions(out: Console, record: Reproductions) -> None:
    """The claims, then the figures."""
    for r in record.results:
        out.print(f"[bold]{escape(r.name)}[/]  {escape(r.source)}  [dim]{r.seconds:.0f} s[/]", soft_wrap=True)
        for c in r.claims:
            mark = f"[{_COLOURS[c.outcome]}]{c.outcome}[/]"
            out.print(f"  {mark}: {escape(c.claim)}", soft_wrap=True)
            out.print(f"    {escape(c.because)}", soft_wrap=True)
    table = Table(title=None, box=None, pad_edge=False)
    for i, head in enumerate(("figure", *HEADS[1:])):
        table.add_column(head, justify="right" if i else "left", overflow="fold")
    for r in record.results:
        table.add_row(f"[bold]{escape(r.name)}[/]")
        for f in (f for c in r.claims for f in c.figures):
            table.add_row(*map(escape, f.cells()))
    out.print(table)
    out.print(f"[dim]{escape(METHOD)} {record.seeds} seeds, {record.seconds:.0f} s[/]", soft_wrap=True)
