"""`flashproof selftest`: the mutants must turn the gate red, the clean kernels must leave it green."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..problems import FAIL, PASS, UsageError
from .folder import Place, made, writing

if TYPE_CHECKING:
    from ...reports.kills import SelfTest
    from ..settings import Progress

_folder = Place(file_okay=False)


@click.command()
@click.option("--quick", is_flag=True, help="Let a mutant go when it is found out; at least 90 % must be.")
@click.option("--mutant", "names", multiple=True, metavar="NAME", help="Only these. [default: all]")
@click.option(
    "--clean",
    "clean_cases",
    type=click.IntRange(0),
    default=None,
    metavar="N",
    help="Cases that each clean kernel is put to. [default: 96; quick: 4]",
)
@click.option("--only-clean", is_flag=True, help="No mutants: how often does the gate cry wolf?")
@click.option("--without", default=None, metavar="CHECK", help="Judge as if there were no such check.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=None, help="Processes. [default: one per core]")
@click.option("--out", type=_folder, default=None, help="Folder for selftest.json, .html and .md.")
@click.option("--show", default=None, metavar="NAME", help="Print a mutant's difference from the kernel, and stop.")
@click.option("--write", "target", type=_folder, default=None, help="Write every mutant as a kernel file, and stop.")
def selftest(
    quick: bool, names: tuple[str, ...], clean_cases: int | None, only_clean: bool, without: str | None, seed: int,
    workers: int | None, out: Path | None, show: str | None, target: Path | None,
) -> None:  # fmt: skip
    """Deliberate faults of the bundled kernels must fail the gate, and kernels that are right must pass it.

    Exit code 0: all mutants are killed (with --quick: nine in ten), every check is the only one to kill some mutant,
    and no clean kernel is flagged.  Otherwise 1.
    """
    from ...kernels.mutants import MUTANTS, diff_of

    unknown = [n for n in (*names, *([show] if show else [])) if n not in MUTANTS]
    if unknown:
        raise UsageError(f"no mutant {unknown[0]!r}; there are {', '.join(MUTANTS)}")
    if show:
        click.echo(diff_of(MUTANTS[show]))
        return
    if target:
        click.echo(f"{_written(target)} files in {target}")
        return

    from ..gates import GATES
    from ..selftest import problems_of
    from .console import Console
    from .console_selftest import print_selftest

    if without is not None and without not in GATES:
        raise UsageError(f"no check {without!r}; the gate has {', '.join(GATES)}")
    if out is not None:
        made(out)
    console = Console()
    with console.progress() as progress:
        result = _tried(
            quick or only_clean, None if only_clean else names, clean_cases, seed, workers or os.cpu_count() or 1,
            progress,
        )  # fmt: skip
    if without is not None:
        result = result.without(without)
    if out is not None:
        _recorded(out, result)
    said = problems_of(result)
    print_selftest(console.out, result, said)
    sys.exit(FAIL if said else PASS)


def _tried(
    quick: bool, names: tuple[str, ...] | None, clean_cases: int | None, seed: int, workers: int, progress: Progress
) -> SelfTest:  # fmt: skip
    from ...reports.kills import SelfTest
    from ..circumstances import command_line, versions
    from ..gates import GATES
    from ..pool import Pool
    from ..selftest import LIMIT, clean_tried, mutants_tried, peers_asked, rules
    from ..worker import prepare

    start = time.perf_counter()
    prepare("flash", "cpu")
    pool = Pool("flash", "cpu", workers, LIMIT)
    try:
        mutants = [] if names is None else mutants_tried(pool, seed, progress, quick=quick, names=names)
        if not quick:
            mutants = peers_asked(pool, mutants, progress)
        count = clean_cases if clean_cases is not None else 4 if quick else 96
        clean = clean_tried(pool, seed, progress, cases=count, exact=not quick) if count and not names else []
    finally:
        pool.stop()
    return SelfTest(
        created=datetime.now(UTC).isoformat(timespec="seconds"), command=command_line(), seed=seed, quick=quick,
        seconds=round(time.perf_counter() - start, 1), gates=GATES, mutants=tuple(mutants), clean=tuple(clean),
        peers=() if quick else tuple(rules()), versions=versions("flashproof", "torch", "triton"),
    )  # fmt: skip


def _written(target: Path) -> int:
    """Every mutant as a file that a user could have written, for `flashproof verify FILE:attention`."""
    from ...kernels.mutants import MUTANTS, source_of

    made(target)
    with writing(target):
        for name, mutant in MUTANTS.items():
            (target / f"{name.replace('-', '_')}.py").write_text(source_of(mutant), encoding="utf-8")
    return len(MUTANTS)


def _recorded(out: Path, result: SelfTest) -> None:
    from ...reports.record import write_json_atomic
    from ...reports.rows import write_text_atomic
    from ...reports.selftest_page import render
    from ...reports.selftest_summary import markdown

    with writing(out):
        write_json_atomic(out / "selftest.json", result)
        for name, text in (("selftest.html", render(result)), ("selftest.md", markdown(result))):
            write_text_atomic(out / name, text)
