"""A selftest as one HTML file that needs nothing else, and as two Markdown tables for a README.

`selftest.html` is the page, `style.css` its looks as a report's, `selftest.css` what tables of marks need beyond
that, `selftest.js` sorts their rows; without it they stand in groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import jinja2
from markupsafe import Markup

from . import words
from .kills import QUICK_SHARE, CleanResult, Kill, MutantResult, SelfTest
from .markdown import inline, table

MAX_BYTES = 500_000
_HERE = Path(__file__).parent
#: rows of a matrix, and characters of a text: the first that fits into MAX_BYTES is used
_BUDGETS = ((600, 600), (250, 250), (80, 120), (20, 60))
_PHASES = {
    "survey": "after {} of the survey",
    "hunt": "after {} of the hunt",
    "exact": "in exact arithmetic, after {}",
    "sample": "in a sample of {}",
}


def render(selftest: SelfTest) -> str:
    """The page, at most about MAX_BYTES long."""
    page = ""
    for rows, characters in _BUDGETS:
        page = words.encodable(_page(selftest, rows, characters))
        if len(page.encode()) <= MAX_BYTES:
            break
    return page


def _page(selftest: SelfTest, rows: int, characters: int) -> str:
    return _template().render(
        selftest=selftest,
        top=_top(selftest),
        kills=_kill_matrix(selftest, rows),
        checks=_checks(selftest),
        missed=_missed_matrix(selftest, rows),
        peers=_peers(selftest),
        clean=[(c, words.clip("; ".join(c.alarms), characters), bound(c)) for c in selftest.clean[:rows]],
        clean_left_out=max(0, len(selftest.clean) - rows),
        short=lambda text: words.clip(text, characters),
        name=lambda text: words.clip(text, min(characters, 80)),
    )


# ----------------------------------------------------------------------------------------------- the first screen


@dataclass(frozen=True, slots=True)
class _Top:
    """The verdict, and the figures under it."""

    tone: str
    word: str
    sentence: str
    failures: list[str]  # each in a line
    killed: int
    subtle: int
    subtle_killed: int
    survey: tuple[int, float, int] | None  # mutants found in the survey, median and largest number of cases
    hunt: tuple[int, float, int] | None
    hunted: bool
    clean_cases: int
    alarmed: int  # clean kernels that were flagged


def _top(selftest: SelfTest) -> _Top:
    survivors, alarmed = selftest.survivors(), [c for c in selftest.clean if c.alarms]
    killed = len(selftest.mutants) - len(survivors)
    failures = [f"No check kills {_some([m.name for m in survivors])}."] if survivors else []
    failures += [f"{c.name} is clean and was flagged: {'; '.join(c.alarms)}." for c in alarmed[:5]]
    failures += [f"{len(alarmed) - 5} more clean kernels were flagged."] if len(alarmed) > 5 else []
    needless = [] if selftest.quick else [g for g, names in selftest.alone().items() if not names]
    if needless:
        failures.append(
            f"No mutant needs {_some(needless)}: nobody would miss {'it' if len(needless) == 1 else 'them'}."
        )
    if alarmed:
        word = f"{words.plural(len(alarmed), 'clean kernel')} flagged"
    elif survivors:
        word = f"{words.plural(len(survivors), 'mutant')} {'survives' if len(survivors) == 1 else 'survive'}"
    elif needless:
        word = f"{words.plural(len(needless), 'check')} that no mutant needs"
    else:
        word = "Every mutant killed" if selftest.mutants else "No mutant tried"
    subtle = [m for m in selftest.mutants if m.subtle]
    let_off = selftest.quick and not alarmed and killed >= QUICK_SHARE * len(selftest.mutants)
    return _Top(
        tone="open" if not selftest.mutants or (survivors and let_off) else "bad" if failures else "good",
        word=word,
        sentence=sentence(selftest),
        failures=[words.clip(f, 1000) for f in failures],
        killed=killed,
        subtle=len(subtle),
        subtle_killed=sum(bool(m.kills) for m in subtle),
        survey=_firsts(m.first("survey") for m in selftest.mutants),
        hunt=_firsts(m.hunted for m in selftest.mutants),
        hunted=any(m.hunted is not None for m in selftest.mutants),
        clean_cases=sum(c.cases for c in selftest.clean),
        alarmed=len(alarmed),
    )


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


def _firsts(counts: Iterable[int | None]) -> tuple[int, float, int] | None:
    found = [n for n in counts if n is not None]
    return (len(found), median(found), max(found)) if found else None


def _some(names: Sequence[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


# ---------------------------------------------------------------------------------------------------- matrices


@dataclass(frozen=True, slots=True)
class _Square:
    """A mark, its class, and what it says."""

    kind: str
    said: str


@dataclass(frozen=True, slots=True)
class _Line:
    """A mutant's row."""

    mutant: MutantResult
    first: int | None  # case of the first detection in the survey
    later: str  # what it says where the survey did not find it
    squares: list[_Square | None]


@dataclass(frozen=True, slots=True)
class _Matrix:
    """Groups of rows; per column its name, a total, and a part of it."""

    columns: list[str]
    groups: list[tuple[str, list[_Line]]]
    totals: list[int]
    parts: list[int]
    left_out: int


def columns_of(selftest: SelfTest) -> list[str]:
    """The gates, and any other check that failed on a mutant."""
    others = {k.check for m in selftest.mutants for k in m.kills} - set(selftest.gates)
    return [*selftest.gates, *sorted(others)]


def _kill_matrix(selftest: SelfTest, limit: int) -> _Matrix:
    columns = columns_of(selftest)
    alone = {c: [m.name for m in selftest.mutants if m.killers() == {c}] for c in columns}

    def rank(m: MutantResult) -> tuple[int, list[bool]]:
        n = len(m.killers())
        group = min(n, 1) if selftest.quick else next(i for i, most in enumerate((0, 1, 3, n)) if n <= most)
        return group, [c not in m.killers() for c in columns]

    killed = (
        ("Killed",) if selftest.quick else ("One check alone kills these", "Two or three checks do", "Four or more do")
    )
    titles = ("No check kills these", *killed)
    ranked = sorted(selftest.mutants, key=rank)
    return _Matrix(
        columns=columns,
        groups=_grouped([(titles[rank(m)[0]], _kill_line(m, columns, quick=selftest.quick)) for m in ranked[:limit]]),
        totals=[sum(c in m.killers() for m in selftest.mutants) for c in columns],
        parts=[len(alone[c]) for c in columns],
        left_out=max(0, len(ranked) - limit),
    )


def _kill_line(m: MutantResult, columns: Sequence[str], *, quick: bool) -> _Line:
    kind = "only" if not quick and len(m.killers()) == 1 else "kill"
    squares = [_Square(kind, _told(m, c)) if c in m.killers() else None for c in columns]
    others = [p for p in ("exact", "sample", "hunt") if any(k.phase == p for k in m.kills)]
    return _Line(m, m.first("survey"), others[0] if others else "", squares)


def _told(m: MutantResult, check: str) -> str:
    return f"{check}: " + "; ".join(_when(k) for k in m.kills if k.check == check)


def _when(kill: Kill) -> str:
    found = _PHASES[kill.phase].format(words.plural(kill.cases, "problem" if kill.phase == "exact" else "case"))
    return found + (f" ({', '.join(kill.tensors)})" if kill.tensors else "")


def _grouped(lines: Sequence[tuple[str, _Line]]) -> list[tuple[str, list[_Line]]]:
    found: dict[str, list[_Line]] = {}
    for title, line in lines:
        found.setdefault(title, []).append(line)
    return list(found.items())


def asked(selftest: SelfTest) -> bool:
    """Whether peers' rules were applied."""
    return any(m.accepted_by for m in selftest.mutants)


def _missed_matrix(selftest: SelfTest, limit: int) -> _Matrix | None:
    if not asked(selftest):
        return None
    names = _peer_names(selftest)

    def title(m: MutantResult) -> str:
        n = len(m.accepted_by)
        if not n:
            return "Every peer rejects these"
        if n == len(names):
            return "Every peer accepts these"
        return "At least half of the peers accept these" if 2 * n >= len(names) else "Fewer than half accept these"

    def key(m: MutantResult) -> tuple[int, list[bool]]:
        return -len(m.accepted_by), [p not in m.accepted_by for p in names]

    ranked = sorted(selftest.mutants, key=key)
    lines = []
    for m in ranked[:limit]:
        ours = None if m.kills else _Square("missed", "")
        peers = [_missed(selftest, m, p) if p in m.accepted_by else None for p in names]
        lines.append((title(m), _Line(m, None, "", [ours, *peers])))
    accepted = [[m for m in selftest.mutants if p in m.accepted_by] for p in names]
    return _Matrix(
        columns=["flashproof", *names],
        groups=_grouped(lines),
        totals=[len(selftest.survivors()), *map(len, accepted)],
        parts=[
            sum(m.subtle for m in selftest.survivors()),
            *(sum(m.subtle for m in found) for found in accepted),
        ],
        left_out=max(0, len(ranked) - limit),
    )


def _missed(selftest: SelfTest, m: MutantResult, peer: str) -> _Square:
    if compares(selftest, peer, m):
        return _Square("missed", "")
    return _Square("unseen", f"{peer} does not compare {', '.join(m.tensors)}")


def compares(selftest: SelfTest, peer: str, m: MutantResult) -> bool:
    """Whether a peer looks at any tensor that a mutant spoils."""
    tensors = [set(p.tensors) for p in selftest.peers if p.name == peer]
    return not m.tensors or not tensors or bool(tensors[0] & set(m.tensors))


# ------------------------------------------------------------------------------------------------ checks and peers


@dataclass(frozen=True, slots=True)
class _Check:
    """What a check is good for."""

    name: str
    meaning: str
    kills: int
    alone: list[MutantResult]
    example: MutantResult | None


def _checks(selftest: SelfTest) -> list[_Check]:
    found = []
    for c in columns_of(selftest):
        killed = [m for m in selftest.mutants if c in m.killers()]
        alone = [m for m in killed if len(m.killers()) == 1]
        ranked = sorted(killed, key=lambda m: (len(m.killers()), not m.subtle))
        found.append(_Check(c, words.meaning(c), len(killed), alone, ranked[0] if ranked else None))
    return found


@dataclass(frozen=True, slots=True)
class _Peer:
    """How many mutants a peer's rule accepts; the first is flashproof, which has no source."""

    name: str
    accepts: int
    unseen: int  # of them in tensors that it does not compare
    subtle: list[str]  # of them; first those that it compares, and that fewest others accept
    tensors: tuple[str, ...]
    source: str
    differs: str


def _peer_names(selftest: SelfTest) -> list[str]:
    known = [p.name for p in selftest.peers]
    return [*known, *sorted({p for m in selftest.mutants for p in m.accepted_by} - set(known))]


def _peers(selftest: SelfTest) -> list[_Peer]:
    """Flashproof, then the peers, those that accept fewest first."""
    survivors = selftest.survivors()
    subtle = [m.name for m in survivors if m.subtle]
    found = [_Peer("flashproof", len(survivors), 0, subtle, words.TENSORS, "", "")]
    if not asked(selftest):
        return found
    rules = {p.name: p for p in selftest.peers}
    others = []
    for name in _peer_names(selftest):
        accepted = [m for m in selftest.mutants if name in m.accepted_by]
        seen = [m for m in accepted if compares(selftest, name, m)]
        ranked = sorted(accepted, key=lambda m: (m not in seen, len(m.accepted_by)))
        subtle = [m.name for m in ranked if m.subtle]
        tensors, source, differs = (r.tensors, r.source, r.differs) if (r := rules.get(name)) else ((), "", "")
        others.append(_Peer(name, len(accepted), len(accepted) - len(seen), subtle, tensors, source, differs))
    return found + sorted(others, key=lambda p: p.accepts)


# ---------------------------------------------------------------------------------------------------- Markdown


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
        for i, p in enumerate(_peers(selftest))
    )
    head = ("peer", f"mutants it accepts, of {len(selftest.mutants)}", "subtle ones among them, for example")
    return words.encodable(table(head, rows))


def checks_table(selftest: SelfTest) -> str:
    """Per check the mutants that it kills, and those that no other does."""
    rows = (
        (
            inline(c.name),
            f"{c.kills}",
            "–" if selftest.quick else f"{len(c.alone)}",
            f"{inline(c.example.name)}: {inline(c.example.what)}" if c.example else "–",
        )
        for c in _checks(selftest)
    )
    return words.encodable(table(("check", "kills", "only it kills", "for example"), rows))


def markdown(selftest: SelfTest) -> str:
    """The sentence and both tables."""
    parts = (inline(sentence(selftest)), checks_table(selftest), peers_table(selftest))
    return words.encodable("\n\n".join(filter(None, parts)) + "\n")


# ------------------------------------------------------------------------------------------------ the template


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "ratio": words.ratio,
        "count": words.count,
        "duration": words.duration,
    }
    environment.globals |= {
        "plural": words.plural,
        "meaning": words.meaning,
        "style": _file("style.css") + _file("selftest.css"),
        "script": _file("selftest.js"),
    }
    return environment.get_template("selftest.html")


def _file(name: str) -> Markup:
    return Markup((_HERE / name).read_text(encoding="utf-8"))
