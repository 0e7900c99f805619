"""The record of `flashproof reproduce`: what a publication says, what we measure, and whether that confirms it."""

from __future__ import annotations

import math
from typing import Literal

from .markdown import inline, table
from .model import Model
from .rows import encodable

Outcome = Literal["confirmed", "confirmed under an assumption", "not confirmed"]
Published = float | tuple[float, float] | None  # a number, a range, or none

#: how a figure is compared; users read it in the page and in the command's help
METHOD = (
    "A published number agrees with ours if it lies within our range over the seeds, or beyond it by a fifth at most; "
    "a published range, if our median lies in it. More seeds widen a range, and a wide one agrees easily: it stands "
    "beside each figure. What else a claim must satisfy is told with it. Outcomes are computed from the figures."
)


class Figure(Model):
    """One quantity: as published, and ours over the seeds."""

    what: str
    published: Published  # None: the publication gives no number for it
    low: float
    median: float
    high: float
    n: int  # how many values: one per seed (and dtype), or 1 where no seed matters

    @property
    def agrees(self) -> bool:
        """Whether ours is what is published, as `METHOD` says; not where nothing is, or where ours is not finite."""
        if self.published is None or not all(map(math.isfinite, (self.low, self.median, self.high))):
            return False
        if isinstance(self.published, tuple):
            return self.published[0] <= self.median <= self.published[1]
        return min(self.low / 1.2, self.low * 1.2) <= self.published <= max(self.high / 1.2, self.high * 1.2)

    def cells(self) -> tuple[str, str, str, str, str]:
        """What it is, published, our median, its range, from how many values: as text."""
        if isinstance(self.published, tuple):
            published = f"{self.published[0]:.3g} to {self.published[1]:.3g}"
        else:
            published = "" if self.published is None else f"{self.published:.3g}"
        spread = "" if self.n == 1 else f"{self.low:.3g} to {self.high:.3g}"
        return self.what, published, f"{self.median:.3g}", spread, str(self.n)


#: of the cells of a figure
HEADS = ("", "published", "here: median", "here: range", "values")


class Claim(Model):
    """A sentence of a publication, and what the figures make of it."""

    claim: str
    rule: str  # what confirms it
    outcome: Outcome
    because: str
    figures: tuple[Figure, ...]


class Reproduction(Model):
    """A publication: where, under which settings, and its claims."""

    name: str
    source: str
    setting: str
    claims: tuple[Claim, ...]
    seconds: float = 0.0


class Reproductions(Model):
    """Everything that one command reproduced."""

    version: Literal[1] = 1
    created: str
    command: str
    seeds: int
    seconds: float
    versions: dict[str, str]
    results: tuple[Reproduction, ...]


def markdown(record: Reproductions) -> str:
    """A table of claims, how they were judged, and each publication's settings and figures."""
    rows = [
        ("" if i else inline(r.source), inline(c.claim), f"**{c.outcome}**: {inline(c.because)}")
        for r in record.results
        for i, c in enumerate(r.claims)
    ]
    parts = [table(("publication", "claim", "here"), rows), inline(METHOD)]
    for r in record.results:
        parts += [f"### {inline(r.name)}", f"{inline(r.source)}. {inline(r.setting)}"]
        for c in r.claims:
            parts.append(f"**{inline(c.claim)}**: {c.outcome}. Confirmed if {inline(c.rule)}.")
            parts.append(table(HEADS, (map(inline, f.cells()) for f in c.figures)))
    parts.append(inline(f"{record.command}: {record.seeds} seeds, {record.seconds:.0f} s, {record.created}"))
    return encodable("\n\n".join(parts) + "\n")
