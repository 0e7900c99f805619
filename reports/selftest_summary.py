"""A selftest as Markdown: a sentence, and tables for a README."""

from __future__ import annotations

from . import words
from .kills import SelfTest
from .markdown import inline, table
from .rows import encodable
from .tallies import asked, checks, peers, sentence, theory


def peers_table(selftest: SelfTest) -> str:
    """Per peer the mutants that it accepts, fewest first; nothing where no peer was asked."""
    if not asked(selftest):
        return ""
    rows = (
        (
            f"**{p.name}**" if i == 0 else inline(p.name),
            f"{p.accepts}" + (f", {p.unseen} of them in tensors that it does not compare" if p.unseen else ""),
            inline(", ".join(p.subtle[:3])) or "–",
        )
        for i, p in enumerate(peers(selftest))
    )
    head = ("peer", f"mutants it accepts, of {len(selftest.mutants)}", "subtle ones among them, for example")
    return encodable(table(head, rows))


def checks_table(selftest: SelfTest) -> str:
    """Per check the mutants that it kills, and those that no other does."""
    rows = (
        (
            inline(c.name),
            f"{c.kills}",
            "–" if selftest.quick else f"{len(c.alone)}",
            f"{inline(c.example.name)}: {inline(c.example.what)}" if c.example else "–",
        )
        for c in checks(selftest)
    )
    return encodable(table(("check", "kills", "only it kills", "for example"), rows))


def theory_table(selftest: SelfTest) -> str:
    """Per tensor and dtype, bounds and predictions on kernels that are right; nothing where none was tried."""
    rows = []
    for t in theory(selftest):
        room = f"{words.number(t.slack[0], 2)} to {words.number(t.slack[1], 2)}" if t.slack else "–"
        p = t.predicted
        met = (f"{p.predicted}", words.ratio(p.ratio), f"{words.ratio(p.low)} to {words.ratio(p.high)}",
               words.ratio(p.largest)) if p else ("–",) * 4  # fmt: skip
        rows.append((t.tensor, inline(t.dtype), f"{t.cases}", f"{t.beyond}", words.ratio(t.nearest), room, *met))
    head = ("tensor", "dtype", "cases", "beyond the bound", "largest error / bound", "bound / error, median",
            "predicted cases", "error / predicted", "middle 95 %", "largest")  # fmt: skip
    return encodable(table(head, rows)) if rows else ""


def markdown(selftest: SelfTest) -> str:
    """The sentence and the tables."""
    parts = (inline(sentence(selftest)), checks_table(selftest), peers_table(selftest), theory_table(selftest))
    return encodable("\n\n".join(filter(None, parts)) + "\n")
