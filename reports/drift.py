"""The record of a comparison of two runs, paired by case, and its Markdown and annotations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from .markdown import inline, table
from .model import Model
from .record import Allowed, Check, Number, Run, Tensor
from .rows import encodable
from .summary import allowed_table
from .words import number, plural

SCHEMA = 1

State = Literal["worse", "suspect", "unchanged", "better", "too few"]
_SIGNS = {"worse": "❌", "suspect": "❔", "better": "✅"}
_CELLS = 50


class Side(Model):
    """One of the two runs."""

    folder: str
    implementation: str
    profile: str
    seed: int
    created: str
    device: str
    commit: str = ""
    versions: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def of(cls, run: Run) -> Side:
        """What its manifest says."""
        m = run.manifest
        commit = f"{m.git.commit}{'-dirty' if m.git.dirty else ''}" if m.git else ""
        return cls(
            folder=str(run.folder), implementation=m.implementation, profile=m.profile, seed=m.seed, created=m.created,
            device=m.device, commit=commit, versions=m.versions,
        )  # fmt: skip


class DriftCell(Model):
    """RMS error of HEAD / that of BASE: geometric mean over n cases with its interval, and what became of it.

    `suspect` lies beyond its margin alone, but not among so many cells.  `nonfinite`: cases where HEAD has NaN or
    infinity that BASE has not; such a cell is worse, whatever its ratio.
    """

    dtype: str
    tensor: Tensor
    regime: str
    n: int
    status: State
    ratio: Number | None = None
    low: Number | None = None
    high: Number | None = None
    margin: Number
    p_worse: Number = 1.0  # adjusted for the number of cells (Holm)
    p_better: Number = 1.0
    nonfinite: int = 0
    cause: str = ""

    @property
    def name(self) -> str:
        return f"{self.tensor} {self.dtype} {self.regime}"

    @property
    def told(self) -> str:
        """Ratio, interval, n and new non-finite values, in words."""
        parts = []
        if self.ratio is not None:
            interval = f" [{number(self.low)}, {number(self.high)}]" if self.n > 1 else ""
            parts.append(f"RMS error {number(self.ratio)} times the base's{interval}, n = {self.n}")
        if self.nonfinite:
            parts.append(f"NaN or infinity in {plural(self.nonfinite, 'case')} where the base is finite")
        return "; ".join(parts)


class Pairing(Model):
    """How the cases of the two surveys fit: the same recipe and the same inputs."""

    paired: int = 0
    only_base: int = 0
    only_head: int = 0
    refused: int = 0  # of those only in BASE: HEAD says that it does not take them
    other_inputs: int = 0  # the same recipe gave other inputs: another version
    missing: tuple[Tensor, ...] = ()  # tensors that BASE gives, and HEAD in no case


class Drift(Model):
    """BASE against HEAD: compare.json."""

    version: int = Field(default=SCHEMA, alias="schema")
    base: Side
    head: Side
    verdict: Literal["worse", "no worse"]
    sentence: str
    pairing: Pairing
    confidence: float
    min_cases: int
    cells: tuple[DriftCell, ...]  # worst first
    failing: tuple[Check, ...] = ()  # checks that pass in BASE and fail in HEAD
    repaired: tuple[Check, ...] = ()  # and the reverse
    allowed: tuple[Allowed, ...] = ()  # of HEAD, beyond the default budgets

    def of(self, *statuses: State) -> list[DriftCell]:
        """The cells with one of these statuses, in the record's order."""
        return [c for c in self.cells if c.status in statuses]


def markdown(drift: Drift) -> str:
    """The comparison as a page for a CI step."""
    sign = "❌" if drift.verdict == "worse" else "✅"
    blocks = [f"## {sign} flashproof compare: {drift.verdict}", inline(drift.sentence), _sides(drift)]
    for title, checks in (("Checks that fail now", drift.failing), ("Checks that pass now", drift.repaired)):
        if checks:
            rows = ((inline(c.name), c.tensor or "all", inline(c.detail)) for c in checks)
            blocks += [f"### {title}", table(("check", "tensor", "detail"), rows)]
    changed = drift.of("worse", "suspect", "better")
    if changed:
        blocks += ["### Cells", table(("", "tensor", "dtype", "regime", "cases", "RMS error / base's", "interval",
                                       "cause"), map(_row, changed[:_CELLS]))]  # fmt: skip
    if len(changed) > _CELLS:
        blocks.append(f"and {plural(len(changed) - _CELLS, 'more cell')} in compare.json.")
    if drift.allowed:
        blocks.append(allowed_table(drift.allowed))
    return encodable("\n\n".join(blocks) + "\n\n")


def _row(c: DriftCell) -> Iterable[str]:
    ratio = number(c.ratio) + (f", non-finite in {plural(c.nonfinite, 'case')}" if c.nonfinite else "")
    interval = "–" if c.ratio is None else f"{number(c.low)} to {number(c.high)}"
    return (
        f"{_SIGNS[c.status]} {c.status}", c.tensor, inline(c.dtype), inline(c.regime), str(c.n), ratio, interval,
        inline(c.cause) or "–",
    )  # fmt: skip


def _sides(drift: Drift) -> str:
    rows = (
        (name, inline(s.implementation), inline(f"{s.profile}, seed {s.seed}"), inline(s.commit[:12]) or "–",
         inline(s.device), inline(s.created))
        for name, s in (("base", drift.base), ("head", drift.head))
    )  # fmt: skip
    return table(("", "implementation", "profile", "commit", "device", "measured"), rows)


def annotated(drift: Drift) -> list[tuple[str, str]]:
    """(title, message) of each thing that is worse, worst first."""
    said = [(f"compare {c.name}", f"{c.told}{'; ' + c.cause if c.cause else ''}") for c in drift.of("worse")]
    return said + [
        (f"compare {c.name} {c.tensor or ''}".strip(), f"passes in the base, fails now: {c.detail}")
        for c in drift.failing
    ]
