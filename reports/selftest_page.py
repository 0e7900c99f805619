"""A selftest as one HTML file that needs nothing else.

`selftest.html` is the page, `style.css` its looks as a report's, `selftest.css` what tables of marks need beyond
that, `selftest.js` sorts their rows; without it they stand in groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

import jinja2

from . import words
from .kill_matrix import kill_matrix, missed_matrix
from .kills import QUICK_SHARE, SelfTest
from .tallies import bound, checks, peers, sentence, theory
from .templates import fitting, style, template, text_of

MAX_BYTES = 500_000
#: rows of a matrix, and characters of a text: the first that fits into MAX_BYTES is used
_BUDGETS = ((600, 600), (250, 250), (80, 120), (20, 60))


def render(selftest: SelfTest) -> str:
    """The page, at most about MAX_BYTES long."""
    return fitting((_page(selftest, rows, characters) for rows, characters in _BUDGETS), MAX_BYTES)


def _page(selftest: SelfTest, rows: int, characters: int) -> str:
    return _template().render(
        selftest=selftest,
        top=_top(selftest),
        kills=kill_matrix(selftest, rows),
        checks=checks(selftest),
        missed=missed_matrix(selftest, rows),
        peers=peers(selftest),
        clean=[(c, words.clip("; ".join(c.alarms), characters), bound(c)) for c in selftest.clean[:rows]],
        theory=theory(selftest),
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


def _firsts(counts: Iterable[int | None]) -> tuple[int, float, int] | None:
    found = [n for n in counts if n is not None]
    return (len(found), median(found), max(found)) if found else None


def _some(names: Sequence[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


@cache
def _template() -> jinja2.Template:
    return template("selftest.html", style=style("selftest.css"), script=text_of("selftest.js"))
