"""`flashproof budget`: which budgets hold, where each comes from, and whether a file of them can be used."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..problems import UsageError
from .folder import Place
from .gate import budgets_option

if TYPE_CHECKING:
    from rich.console import Console

    from ..budgets import Allowance, Budgets
    from ..waivers import Waiver

_folder = Place()
_SECTIONS_OF_LISTS = ("exception", "waiver")


@click.group()
def budget() -> None:
    """The error budgets: what holds and why, and whether a file of them can be used."""


@budget.command()
@budgets_option
def show(budgets_file: Path | None) -> None:
    """Every entry with where it comes from, then exceptions and waivers."""
    from .. import budgets
    from .console import Console

    limits = budgets.load(budgets_file)
    own = {} if budgets_file is None else budgets.file_entries(budgets_file)
    out = Console().out
    _print_entries(out, budgets.default_entries(), own, str(budgets_file))
    _print_exceptions(out, limits.exceptions)
    _print_waivers(out, limits.waivers)


@budget.command()
@click.option("--implementation", default="*", show_default=True, help="Whom it is for: a name or a pattern.")
@click.option("--cases", type=click.IntRange(40), default=400, show_default=True, help="Of the survey.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=Place(dir_okay=False), default=None,
              help="TOML file. [default: the terminal]")  # fmt: skip
def derive(implementation: str, cases: int, seed: int, out: Path | None) -> None:
    """Budgets for a kernel of the flash arrangement, from what its roundings predict: no kernel is run.

    A ratio to standard attention's error per tensor and kind of input, most of them far below the default's 1.1.
    """
    from dataclasses import replace

    from ...reports.rows import write_text_atomic
    from .. import budgets
    from ..circumstances import command_line
    from ..derive import derived, toml
    from ..profiles import PROFILES
    from ..worker import prepare
    from .console import Console

    if '"' in implementation or "\\" in implementation:
        raise UsageError(f"--implementation {implementation}: a name or a pattern, without quotes and backslashes")
    prepare("flash", "cpu")
    with Console().progress() as progress:
        cells = derived(replace(PROFILES["quick"], survey=cases), seed, progress)
    text = toml(cells, budgets.load(), implementation, command_line())
    if out is None:
        click.echo(text, nl=False)
        return
    write_text_atomic(out, text)
    click.echo(str(out))


@budget.command()
@click.argument("file", type=_folder)
def check(file: Path) -> None:
    """Whether FILE can be given with --budgets: exit code 0, or 4 and one line that says what is wrong."""
    from .. import budgets

    limits = budgets.load(file)
    own = budgets.file_entries(file)
    entries = [f"{s}.{k}" for s, v in own.items() if isinstance(v, dict) for k in v if k != "reason"]
    click.echo(f"{file} can be used: sets {', '.join(entries) or 'no entry'}; {_counted(limits)}")


def _counted(limits: Budgets) -> str:
    from ...reports.words import plural

    expired = sum(_expired(w) for w in limits.waivers)
    text = f"{plural(len(limits.exceptions), 'exception')}, {plural(len(limits.waivers), 'waiver')}"
    return f"{text}, of which {expired} expired: the gate fails until they are gone" if expired else text


def _expired(waiver: Waiver) -> bool:
    return date.today() > waiver.expires


def _print_entries(out: Console, defaults: dict[str, Any], own: dict[str, Any], source: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("entry", "value", "from", "default", "reason"):
        table.add_column(column, overflow="fold", justify="right" if column in ("value", "default") else "left")
    for section, entries in defaults.items():
        if section in _SECTIONS_OF_LISTS:
            continue
        if not isinstance(entries, dict):
            table.add_row(section, str(own.get(section, entries)), source if section in own else "default")
            continue
        stated = own.get(section, {})
        for key, usual in entries.items():
            if key not in stated:
                table.add_row(f"{section}.{key}", str(usual), "default")
                continue
            reason = escape(str(stated.get("reason", "")))
            table.add_row(f"{section}.{key}", f"[bold]{stated[key]}[/]", escape(source), str(usual), reason)
    out.print(table)


def _print_exceptions(out: Console, exceptions: tuple[Allowance, ...]) -> None:
    from rich.markup import escape

    if not exceptions:
        out.print("\nno exceptions")
    for e in exceptions:
        out.print(f"\n[bold]exception[/] {escape(str(e))}", soft_wrap=True)
        out.print(f"  {escape(e.reason)}", soft_wrap=True)


def _print_waivers(out: Console, waivers: tuple[Waiver, ...]) -> None:
    from rich.markup import escape

    if not waivers:
        out.print("\nno waivers")
    for w in waivers:
        until = f"[red]EXPIRED on {w.expires}[/]" if _expired(w) else f"until {w.expires}"
        out.print(f"\n[bold]waiver[/] {escape(w.implementation)}: {escape(str(w))} {until}", soft_wrap=True)
        out.print(f"  {escape(w.reason)}", soft_wrap=True)
