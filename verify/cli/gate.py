"""`flashproof gate` and `flashproof report`: what a recorded run says, under which budgets, as which files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..problems import FAIL, NOTHING, PASS, InterruptedRunError, UsageError
from .folder import Place, writing
from .github import tell

if TYPE_CHECKING:
    from ...reports.record import Check, Finding

_folder = Place()
VERDICT_CODES = {"pass": PASS, "fail": FAIL, "nothing-measured": NOTHING}

budgets_option = click.option(
    "--budgets", "budgets_file", type=_folder, default=None, help="TOML file that overrides the default budgets."
)


@click.command()
@click.argument("run_folder", metavar="RUN", type=_folder)
@budgets_option
@click.option("--out", type=_folder, default=None, help="Folder for the record and the reports as judged now.")
@click.option("--force", is_flag=True, help="Replace a run that is already in that folder.")
def gate(run_folder: Path, budgets_file: Path | None, out: Path | None, force: bool) -> None:
    """Judge a recorded run against budgets; RUN stays as it is.

    A run that was interrupted may fail, but cannot pass.
    """
    from ...reports import record
    from .. import budgets
    from ..judge import judge
    from ..run import prepare_folder
    from ..verdict import verdict_of
    from .console import Console

    limits = budgets.load(budgets_file)
    loaded = record.load(run_folder)
    name, algebra = loaded.manifest.implementation, loaded.verdict.algebra
    judgement = judge(loaded.rows, limits, name, loaded.verdict.not_covered, algebra)
    findings = _still(loaded.findings, judgement.checks)
    verdict = verdict_of(judgement, findings, name, limits, loaded.rows, loaded.verdict.seconds, algebra)
    if out is not None:
        if out.resolve() == run_folder.resolve():
            raise UsageError(f"--out {out} is the run itself, which stays as it is: give another folder")
        prepare_folder(out, force=force)
        judged = replace(loaded, folder=out, verdict=verdict, findings=tuple(findings), judged=True)
        with writing(out):
            record.write(judged)
            write_reports(out)
    Console().verdict(verdict, out or run_folder)
    code = VERDICT_CODES[verdict.verdict]
    if loaded.manifest.interrupted and code == PASS:
        raise InterruptedRunError(
            f"{run_folder} was interrupted: what was measured passes, but it is not the whole; run it again"
        )
    sys.exit(code)


def _still(findings: Sequence[Finding], checks: Sequence[Check]) -> list[Finding]:
    """The findings of tensors that still fail, less those of checks that are let off."""
    failing = {c.tensor for c in checks if c.status == "fail"}
    let_off = {(c.name, c.tensor) for c in checks if c.status == "waived"}
    return [
        f
        for f in findings
        if (f.check, f.tensor) not in let_off and (f.tensor in failing or (failing and None in failing))
    ]


@click.command()
@click.argument("folders", metavar="RUN...", nargs=-1, required=True, type=_folder)
@click.option("--out", type=Place(dir_okay=False), default=None,
              help="HTML file. [default: report.html in the first folder]")  # fmt: skip
def report(folders: tuple[Path, ...], out: Path | None) -> None:
    """Records to one HTML report; several runs stand side by side.

    A folder may also hold what `bench` or `silicon` wrote, in place of a run or beside one.
    """
    from ...reports import hardware, html, record
    from ...reports.rows import write_text_atomic
    from ...reports.words import size

    found = {folder: hardware.load(folder) for folder in folders}
    runs = [record.load(f) for f in folders if found[f] is None or (f / "manifest.json").is_file()]
    target = out or folders[0] / "report.html"
    try:
        write_text_atomic(target, html.render(runs, [r for r in found.values() if r is not None]))
    except OSError as e:
        raise UsageError(f"{target} cannot be written: {e.strerror or e}") from e
    click.echo(f"{target}, {size(target.stat().st_size)}")


def write_reports(folder: Path) -> None:
    """The files that are made from a record, beside it; on GitHub, its summary and annotations too."""
    from ...reports import html, junit, record, summary
    from ...reports.rows import write_text_atomic

    loaded = record.load(folder)
    page = summary.summary(loaded)
    write_text_atomic(folder / "report.html", html.render([loaded]))
    write_text_atomic(folder / "junit.xml", junit.junit(loaded))
    write_text_atomic(folder / "summary.md", page)
    tell(page, summary.github_annotations(loaded))
