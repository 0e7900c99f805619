"""The command line.  Exit codes are pytest's: 0 pass, 1 fail, 2 interrupted, 3 internal, 4 usage, 5 nothing measured.

Imports are inside the commands: torch takes seconds, and a misspelt option need not wait for it.
"""

from __future__ import annotations

import atexit
import errno
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from .. import interrupts, processes
from ..problems import (
    FAIL,
    INTERNAL,
    INTERRUPTED,
    NOTHING,
    PASS,
    USAGE,
    FlashproofError,
    InterruptedRunError,
    UsageError,
)
from .budget import budget
from .compare import compare
from .folder import Place
from .gate import VERDICT_CODES, budgets_option, gate, report, write_reports
from .hardware import bench, silicon
from .reproduce import reproduce
from .selftest import selftest

if TYPE_CHECKING:
    from ..case import DType
    from ..pool import Pool

F = TypeVar("F", bound=Callable[..., Any])


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def apply(f: F) -> F:
        for option in reversed(options):
            f = option(f)
        return f

    return apply


def _a_number(_: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Nan is beyond no limit."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is not a number of seconds", param=param)
    return value


_folder = Place()
_device_option = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
_case_limit_option = click.option(
    "--case-limit", type=click.FloatRange(0.1), default=None, callback=_a_number,
    help="Seconds after which a kernel is killed. [default: the profile's, or longer if it is compiled first]",
)  # fmt: skip
_measuring = _options(
    click.option("--profile", type=click.Choice(["quick", "ci", "deep"]), default="quick", show_default=True,
                 help="How much to measure."),
    click.option("--out", type=_folder, default=None, help="Folder for the record. [default: flashproof-run-IMPL]"),
    budgets_option,
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the survey and the hunt."),
    click.option("--workers", type=click.IntRange(1, 1024), default=None, help="Processes. [default: one per core]"),
    click.option("--cases", type=click.IntRange(1), default=None, help="Of the survey. [default: the profile's]"),
    click.option("--examples", type=click.IntRange(0), default=None,
                 help="Of the hunt, per dtype. [default: the profile's]"),
    _device_option,
    _case_limit_option,
    click.option("--force", is_flag=True, help="Replace a run that is already in the folder."),
)  # fmt: skip


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="flashproof")
def cli() -> None:
    """Verify attention kernels: correctness and numerical stability, gated by error budgets.

    IMPL is a built-in name (flash, standard, sdpa-math, sdpa-flash, ...), package.module:function, or file.py:function,
    where the function has the signature of torch's scaled_dot_product_attention or of flash_attn_func.
    """


@cli.command()
@click.argument("impl")
@_measuring
def verify(impl: str, **options: Any) -> None:
    """Survey, hunt, run in exact arithmetic, judge, report."""
    _measure(impl, ("survey", "hunt", "exact"), **options)


@cli.command()
@click.argument("impl")
@_measuring
def survey(impl: str, **options: Any) -> None:
    """The stratified independent sample alone."""
    _measure(impl, ("survey",), **options)


@cli.command()
@click.argument("impl")
@_measuring
def hunt(impl: str, **options: Any) -> None:
    """The search for the worst case alone."""
    _measure(impl, ("hunt",), **options)


def _measure(
    impl: str, phases: tuple[str, ...], *, profile: str, out: Path | None, budgets_file: Path | None, seed: int,
    workers: int | None, cases: int | None, examples: int | None, device: str, case_limit: float | None, force: bool,
) -> NoReturn:  # fmt: skip
    from dataclasses import replace

    from .. import budgets
    from ..profiles import PROFILES
    from .console import Console

    limits = budgets.load(budgets_file)  # before torch is imported
    chosen = _device(device)

    from ..circumstances import command_line
    from ..isolation import LONGER, compiles
    from ..run import prepare_folder, run
    from ..settings import Settings
    from ..worker import prepare

    console = Console()
    implementation = prepare(impl, chosen)
    usual = PROFILES[profile]
    size = replace(
        usual, survey=cases or usual.survey, hunt=usual.hunt if examples is None else examples,
        case_limit=case_limit or usual.case_limit * (LONGER if compiles() else 1),
    )  # fmt: skip
    folder = out or Path("flashproof-run-" + "".join(c if c.isalnum() else "-" for c in impl).strip("-"))
    prepare_folder(folder, force=force)
    settings = Settings(
        spec=impl, profile=size, budgets=limits, seed=seed, device=chosen, out=folder, command=command_line(),
        workers=workers or os.cpu_count() or 1, phases=phases,
    )  # fmt: skip
    with interrupts.deferred():
        try:
            with console.progress() as progress:
                verdict = run(settings, implementation, progress)
        except KeyboardInterrupt:
            write_reports(folder)
            message = f"interrupted; what was measured is in {folder}: flashproof gate {folder}"
            raise InterruptedRunError(message) from None
        write_reports(folder)
    console.verdict(verdict, folder)
    sys.exit(VERDICT_CODES[verdict.verdict])


def _device(device: str) -> str:
    """The device that is meant; where that is a CPU, what workers need is imported from now on."""
    if device == "cpu" or (device == "auto" and not Path("/proc/driver/nvidia").exists()):
        processes.begin()
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device; use --device cpu, which interprets Triton kernels")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


@cli.command()
@click.argument("case")
@click.argument("impl", required=False)
@_device_option
@_case_limit_option
def replay(case: str, impl: str | None, device: str, case_limit: float | None) -> None:
    """One case again, printed in full.  CASE is JSON, or a file with a case or a finding."""
    from ..case import parse_case
    from ..regimes import REGIMES

    recipe = parse_case(case)
    if recipe.regime not in REGIMES:
        raise UsageError(f"not a case: unknown regime {recipe.regime!r}; there are {', '.join(REGIMES)}")

    chosen = _device(device)

    from ..worker import prepare
    from .console import Console

    implementation = prepare(impl or _implementation_of(case), chosen)
    with _one_worker(implementation.name, chosen, case_limit) as pool:
        result = pool.one(recipe, "hunt", statistical=True, relations=100)
    Console().result(result, implementation.name)
    if result.status == "unsupported":
        sys.exit(NOTHING)
    sys.exit(FAIL if any(c.name != "batch-invariance" for c in result.failed) else PASS)


@contextmanager
def _one_worker(spec: str, device: str, case_limit: float | None) -> Iterator[Pool]:
    """A kernel that dies or hangs does so in there; what it prints is shown."""
    from ..pool import Pool
    from ..profiles import PROFILES

    pool = Pool(spec, device, 1, case_limit or PROFILES["quick"].case_limit, quiet=False)
    try:
        yield pool
    finally:
        pool.stop()


def _implementation_of(case: str) -> str:
    """The implementation named in a finding's replay line; `flash` for a bare case."""
    import shlex

    try:
        data = json.loads(case if case.strip().startswith("{") else Path(case).read_text())
        words = shlex.split(data["replay"])
        return words[3]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return "flash"


@cli.command()
@click.argument("impl")
@_device_option
@_case_limit_option
def probe(impl: str, device: str, case_limit: float | None) -> None:
    """What really runs here and by which conventions: measured, not believed."""
    chosen = _device(device)

    from ..probe import probe as measure
    from ..worker import prepare
    from .console import Console

    implementation = prepare(impl, chosen)
    with _one_worker(implementation.name, chosen, case_limit) as pool:
        facts = pool.call(measure)
    Console().probe(implementation.name, facts)


@cli.command()
@click.argument("impl")
@click.option("--case", "case_text", default=None, help="One case (JSON, or a file) instead of the usual problems.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the problems.")
@click.option("--workers", type=click.IntRange(1, 1024), default=None, help="Processes. [default: one per core]")
@_case_limit_option
def exact(impl: str, case_text: str | None, seed: int, workers: int | None, case_limit: float | None) -> None:
    """Its source in exact arithmetic: rationals, then 50, 100 and 200 digits, against the definition of attention.

    A Triton kernel's own source is run, unmodified, forward and backward.  Exit code 0 if all is equal, 1 if anything
    differs, 5 if nothing could be compared: no Triton kernel, or one that does what no exact arithmetic can.
    """
    processes.begin()

    from ...reports.record import Algebra
    from ..algebra import answer
    from ..exact import compare
    from ..exact_problems import problems_of
    from ..pool import Pool
    from ..profiles import PROFILES
    from ..worker import prepare
    from .console import Console

    implementation = prepare(impl, "cpu")
    console = Console()
    pool = Pool(impl, "cpu", workers or os.cpu_count() or 1, case_limit or PROFILES["ci"].case_limit)
    try:
        problems = problems_of(implementation, pool, seed, case_text)
        with console.progress() as progress:
            algebra = Algebra(comparisons=tuple(compare(pool, problems, progress)))
    finally:
        pool.stop()
    console.algebra(algebra, answer(algebra))
    statuses = {c.status for c in algebra.comparisons}
    sys.exit(FAIL if "different" in statuses else PASS if "equal" in statuses else NOTHING)


@cli.command()
@click.argument("impl")
@click.option("--dtype", type=click.Choice(["fp16", "bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--samples", type=click.IntRange(1), default=4, show_default=True, help="Cases to average over.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@_case_limit_option
def attribution(impl: str, dtype: DType, samples: int, seed: int, case_limit: float | None) -> None:
    """Where its rounding error arises: the kernel's own source with one rounding site on at a time, else float64."""
    processes.begin()
    from dataclasses import replace

    from ..attribution import attribution as attribute
    from ..exact_problems import gradients_of
    from ..profiles import PROFILES
    from ..worker import prepare
    from .console import Console

    implementation = prepare(impl, "cpu")
    with _one_worker(implementation.name, "cpu", case_limit or PROFILES["ci"].case_limit) as pool:
        implementation = replace(implementation, has_backward=gradients_of(pool))
        shares = attribute(pool, implementation, [dtype], seed, samples)
    Console().shares(shares)
    sys.exit(PASS if shares else NOTHING)


@cli.command()
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--bits", type=click.IntRange(128, 4096), default=192, show_default=True, help="Precision of the balls.")
def truth(seed: int, bits: int) -> None:
    """The float64 truth against certified balls, over every regime: how straight the yardstick is."""
    from ..yardstick import yardstick
    from .console import Console

    rows = yardstick(seed, bits)
    Console().yardstick(rows)
    sys.exit(PASS if all(r.straight for r in rows) else FAIL)


cli.add_command(bench)
cli.add_command(budget)
cli.add_command(compare)
cli.add_command(gate)
cli.add_command(report)
cli.add_command(reproduce)
cli.add_command(selftest)
cli.add_command(silicon)


def main() -> None:
    """The `flashproof` script: every error is one line and the right exit code."""
    from ...reports.record import RecordError

    interrupts.heed()
    os.environ.pop("TRITON_INTERPRET", None)  # before triton is imported: its own interpreter cannot do bf16
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.devnull)  # else it leaves a folder where the user is
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as e:
        sys.exit(e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _end("interrupted", INTERRUPTED)
    except click.ClickException as e:
        where = f" (see `{e.ctx.command_path} --help`)" if isinstance(e, click.UsageError) and e.ctx else ""
        _end(f"{e.format_message()}{where}", USAGE)
    except RecordError as e:
        _end(str(e), USAGE)
    except FlashproofError as e:
        _end(str(e), e.exit_code)
    except BrokenPipeError:  # nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(PASS)
    except Exception as e:  # noqa: BLE001  (an error of ours is one line as well)
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
            _end("no space is left where the record is written; use another --out", USAGE)
        if os.environ.get("FLASHPROOF_DEBUG"):
            traceback.print_exc()
        what = f"internal error: {type(e).__name__}: {e}"
        _end(f"{what} (set FLASHPROOF_DEBUG=1 for the traceback, and please report it)", INTERNAL)
    finally:
        atexit.register(interrupts.ignore)  # Python's own end takes a while


def _end(message: str, code: int) -> NoReturn:
    click.echo(f"flashproof: {' '.join(message.split())}", err=True)
    sys.exit(code)
