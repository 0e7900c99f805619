"""The kernels of a selftest while it lasts: what has been found of each, and which are right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from ..kernels.mutants import VARIANTS
from ..reports.kills import Kill, Phase
from ..reports.record import Row
from .case import Case
from .evaluate import Result
from .fits import Fits
from .gates import GATES


@dataclass(slots=True)
class Subject:
    """A kernel while it is being tried."""

    spec: str
    cases: int = 0
    rows: list[Row] = field(default_factory=list)
    kills: dict[tuple[str, Phase], tuple[int, set[str]]] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)
    worst: float | None = None  # see `MutantResult`
    fits: Fits = field(default_factory=Fits)

    def found(self, check: str, tensor: str | None, phase: Phase, cases: int, detail: str = "") -> None:
        """A check failed; the first time counts."""
        known = self.kills.setdefault((check, phase), (cases, set()))
        known[1].add(tensor or "")
        if detail and len(self.details) < 3:
            self.details.append(f"{check} of {tensor}: {detail}" if tensor else f"{check}: {detail}")

    def killed(self) -> tuple[Kill, ...]:
        """For the record."""
        return tuple(
            Kill(check=check, tensors=tuple(sorted(t for t in tensors if t)), phase=phase, cases=n)
            for (check, phase), (n, tensors) in sorted(self.kills.items(), key=lambda item: item[1][0])
        )

    def note(self, result: Result, number: int) -> None:
        """What a case says by itself, and its rows."""
        self.cases = max(self.cases, number)
        self.rows += result.rows
        for check in result.failed:
            if check.name in GATES:
                self.found(check.name, check.tensor, "survey", number, f"{check.detail} ({result.case})")
        if result.status not in ("ok", "unsupported"):
            self.found("returns", None, "survey", number, str(result.rows[0].message))

    def compare(self, sound: Subject) -> None:
        """`worst`: its largest error / the larger of standard attention's and the rounded truth's, on normal inputs.

        None where an error is infinite, and where all errors are the sound kernel's: then the fault is not in them.
        """
        ratios: dict[str, float] = defaultdict(float)
        self.worst = None
        if self._errors() == sound._errors():
            return
        for r in self._plain():
            usual = max(r.standard_max or 0.0, r.rounded_max or 0.0)
            if r.nonfinite or not usual:
                return
            ratios[str(r.tensor)] = max(ratios[str(r.tensor)], (r.kernel_max or 0.0) / usual)
        self.worst = max(ratios.values(), default=None)

    def _plain(self) -> list[Row]:
        """On normal inputs, of tensors that are not small."""
        return [
            r for r in self.rows if r.regime == "normal" and r.tensor not in (None, "lse") and (r.elements or 0) >= 1000
        ]

    def _errors(self) -> list[tuple[str | None, float | None, float | None, float | None]]:
        return [(r.tensor, r.kernel_max, r.kernel_rms, r.kernel_bias) for r in self._plain()]


@dataclass(frozen=True, slots=True)
class Clean:
    """A kernel that is right, except where a reason is given to leave a case out."""

    spec: str
    what: str
    avoids: Callable[[Case], bool] = lambda case: False  # noqa: ARG005  (none)
    reason: str = ""


CLEAN = (
    Clean("flash", "The bundled kernel."),
    *(Clean(f"variant:{v.name}", v.what) for v in VARIANTS.values()),
    Clean("sdpa-math", "torch's SDPA, math backend.",
          lambda case: case.N == 0, "no keys, where torch 2.13 may give NaN"),
    Clean("sdpa-flash", "torch's SDPA, flash backend on the CPU.",
          lambda case: case.N == 0 or (case.mask.causal and case.softmax_scale <= 0),
          "no keys, or a causal mask with a scale of 0 or below, where torch 2.13 may give NaN"),
)  # fmt: skip
