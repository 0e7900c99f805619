"""The record of a selftest: what kills which mutant, which peer's rule accepts it, and what the clean kernels did."""

from __future__ import annotations

from typing import Literal

from .model import Model

Phase = Literal["survey", "hunt", "exact", "sample"]
QUICK_SHARE = 0.9  # of the mutants that a quick selftest must kill


class Kill(Model):
    """A check that fails: for which tensors, and after how many cases of its phase that was known."""

    check: str
    tensors: tuple[str, ...]
    phase: Phase
    cases: int


class MutantResult(Model):
    """What became of one mutant."""

    name: str
    mirrors: str
    what: str
    tensors: tuple[str, ...]  # that a finding may rightly name; none: the call itself is at fault
    kills: tuple[Kill, ...]
    cases: int  # of the survey that it was put to
    worst: float | None  # largest error / standard's largest, on normal inputs; None: infinite, or not changed
    hunted: int | None = None  # after how many cases the hunt found it out
    accepted_by: tuple[str, ...] | None = None  # the peers whose rule it passes; None: they were not asked

    @property
    def subtle(self) -> bool:
        """Its largest error on normal inputs is within twice standard attention's."""
        return self.worst is not None and self.worst <= 2.0

    def killers(self) -> set[str]:
        """The checks that fail."""
        return {k.check for k in self.kills}

    def first(self, phase: Phase) -> int | None:
        """After how many cases of a phase it was found out."""
        return min((k.cases for k in self.kills if k.phase == phase), default=None)


class Fit(Model):
    """How the errors of a right kernel lie to what theory says of them, for one tensor in one dtype."""

    tensor: str
    dtype: str
    cases: int  # of all regimes and masks
    beyond: int  # of them with an element beyond its a priori bound
    nearest: float  # largest error / bound
    slack: float | None  # median over cases of each case's median bound / error; None: all exact
    predicted: int  # cases on normal inputs, unmasked or causal, for which an RMS error was predicted
    ratio: float | None  # geometric mean of their RMS error / predicted RMS error
    low: float | None  # the middle 95 % of the cases
    high: float | None
    largest: float | None  # RMS error / predicted, of any case on inputs drawn independently


class CleanResult(Model):
    """What became of a kernel that is right."""

    name: str
    what: str
    cases: int
    alarms: tuple[str, ...]
    left_out: str = ""  # cases that it was not put to, and why
    fits: tuple[Fit, ...] = ()


class PeerRule(Model):
    """Another project's way to test, as it was applied."""

    name: str
    source: str
    tensors: tuple[str, ...]  # that it compares
    differs: str


class SelfTest(Model):
    """Everything that a selftest found."""

    version: Literal[1] = 1
    created: str
    command: str
    seed: int
    quick: bool
    seconds: float
    versions: dict[str, str]
    gates: tuple[str, ...]  # the checks of which one failing turns the gate red
    mutants: tuple[MutantResult, ...]
    clean: tuple[CleanResult, ...]
    peers: tuple[PeerRule, ...] = ()

    def without(self, check: str) -> SelfTest:
        """The same selftest, were there no such check."""
        mutants = tuple(
            m.model_copy(update={"kills": tuple(k for k in m.kills if k.check != check)}) for m in self.mutants
        )
        return self.model_copy(update={"mutants": mutants, "gates": tuple(g for g in self.gates if g != check)})

    def survivors(self) -> list[MutantResult]:
        """Mutants that no check kills."""
        return [m for m in self.mutants if not m.killers()]

    def alone(self) -> dict[str, list[str]]:
        """Per gate, the mutants that only it kills."""
        return {g: [m.name for m in self.mutants if m.killers() == {g}] for g in self.gates}
