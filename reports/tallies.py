"""A selftest counted: in a sentence, per check the mutants that it kills, per peer those that it accepts."""

from __future__ import annotations

from dataclasses import dataclass

from . import words
from .kills import CleanResult, Fit, MutantResult, SelfTest
from .record import TENSORS


def sentence(selftest: SelfTest) -> str:
    """What was killed, and how often the clean kernels were flagged."""
    killed = [m for m in selftest.mutants if m.kills]
    subtle, cases = sum(m.subtle for m in killed), sum(c.cases for c in selftest.clean)
    said = f"{len(killed)} of {words.plural(len(selftest.mutants), 'mutant')} killed, {subtle} of them subtle; "
    kernels = words.plural(len(selftest.clean), "clean kernel")
    if alarmed := sum(bool(c.alarms) for c in selftest.clean):
        return f"{said}{alarmed} of {kernels} flagged in {words.plural(cases, 'case')}."
    if not cases:
        return f"{said}no clean kernel was tried."
    said += f"no alarm in {words.plural(cases, 'case')} of {kernels}"
    return f"{said}: less than {words.number(3 / cases, 2)} per case at 95 %." if cases > 3 else f"{said}."


def bound(clean: CleanResult) -> float | None:
    """The rate of alarms that so many cases without one leave possible at 95 %; None where they bound nothing."""
    return None if clean.alarms or clean.cases <= 3 else 3 / clean.cases


def columns_of(selftest: SelfTest) -> list[str]:
    """The gates, and any other check that failed on a mutant."""
    others = {k.check for m in selftest.mutants for k in m.kills} - set(selftest.gates)
    return [*selftest.gates, *sorted(others)]


@dataclass(frozen=True, slots=True)
class Theory:
    """A tensor in one dtype: how near clean kernels come to its bound, and how well the bundled kernel is predicted."""

    tensor: str
    dtype: str
    cases: int  # of all clean kernels
    beyond: int
    nearest: float
    slack: tuple[float, float] | None  # the least and the largest of any kernel
    predicted: Fit | None  # the bundled kernel's


def theory(selftest: SelfTest) -> list[Theory]:
    """Tensors first, then dtypes; nothing where no clean kernel was tried."""
    fits = [(c.name, f) for c in selftest.clean for f in c.fits]
    found = []
    for tensor in TENSORS:
        for dtype in words.order([f.dtype for _, f in fits], words.DTYPES):
            own = [(name, f) for name, f in fits if (f.tensor, f.dtype) == (tensor, dtype)]
            if own:
                slack = [f.slack for _, f in own if f.slack is not None]
                flash = next((f for name, f in own if name == "flash" and f.predicted), None)
                found.append(Theory(
                    tensor, dtype, sum(f.cases for _, f in own), sum(f.beyond for _, f in own),
                    max(f.nearest for _, f in own), (min(slack), max(slack)) if slack else None, flash,
                ))  # fmt: skip
    return found


@dataclass(frozen=True, slots=True)
class Check:
    """What a check is good for."""

    name: str
    meaning: str
    kills: int
    alone: list[MutantResult]
    example: MutantResult | None


def checks(selftest: SelfTest) -> list[Check]:
    """In the order of the gates."""
    found = []
    for c in columns_of(selftest):
        killed = [m for m in selftest.mutants if c in m.killers()]
        alone = [m for m in killed if len(m.killers()) == 1]
        ranked = sorted(killed, key=lambda m: (len(m.killers()), not m.subtle))
        found.append(Check(c, words.meaning(c), len(killed), alone, ranked[0] if ranked else None))
    return found


def asked(selftest: SelfTest) -> bool:
    """Whether peers' rules were applied."""
    return any(m.accepted_by is not None for m in selftest.mutants)


def compares(selftest: SelfTest, peer: str, m: MutantResult) -> bool:
    """Whether a peer looks at any tensor that a mutant spoils."""
    tensors = [set(p.tensors) for p in selftest.peers if p.name == peer]
    return not m.tensors or not tensors or bool(tensors[0] & set(m.tensors))


@dataclass(frozen=True, slots=True)
class Peer:
    """How many mutants a peer's rule accepts; the first is flashproof, which has no source."""

    name: str
    accepts: int
    unseen: int  # of them in tensors that it does not compare
    subtle: list[str]  # of them; first those that it compares, and that fewest others accept
    tensors: tuple[str, ...]
    source: str
    differs: str


def peer_names(selftest: SelfTest) -> list[str]:
    """Those whose rules are known, then any other that a mutant names."""
    known = [p.name for p in selftest.peers]
    return [*known, *sorted({p for m in selftest.mutants for p in m.accepted_by or ()} - set(known))]


def peers(selftest: SelfTest) -> list[Peer]:
    """Flashproof, then the peers, those that accept fewest first."""
    survivors = selftest.survivors()
    subtle = [m.name for m in survivors if m.subtle]
    found = [Peer("flashproof", len(survivors), 0, subtle, TENSORS, "", "")]
    if not asked(selftest):
        return found
    rules = {p.name: p for p in selftest.peers}
    others = []
    for name in peer_names(selftest):
        accepted = [m for m in selftest.mutants if name in (m.accepted_by or ())]
        seen = [m for m in accepted if compares(selftest, name, m)]
        ranked = sorted(accepted, key=lambda m: (m not in seen, len(m.accepted_by or ())))
        subtle = [m.name for m in ranked if m.subtle]
        tensors, source, differs = (r.tensors, r.source, r.differs) if (r := rules.get(name)) else ((), "", "")
        others.append(Peer(name, len(accepted), len(accepted) - len(seen), subtle, tensors, source, differs))
    return found + sorted(others, key=lambda p: p.accepts)
