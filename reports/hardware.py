"""Records of runs on a GPU: how fast and how accurate (`flashproof bench`), and how unlike the interpreter (`silicon`).

Both are small enough to be kept in a repository, with the device, the driver and the versions that they hold for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, median
from typing import Annotated, Literal

from pydantic import Field

from .markdown import table
from .model import Model
from .record import read_json

#: bins of a distance in units in the last place: up to so many
ULP_BINS = (0, 1, 2, 8, 64, math.inf)
OUT_OF_MEMORY = "out of memory"
_EAGER_AT = 4096  # the length at which times are compared with standard attention's: it runs out of memory soon after

Pass = Literal["forward", "backward", "both"]
_Size = Annotated[int, Field(gt=0, lt=2**31)]
_Time = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Speed(Model):
    """One implementation on one problem; times in milliseconds, memory in bytes beyond the inputs and gradients."""

    implementation: str
    dtype: str
    causal: bool
    B: _Size
    H: _Size
    N: _Size
    D: _Size
    status: str  # ok, OUT_OF_MEMORY, or why it did not run
    forward: _Time | None = None
    backward: _Time | None = None
    memory: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    errors: dict[str, float] = Field(default_factory=dict)  # RMS error / (unit roundoff * RMS of the truth), by tensor

    @property
    def problem(self) -> tuple[str, bool, int, int]:
        """What the times of different implementations may be compared on."""
        return self.dtype, self.causal, self.D, self.N

    def time(self, which: Pass) -> float | None:
        """Milliseconds; of both passes only where both ran."""
        if which == "both":
            return None if self.forward is None or self.backward is None else self.forward + self.backward
        return self.forward if which == "forward" else self.backward

    def rate(self, which: Pass) -> float | None:
        """Useful TFLOP/s: 2 matrix products forward, 5 backward; under a causal mask half of each."""
        time = self.time(which)
        if time is None:
            return None
        products = {"forward": 2, "backward": 5, "both": 7}[which]
        operations = 2 * products * self.B * self.H * self.N * self.N * self.D
        return float(operations * (0.5 if self.causal else 1.0) / time * 1e-9)


class Bench(Model):
    """The record of `flashproof bench`."""

    schema_: Literal[1] = 1
    created: str
    command: str
    device: str
    driver: str
    versions: dict[str, str]
    results: tuple[Speed, ...]


class Distance(Model):
    """How far results on the GPU are from interpreted ones, summed over cases: of one tensor in one dtype."""

    arithmetic: str  # of the interpreter
    tiles: str  # "the same", or "its own": those that the GPU runs
    tensor: str
    dtype: str
    cases: int
    elements: int
    #: of elements by distance in ulp, in the bins of ULP_BINS
    shares: Annotated[tuple[float, ...], Field(min_length=len(ULP_BINS), max_length=len(ULP_BINS))]
    beside_error: float | None  # RMS of the difference / RMS error of the GPU's result: median over cases


class Bias(Model):
    """Mean relative error of O for values of one sign, which a sum that truncates makes too small."""

    implementation: str
    dtype: str
    N: _Size
    elements: int
    mean: float
    spread: float  # standard deviation of the mean over heads
    rounding: Annotated[float, Field(gt=0)]  # unit roundoff of the dtype


class Exact(Model):
    """Small integers and scale = ln 2, where every step is exact but a division: elements that are not as computed."""

    dtype: str
    elements: int
    mismatches: int


class Silicon(Model):
    """The record of `flashproof silicon`."""

    schema_: Literal[1] = 1
    created: str
    command: str
    implementation: str
    device: str
    driver: str
    versions: dict[str, str]
    cases: int
    distances: tuple[Distance, ...]
    biases: tuple[Bias, ...]
    exact: tuple[Exact, ...]


@dataclass(frozen=True, slots=True)
class Records:
    """What a folder holds of both, at least one."""

    bench: Bench | None
    silicon: Silicon | None


def load(folder: Path) -> Records | None:
    """The records in a folder: `bench.json`, `silicon.json`; None if it has neither.

    Raises:
        RecordError: one of them is damaged or is no such record; one line says which and why.
    """
    bench, silicon = folder / "bench.json", folder / "silicon.json"
    found = Records(
        read_json(bench, Bench, schema="schema_") if bench.is_file() else None,
        read_json(silicon, Silicon, schema="schema_") if silicon.is_file() else None,
    )
    return found if found.bench or found.silicon else None


def circumstances(record: Bench | Silicon) -> str:
    """What a record holds for: the device, its driver, the versions."""
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return f"{record.device}, driver {record.driver}, {versions}"


def _where(record: Bench | Silicon) -> str:
    return f"{circumstances(record)}. `{record.command}`"


def mask_of(causal: bool) -> str:
    """The mask of a problem, in a word."""
    return "causal" if causal else "none"


def _number(x: float | None, digits: str = ".3g") -> str:
    return "" if x is None else format(x, digits)


def bench_markdown(record: Bench) -> str:
    """The tables of a bench: times and accuracy, then ratios, then the memory's growth."""
    heads = ("implementation", "dtype", "mask", "D", "N", "forward ms", "TFLOP/s", "backward ms", "TFLOP/s", "MiB",
             "errors in u: out, dq, dk, dv")  # fmt: skip
    rows = []
    for s in record.results:
        errors = (
            ", ".join(_number(s.errors.get(n), ".2f") or "–" for n in ("out", "dq", "dk", "dv")) if s.errors else ""
        )
        times = (_number(s.forward), _number(s.rate("forward"), ".0f"), _number(s.backward),
                 _number(s.rate("backward"), ".0f"))  # fmt: skip
        size = "" if s.memory is None else f"{s.memory / 2**20:.0f}"
        cells = times if s.status == "ok" else (s.status, "", "", "")
        rows.append((s.implementation, s.dtype, mask_of(s.causal), str(s.D), str(s.N), *cells, size, errors))
    parts = [_where(record), table(heads, rows)]
    if ratios := speedups(record):
        beside = ("beside", "dtype", "mask", "D", "forward", "backward", "lengths")
        parts += ["Time of another implementation over the bundled kernel's, lengths from 2048 on: median (least).",
                  table(beside, _ratio_rows(ratios))]  # fmt: skip
    if over := over_eager(record):
        compared = ("implementation", "dtype", "mask", "D", "forward", "backward")
        parts += [f"Time of standard attention in torch's operators (eager) over another's, N = {_EAGER_AT}:",
                  table(compared, _eager_rows(over))]  # fmt: skip
    if limits := memory_limits(record):
        parts += ["Out of memory, from this length on:",
                  table(("implementation", "dtype", "mask", "D", "N"), _limit_rows(limits))]  # fmt: skip
    if fits := memory_growth(record):
        parts += ["Memory beyond inputs, as a power of N (least squares of the logarithms; 1 is linear):",
                  table(("implementation", "exponent", "lengths"),
                        [(name, f"{p:.2f}", str(n)) for name, (p, n) in fits.items()])]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _ratio_rows(ratios: dict[tuple[str, str, bool, int, str], list[float]]) -> list[tuple[str, ...]]:
    """A row per implementation, dtype, mask and D, those of an implementation together."""
    rows = []
    for name, dtype, causal, d in dict.fromkeys(key[:4] for key in ratios):
        found = [ratios.get((name, dtype, causal, d, which), []) for which in ("forward", "backward")]
        cells = [f"{median(values):.2f} ({min(values):.2f})" if values else "" for values in found]
        rows.append((name, dtype, mask_of(causal), str(d), *cells, str(max(map(len, found)))))
    return sorted(rows, key=lambda row: row[0])


def speedups(record: Bench) -> dict[tuple[str, str, bool, int, str], list[float]]:
    """Times of the others over `flash`'s, by implementation, dtype, mask, D and pass: a value per length >= 2048."""
    ours = {s.problem: s for s in record.results if s.implementation == "flash" and s.status == "ok"}
    found: dict[tuple[str, str, bool, int, str], list[float]] = {}
    for s in record.results:
        mine = ours.get(s.problem)
        if mine is None or s.implementation == "flash" or s.N < 2048:
            continue
        for which in ("forward", "backward"):
            theirs, own = getattr(s, which), getattr(mine, which)
            if theirs and own:
                found.setdefault((s.implementation, s.dtype, s.causal, s.D, which), []).append(theirs / own)
    return found


def over_eager(record: Bench) -> dict[tuple[str, str, bool, int], tuple[float | None, float | None]]:
    """`eager`'s times over those of the others at N = 4096, forward and backward, by implementation, dtype, mask, D."""
    at = [s for s in record.results if s.N == _EAGER_AT]
    eager = {s.problem: s for s in at if s.implementation == "eager"}
    found = {}
    for s in at:
        if s.implementation != "eager" and s.problem in eager:
            own, theirs = (s.forward, s.backward), (eager[s.problem].forward, eager[s.problem].backward)
            ratios = [e / t if e and t else None for e, t in zip(theirs, own, strict=True)]
            if any(ratios):
                found[s.implementation, s.dtype, s.causal, s.D] = (ratios[0], ratios[1])
    return found


def _eager_rows(times: dict[tuple[str, str, bool, int], tuple[float | None, float | None]]) -> list[tuple[str, ...]]:
    """A row per implementation, dtype, mask and D, those of an implementation together."""
    rows = [
        (name, dtype, mask_of(causal), str(d), *(_number(ratio, ".2f") for ratio in ratios))
        for (name, dtype, causal, d), ratios in times.items()
    ]
    return sorted(rows, key=lambda row: row[0])


def memory_limits(record: Bench) -> dict[tuple[str, str, bool, int], int]:
    """The smallest N that ran out of memory, by implementation, dtype, mask and D."""
    found: dict[tuple[str, str, bool, int], int] = {}
    for s in record.results:
        if s.status == OUT_OF_MEMORY:
            key = (s.implementation, s.dtype, s.causal, s.D)
            found[key] = min(s.N, found.get(key, s.N))
    return found


def _limit_rows(limits: dict[tuple[str, str, bool, int], int]) -> list[tuple[str, ...]]:
    """A row per implementation, D and length, with the dtypes and masks that have it."""
    groups: dict[tuple[str, int, int], list[tuple[str, bool]]] = {}
    for (name, dtype, causal, d), n in limits.items():
        groups.setdefault((name, d, n), []).append((dtype, causal))
    return [
        (name, ", ".join(dict.fromkeys(dtype for dtype, _ in members)),
         ", ".join(dict.fromkeys(mask_of(causal) for _, causal in members)), str(d), str(n))
        for (name, d, n), members in sorted(groups.items())
    ]  # fmt: skip


def memory_growth(record: Bench) -> dict[str, tuple[float, int]]:
    """By implementation, the power of N that its memory per batch element grows with, and from how many values."""
    found = {}
    for name in dict.fromkeys(s.implementation for s in record.results):
        points = [(math.log(s.N), math.log(s.memory / s.B)) for s in record.results
                  if s.implementation == name and s.memory]  # fmt: skip
        if len({x for x, _ in points}) > 2:
            found[name] = linear_regression(*zip(*points, strict=True)).slope, len(points)
    return found


def silicon_markdown(record: Silicon) -> str:
    """The tables of a comparison of a GPU with the interpreter."""
    bins = ("same bits", *(f"≤ {b:g} ulp" for b in ULP_BINS[1:-1]), "more")
    heads = ("arithmetic", "tiles", "tensor", "dtype", "cases", *bins, "RMS difference / RMS error")
    rows = [
        (d.arithmetic, d.tiles, d.tensor, d.dtype, str(d.cases), *(f"{100 * s:.3g} %" for s in d.shares),
         _number(d.beside_error, ".2g"))
        for d in record.distances
    ]  # fmt: skip
    parts = [_where(record), f"{record.cases} cases, on the GPU and interpreted:",
             table(heads, rows)]  # fmt: skip
    if record.biases:
        lines = [(b.implementation, b.dtype, str(b.N), f"{b.mean:.2g}", f"{b.spread:.1g}", f"{b.mean / b.rounding:.2f}")
                 for b in record.biases]  # fmt: skip
        signed = ("implementation", "dtype", "N", "mean", "its standard error", "in unit roundoffs")
        parts += ["Values of one sign: mean relative error of O, which sums that truncate make negative:",
                  table(signed, lines)]  # fmt: skip
    if record.exact:
        parts += ["Small integers and scale = ln 2, where nothing but the division rounds:",
                  table(("dtype", "elements of O", "mismatches"),
                        [(e.dtype, str(e.elements), str(e.mismatches)) for e in record.exact])]  # fmt: skip
    return "\n\n".join(parts) + "\n"
