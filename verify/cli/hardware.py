"""`flashproof bench` and `flashproof silicon`: what only a GPU can show, as a record and as tables."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..problems import UsageError
from .folder import Place, made, writing

if TYPE_CHECKING:
    from ...reports.hardware import Bench, Silicon

_out = click.option("--out", type=Place(file_okay=False), default=None,
                    help="Folder for the record and its tables.")  # fmt: skip
_DTYPES = click.Choice(["fp16", "bf16"])
_BESIDE = ("flash", "eager", "sdpa-math", "sdpa-flash", "sdpa-cudnn", "sdpa-efficient", "flex")
_BIASED = ("flash", "variant:divide-by-unrounded-sum", "sdpa-flash")


@click.command()
@click.argument("implementations", nargs=-1, metavar="[IMPL]...")
@click.option("--dtype", "dtypes", type=_DTYPES, multiple=True, default=("bf16", "fp16"), show_default=True)
@click.option("--dim", "dims", type=click.IntRange(1, 256), multiple=True, default=(64, 128), show_default=True)
@click.option("--length", "lengths", type=click.IntRange(16), multiple=True, show_default=True,
              default=(512, 1024, 2048, 4096, 8192, 16384, 32768, 65536))  # fmt: skip
@_out
def bench(implementations: tuple[str, ...], dtypes: tuple[Any, ...], dims: tuple[int, ...], lengths: tuple[int, ...],
          out: Path | None) -> None:  # fmt: skip
    """Times, memory and errors on a GPU, forward and backward, beside torch's backends and standard attention (eager).

    16384 tokens in 2048 / D heads, as in the FlashAttention papers; medians of repeated calls.  Where an implementation
    runs out of memory, refuses, hangs or dies, that stands in its place.
    """
    _need_gpu()
    if out is not None:
        made(out)

    from ...reports.hardware import Bench, Speed, bench_markdown
    from ..bench import LIMIT, measured, problems, speed_of
    from ..pool import Pool
    from ..problems import LostError
    from ..worker import prepare
    from .console import Console

    names = [prepare(name, "cuda").name for name in implementations or _BESIDE]
    pools = {name: Pool(name, "cuda", 1, LIMIT) for name in names}  # one call at a time: they share the device
    tasks = [(name, case) for case in problems(dtypes, dims, lengths) for name in pools]
    results: list[Speed] = []

    def finish() -> None:
        record = Bench(**_circumstances(), results=tuple(results))
        _hand_over(record, bench_markdown(record), out, "bench")

    try:
        with Console().progress() as progress:
            for n, (name, case) in enumerate(tasks, start=1):
                try:
                    results.append(pools[name].call(measured, case))
                except LostError as e:
                    results.append(speed_of(name, case, str(e)))
                progress("bench", n, len(tasks))
    except KeyboardInterrupt:
        finish()  # what there is
        raise
    finally:
        for pool in pools.values():
            pool.stop()
    finish()


@click.command()
@click.argument("implementation", metavar="[IMPL]", default="flash")
@click.option("--cases", type=click.IntRange(1), default=500, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--workers", type=click.IntRange(1, 1024), default=None, help="Processes. [default: one per core]")
@_out
def silicon(implementation: str, cases: int, seed: int, workers: int | None, out: Path | None) -> None:
    """A Triton kernel on the GPU and interpreted, on the same cases; then sums of one sign, and exact integers.

    Interpreted faithfully (ieee) and with a tensor core's truncated sums (tensor_core), in tiles of 32 x 32; on the GPU
    in the same tiles, if the function has an option for them, and in its own.
    """
    _need_gpu()
    if out is not None:
        made(out)

    import os

    from ...reports.hardware import Silicon, silicon_markdown
    from ..pool import Pool
    from ..problems import LostError
    from ..profiles import PROFILES
    from ..silicon import bias_of, cases_of, distances_of, exact_of, summed
    from ..worker import prepare
    from .console import Console

    loaded = prepare(implementation, "cuda")
    chosen = list(cases_of(loaded, seed, cases))
    pool, found, done = Pool(loaded.name, "cuda", workers or os.cpu_count() or 1, PROFILES["ci"].case_limit), [], 0
    try:
        with Console().progress() as progress:
            for n, (_, answer) in enumerate(pool.calls(distances_of, chosen), start=1):
                if not isinstance(answer, LostError):
                    found += answer
                    done += bool(answer)
                progress("silicon", n, len(chosen))
    finally:
        pool.stop()
    biased = [prepare(name, "cuda") for name in _BIASED] if implementation == "flash" else [loaded]
    record = Silicon(
        **_circumstances(), implementation=loaded.name, cases=done, distances=summed(found),
        biases=tuple(bias_of(i, "cuda", d, n) for d in ("fp16", "bf16") for n in (4096, 16384, 65536) for i in biased),
        exact=tuple(exact_of(loaded, "cuda", d) for d in ("fp16", "bf16", "fp32")),
    )  # fmt: skip
    _hand_over(record, silicon_markdown(record), out, "silicon")


def _need_gpu() -> None:
    """Raises UsageError if there is none."""
    import torch

    if not torch.cuda.is_available():
        raise UsageError("torch sees no CUDA device, and nothing measured on a CPU stands in for one")


def _circumstances() -> dict[str, Any]:
    """When, how and on what."""
    import platform

    from ..circumstances import command_line, gpu, versions

    card = gpu()
    found = {"python": platform.python_version()} | versions("flashproof", "torch", "triton") | {"cuda": card["cuda"]}
    return dict(
        created=datetime.now(UTC).isoformat(timespec="seconds"), command=command_line(_without_out(sys.argv[1:])),
        driver=card["driver"], device=card["gpu"], versions=found,
    )  # fmt: skip


def _without_out(arguments: list[str]) -> list[str]:
    """A command's arguments but for where its record goes, which changes nothing in it."""
    pairs = zip(["", *arguments], arguments, strict=False)
    return [x for before, x in pairs if before != "--out" and x != "--out" and not x.startswith("--out=")]


def _hand_over(record: Bench | Silicon, text: str, out: Path | None, name: str) -> None:
    from ...reports.record import write_json_atomic
    from ...reports.rows import write_text_atomic

    if out is not None:
        with writing(out):
            write_json_atomic(out / f"{name}.json", record)
            write_text_atomic(out / f"{name}.md", text)
    click.echo(text)
