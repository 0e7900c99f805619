"""`flashproof compare`: two recorded runs, paired by case."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..problems import FAIL, PASS, InterruptedRunError, NothingError, UsageError
from .folder import Place, made, writing
from .gate import budgets_option
from .github import tell

if TYPE_CHECKING:
    from ...reports.drift import Drift, DriftCell, Pairing
    from ...reports.record import Check, Run
    from ..budgets import Budgets

_folder = Place()


@click.command()
@click.argument("base_folder", metavar="BASE", type=_folder)
@click.argument("head_folder", metavar="HEAD", type=_folder)
@budgets_option
@click.option("--ratchet", is_flag=True, help="Tighten ratio_margin in the --budgets file where HEAD is surely better.")
@click.option("--out", type=_folder, default=None, help="Folder for compare.json and compare.md.")
def compare(base_folder: Path, head_folder: Path, budgets_file: Path | None, ratchet: bool, out: Path | None) -> None:
    """Two recorded runs, paired by case: is HEAD less accurate than BASE, or does it fail what BASE passes?

    Both must have surveyed the same cases: the same seed, profile and number of cases.  Exit code 1 if a cell (dtype x
    tensor x regime) is worse or a check fails that passed, 0 if not, 5 if too few cases pair to tell.

    With --ratchet, cells whose error surely shrank may not grow back: the file of --budgets gets an exception for each,
    never a looser one.  It stays as it is if anything is worse.
    """
    from ...reports import record
    from ...reports.drift import annotated, markdown
    from ...reports.rows import write_text_atomic
    from ...reports.summary import workflow_commands
    from .. import budgets
    from .console import Console
    from .console_drift import print_drift

    if ratchet and budgets_file is None:
        raise UsageError("--ratchet: give the file that it is to tighten with --budgets")
    limits = budgets.load(budgets_file)
    base, head = record.load(base_folder), record.load(head_folder)
    drift = compared(base, head, limits)
    page = markdown(drift)
    if out is not None:
        made(out)
        with writing(out):
            record.write_json_atomic(out / "compare.json", drift)
            write_text_atomic(out / "compare.md", page)
    console = Console()
    print_drift(console.out, drift)
    console.allowed(drift.allowed)
    tell(page, workflow_commands(annotated(drift)))
    if drift.verdict == "worse":
        if ratchet:
            click.echo(f"{budgets_file} stays as it is: HEAD is worse")
        sys.exit(FAIL)
    for run in (base, head):
        if run.manifest.interrupted:
            raise InterruptedRunError(f"{run.folder} was interrupted: what pairs is no worse, but it is not the whole")
    if ratchet and budgets_file is not None:
        _ratchet(budgets_file, drift, base, head, limits)
    sys.exit(PASS)


def _ratchet(file: Path, drift: Drift, base: Run, head: Run, limits: Budgets) -> None:
    """Tighten the file where the comparison is better; say from what to what, and whether the base fails by it.

    It does not where it improved by less than an interval is wide, for the gate does not pair.
    """
    from ...reports.rows import write_text_atomic
    from ...reports.words import plural
    from .. import budgets
    from ..drift import TOGETHER
    from ..judge import judge, real_regime
    from ..ratchet import exceptions, tightened

    name = head.manifest.implementation
    cells = tightened(drift.cells, judge(head.rows, limits, name).cells, limits, name)
    if not cells:
        better = [c for c in drift.of("better") if c.regime != TOGETHER]
        why = "none of its margins is above what they reach" if better else "none is surely better"
        click.echo(f"{file} stays as it is: {plural(len(better), 'cell')} better, {why}")
        return
    text = budgets.text_of(file)
    text += "" if not text or text.endswith("\n") else "\n"
    text += exceptions(cells, name)
    tighter = budgets.checked(budgets.entries_of(text, file), file)  # before anything is written
    with writing(file):
        write_text_atomic(file.resolve(), text)
    before = judge(base.rows, tighter, name).cells
    failing = {(c.tensor, c.dtype, real_regime(c.regime)) for c in before if c.status == "fail"}
    for c in cells:
        fails = (c.tensor, c.dtype, c.regime) in failing
        click.echo(f"{file}: {c}; the base {'fails by it' if fails else 'has too few cases to fail by it'}")


def compared(base: Run, head: Run, budgets: Budgets) -> Drift:
    """The comparison.

    Raises:
        NothingError: no case of one is a case of the other, or no cell has enough of them to tell anything.
    """
    from ...reports.drift import Drift, Side
    from ..budgets import beyond_default
    from ..drift import TOGETHER, cause, drift_cells, pairing_of, turned

    pairing = pairing_of(base.rows, head.rows)
    if not pairing.paired:
        raise NothingError(_nothing_pairs(base, head, pairing))
    cells = [
        c.model_copy(update={"cause": cause(c.dtype, c.tensor, base.verdict.algebra, head.verdict.algebra)})
        if c.status == "worse" else c
        for c in drift_cells(base.rows, head.rows, budgets, head.manifest.implementation)
    ]  # fmt: skip
    before, after = _checks(base, budgets), _checks(head, budgets)
    failing, repaired = turned(before, after), turned(after, before)
    worse = any(c.status == "worse" for c in cells) or bool(failing)
    if not worse and all(c.status == "too few" for c in cells if c.regime != TOGETHER):
        raise NothingError(
            f"{pairing.paired} cases of {base.folder} and {head.folder} pair, but no cell (dtype x tensor x regime) "
            f"has the {budgets.drift.min_cases} that it takes to compare: survey more cases in both"
        )
    return Drift(
        base=Side.of(base), head=Side.of(head), verdict="worse" if worse else "no worse",
        sentence=_sentence(cells, failing, pairing), pairing=pairing, confidence=budgets.drift.confidence,
        min_cases=budgets.drift.min_cases, cells=tuple(cells), failing=tuple(failing),
        allowed=beyond_default(budgets, head.manifest.implementation),
        repaired=tuple(c.model_copy(update={"status": "pass", "detail": f"was: {c.detail}"}) for c in repaired),
    )  # fmt: skip


def _checks(run: Run, budgets: Budgets) -> tuple[Check, ...]:
    """Of both runs under the same budgets: what they were judged by when they were made may differ."""
    from ..judge import judge

    return judge(run.rows, budgets, run.manifest.implementation, algebra=run.verdict.algebra).checks


def _nothing_pairs(base: Run, head: Run, pairing: Pairing) -> str:
    if pairing.other_inputs:
        return (
            f"{base.folder} and {head.folder}: the same {pairing.other_inputs} cases gave other inputs, so another "
            "version drew them: measure both with one version of flashproof"
        )
    one, other = base.manifest, head.manifest
    why = ", ".join(
        f"{name} {getattr(one, name)} and {getattr(other, name)}"
        for name in ("seed", "profile")
        if getattr(one, name) != getattr(other, name)
    )
    return (
        f"no surveyed case of {base.folder} is one of {head.folder}{f' ({why})' if why else ''}: measure both with the "
        "same seed and profile"
    )


def _sentence(cells: list[DriftCell], failing: list[Check], pairing: Pairing) -> str:
    from ...reports.words import plural

    told = [c for c in cells if c.status != "too few"]
    worse, better, suspect = ([c for c in cells if c.status == s] for s in ("worse", "better", "suspect"))
    parts = [f"{plural(pairing.paired, 'case')} paired"]
    if worse:
        parts.append(f"worse in {len(worse)} of {plural(len(told), 'cell')}, most in {worse[0].name}: {worse[0].told}")
    else:
        parts.append(f"worse in none of {plural(len(told), 'cell')}")
    if suspect:
        parts.append(f"{len(suspect)} more beyond the margin alone, but not among so many")
    if better:
        least = better[-1]
        parts.append(f"better in {len(better)}, most in {least.name}: {least.told}")
    if failing:
        names = ", ".join(f"{c.name} ({c.tensor or 'the call'})" for c in failing)
        parts.append(f"checks that passed and fail now: {names}")
    if few := len(cells) - len(told):
        parts.append(f"{plural(few, 'cell')} with too few cases to tell")
    return "; ".join([parts[0], *_unpaired(pairing), *parts[1:]]) + "."


def _unpaired(pairing: Pairing) -> list[str]:
    said = []
    if pairing.missing:
        said.append(f"the head gives no {', '.join(pairing.missing)}, which the base gives")
    if pairing.only_base:
        refused = f", of which it refuses {pairing.refused}" if pairing.refused else ""
        said.append(f"the head gave no result in {pairing.only_base} cases of the base's{refused}")
    if pairing.only_head:
        said.append(f"the base gave none in {pairing.only_head} of the head's")
    if pairing.other_inputs:
        said.append(f"{pairing.other_inputs} left out, for their inputs are not the same")
    return said
