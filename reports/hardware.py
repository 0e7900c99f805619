"""Records of runs on a GPU: how fast and how accurate (`flashproof bench`), and how unlike the interpreter (`silicon`).

Both are small enough to be kept in a repository, with the device, the driver and the versions that they hold for.
"""

from __future__ import annotations

import math
from statistics import linear_regression, median
from typing import Literal

from pydantic import Field

from .markdown import table
from .model import Model

#: bins of a distance in units in the last place: up to so many
ULP_BINS = (0, 1, 2, 8, 64, math.inf)


class Speed(Model):
    """One implementation on one problem; times in milliseconds, memory in bytes beyond the inputs and gradients."""

    implementation: str
    dtype: str
    causal: bool
    B: int
    H: int
    N: int
    D: int
    status: str  # ok, "out of memory", or why it did not run
    forward: float | None = None
    backward: float | None = None
    memory: int | None = None
    errors: dict[str, float] = Field(default_factory=dict)  # RMS error / (unit roundoff * RMS of the truth), by tensor

    @property
    def problem(self) -> tuple[str, bool, int, int]:
        """What the times of different implementations may be compared on."""
        return self.dtype, self.causal, self.D, self.N

    def rate(self, which: Literal["forward", "backward"]) -> float | None:
        """Useful TFLOP/s: 2 matrix products forward, 5 backward; under a causal mask half of each."""
        time = getattr(self, which)
        if time is None:
            return None
        operations = (4 if which == "forward" else 10) * self.B * self.H * self.N * self.N * self.D
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
    shares: tuple[float, ...]  # of elements by distance in ulp, in the bins of ULP_BINS
    beside_error: float | None  # RMS of the difference / RMS error of the GPU's result: median over cases


class Bias(Model):
    """Mean relative error of O for values of one sign, which a sum that truncates makes too small."""

    implementation: str
    dtype: str
    N: int
    elements: int
    mean: float
    spread: float  # standard deviation of the mean over heads
    rounding: float  # unit roundoff of the dtype


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


def _where(record: Bench | Silicon) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return f"{record.device}, driver {record.driver}, {versions}. `{record.command}`"


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
        rows.append(
            (s.implementation, s.dtype, "causal" if s.causal else "none", str(s.D), str(s.N), *cells, size, errors)
        )
    parts = [_where(record), table(heads, rows)]
    if ratios := speedups(record):
        beside = ("beside", "dtype", "mask", "D", "forward", "backward", "lengths")
        parts += ["Time of another implementation over the bundled kernel's, lengths from 2048 on: median (least).",
                  table(beside, _ratio_rows(ratios))]  # fmt: skip
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
        rows.append((name, dtype, "causal" if causal else "none", str(d), *cells, str(max(map(len, found)))))
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
