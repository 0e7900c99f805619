"""`flashproof reproduce`: what publications say of attention's numerics, measured again."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...reports.published import METHOD
from .folder import Place, made, writing

if TYPE_CHECKING:
    from ...reports.published import Reproductions
    from ..settings import Progress

_PARTS = ("golden", "fa3", "fa4", "bias", "tiling", "predictors")  # of `reproduce.PARTS`, which takes seconds to import


@click.command(epilog=METHOD)
@click.argument("parts", nargs=-1, metavar=f"[{'|'.join((*_PARTS, 'all'))}]...", type=click.Choice((*_PARTS, "all")))
@click.option(
    "--seeds", type=click.IntRange(2, 1000), default=10, show_default=True, help="Over which a range is taken."
)
@click.option(
    "--out", type=Place(file_okay=False), default=None,
    help="Folder for reproduce.json and reproduce.md.",
)  # fmt: skip
def reproduce(parts: tuple[str, ...], seeds: int, out: Path | None) -> None:
    """What publications say of attention's numerics, measured again: confirmed, under which assumption, or not.

    golden: Golden et al. 2024, deviation tenfold.  fa3: FlashAttention-3, Table 3.  fa4: FlashAttention-4, polynomials
    and rescaling.  bias: Qiu and Yao 2025, errors that share a sign.  tiling: is FlashAttention bit by bit, or at least
    as accurately, standard attention?  predictors: this project's own claim, that roundings predict the error.  All of
    them by default, in two minutes or so.  Each claim comes with the rule that decides it, the published figure, and
    ours with its range over the seeds.

    Exit code 0 whenever it could be measured: papers are judged here, not kernels.
    """
    if out is not None:
        made(out)

    from ...reports.published import markdown
    from ...reports.record import write_json_atomic
    from ...reports.rows import write_text_atomic
    from .console import Console
    from .console_reproduce import print_reproductions

    console = Console()
    chosen = _PARTS if not parts or "all" in parts else tuple(p for p in _PARTS if p in parts)
    with console.progress() as progress:
        record = _measured(chosen, seeds, progress)
    if out is not None:
        with writing(out):
            write_json_atomic(out / "reproduce.json", record)
            write_text_atomic(out / "reproduce.md", markdown(record))
    print_reproductions(console.out, record)


def _measured(parts: tuple[str, ...], seeds: int, progress: Progress) -> Reproductions:
    from ...reports.published import Reproductions
    from ..circumstances import command_line, versions
    from ..reproduce import PARTS
    from ..worker import prepare

    prepare("flash", "cpu")
    start, results = time.perf_counter(), []
    for name in parts:
        progress(name, 0, 1)
        before = time.perf_counter()
        result = PARTS[name](seeds)
        results.append(result.model_copy(update={"seconds": round(time.perf_counter() - before, 1)}))
        progress(name, 1, 1)
    return Reproductions(
        created=datetime.now(UTC).isoformat(timespec="seconds"), command=command_line(), seeds=seeds,
        seconds=round(time.perf_counter() - start, 1), results=tuple(results),
        versions=versions("flashproof", "torch", "triton"),
    )  # fmt: skip
