"""The part of a report that shows records of GPU runs: tables for `hardware.html`, data for `hardware.js`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from . import words
from .drawn import short
from .figures import KEYS, Panel, Series
from .hardware import (
    OUT_OF_MEMORY,
    ULP_BINS,
    Bench,
    Bias,
    Distance,
    Records,
    Silicon,
    Speed,
    memory_growth,
    memory_limits,
    speedups,
)
from .record import IN_DTYPE, TENSORS

#: distances as the figures and the tables name them
BINS = ("same bits", *(f"≤ {b:g} ulp" for b in ULP_BINS[1:-1]), f"> {ULP_BINS[-2]:g} ulp")
_LENGTHS = 24  # columns of a table
_LINES = 50  # implementations that are listed whatever the size of the page

Kind = tuple[str, int, bool]  # dtype, head dimension, whether causal: the problems of one panel


@dataclass(frozen=True, slots=True)
class Line:
    """One implementation over all problems.  A ratio is its time over the bundled kernel's: median, least."""

    name: str
    forward: tuple[float, float] | None
    backward: tuple[float, float] | None
    growth: float | None  # power of N that its memory grows with
    limit: int | None  # smallest N that ran out of memory
    ran: int
    asked: int
    failures: tuple[tuple[str, int], ...]  # in words, and on how many problems; running out of memory is not among them


@dataclass(frozen=True, slots=True)
class Row:
    """One implementation on the problems of one kind, by length; None where it was not asked."""

    name: str
    kind: Kind
    cells: tuple[Speed | None, ...]


@dataclass(frozen=True, slots=True)
class BenchView:
    """What the page says of a bench; `compared` are the results at the longest N of their kind that has errors."""

    name: str
    record: Bench
    series: tuple[Series, ...]
    lines: list[Line]
    lines_left_out: int
    ran: int
    lengths: list[int]
    lengths_left_out: int
    rows: list[Row]
    rows_left_out: int
    compared: list[Speed]
    tensors: list[str]
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SiliconView:
    """What the page says of a comparison with the interpreter."""

    name: str
    record: Silicon
    series: tuple[Series, ...]
    distances: list[Distance]
    biases: list[Bias]
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class View:
    """All records, in the order given."""

    benches: list[BenchView]
    silicons: list[SiliconView]
    devices: list[str]

    def data(self) -> dict[str, Any]:
        """For `hardware.js`."""
        return {"benches": [b.data for b in self.benches], "silicons": [s.data for s in self.silicons], "bins": BINS}


def view(records: Sequence[Records], runs: Mapping[str, str], rows: int, points: int) -> View:
    """At most so many rows per table and points per figure; `runs` are the colours of runs on the same page."""
    benches = [r.bench for r in records if r.bench]
    silicons = [r.silicon for r in records if r.silicon]
    names = [s.implementation for b in benches for s in b.results]
    names += [b.implementation for s in silicons for b in s.biases]
    colours = keys(names, runs)
    devices = words.distinct(words.clip(b.device, 80) for b in benches)
    subjects = words.distinct(f"{words.clip(s.implementation, 80)} on {words.clip(s.device, 80)}" for s in silicons)
    return View(
        [_bench(name, b, colours, rows, points) for name, b in zip(devices, benches, strict=True)],
        [_silicon(name, s, colours, rows, points) for name, s in zip(subjects, silicons, strict=True)],
        list(dict.fromkeys([*(b.device for b in benches), *(s.device for s in silicons)])),
    )


def keys(names: Sequence[str], runs: Mapping[str, str]) -> dict[str, str]:
    """The colour of each implementation: its run's; else standard attention's if it is `eager`; else a free one."""
    found = dict(runs) if "eager" in runs else {**runs, "eager": "std"}
    free = [key for key in KEYS if key not in runs.values()] or list(KEYS)
    new = [name for name in dict.fromkeys(names) if name not in found]
    return found | {name: free[i % len(free)] for i, name in enumerate(new)}


def _series(names: Sequence[str], colours: Mapping[str, str]) -> tuple[Series, ...]:
    return tuple(Series(words.clip(name, 80), "kernel", colours[name]) for name in dict.fromkeys(names))


# ----------------------------------------------------------------------------------------------------- speed


def _bench(name: str, record: Bench, colours: Mapping[str, str], rows: int, points: int) -> BenchView:
    names = list(dict.fromkeys(s.implementation for s in record.results))
    kinds = _kinds(record)
    lengths = sorted({s.N for s in record.results})
    table = _rows(record, names, kinds, lengths[:_LENGTHS])
    compared = [s for s in _compared(record) if s.errors]
    tensors = words.order([t for s in compared for t in s.errors], TENSORS)
    drawn = record.results[:points]
    shown = list(dict.fromkeys(s.implementation for s in drawn))  # the first of the names
    series = _series(shown, colours)
    data = {
        "series": [[s.label, s.kind, s.key] for s in series],
        "panels": [[f"{words.clip(dtype, 8)}, D {d}", _masked(causal)] for dtype, d, causal in kinds],
        "columns": len({kind[1:] for kind in kinds}),
        "lengths": lengths,
        "points": [_point(s, names, kinds) for s in drawn if s.status == "ok"],
        "failed": [[*_place(s, names, kinds), words.clip(s.status, 120)] for s in drawn if s.status != "ok"],
        "tensors": tensors,
        "errors": [[*_point(s, names, kinds), [short(s.errors.get(t)) for t in tensors]]
                   for s in compared[:points] if s.implementation in shown],
    }  # fmt: skip
    lines = _lines(record, names)
    listed = max(rows, _LINES)
    return BenchView(
        name=name,
        record=record,
        series=series,
        lines=lines[:listed],
        lines_left_out=max(0, len(lines) - listed),
        ran=sum(line.ran for line in lines),
        lengths=lengths[:_LENGTHS],
        lengths_left_out=max(0, len(lengths) - _LENGTHS),
        rows=table[:rows],
        rows_left_out=max(0, len(table) - rows),
        compared=compared[:rows],
        tensors=tensors,
        data=data,
    )


def _masked(causal: bool) -> str:
    return "causal" if causal else "no mask"


def _kind(s: Speed) -> Kind:
    return s.dtype, s.D, s.causal


def _kinds(record: Bench) -> list[Kind]:
    """In the order of the panels: a row per dtype."""
    dtypes = words.order([s.dtype for s in record.results], words.DTYPES)
    return sorted({_kind(s) for s in record.results}, key=lambda kind: (dtypes.index(kind[0]), *kind[1:]))


def _place(s: Speed, names: Sequence[str], kinds: Sequence[Kind]) -> list[Any]:
    """[series, panel, N]"""
    return [names.index(s.implementation), kinds.index(_kind(s)), s.N]


def _point(s: Speed, names: Sequence[str], kinds: Sequence[Kind]) -> list[Any]:
    """[series, panel, N, TFLOP/s forward, backward, of both, MiB per batch element]"""
    memory = None if s.memory is None else s.memory / s.B / 2**20
    rates = (s.rate("forward"), s.rate("backward"), s.rate("both"))
    return [*_place(s, names, kinds), *map(short, rates), short(memory)]


def _lines(record: Bench, names: Sequence[str]) -> list[Line]:
    ratios, growth, limits = speedups(record), memory_growth(record), memory_limits(record)

    def ratio(name: str, which: str) -> tuple[float, float] | None:
        values = [x for key, found in ratios.items() if (key[0], key[-1]) == (name, which) for x in found]
        return (median(values), min(values)) if values else None

    lines = []
    for name in names:
        statuses = Counter(s.status for s in record.results if s.implementation == name)
        others = tuple((s, n) for s, n in statuses.most_common() if s not in ("ok", OUT_OF_MEMORY))
        limit = min((n for key, n in limits.items() if key[0] == name), default=None)
        power = growth[name][0] if name in growth else None
        lines.append(Line(name, ratio(name, "forward"), ratio(name, "backward"), power, limit, statuses["ok"],
                          statuses.total(), others))  # fmt: skip
    return lines


def _rows(record: Bench, names: Sequence[str], kinds: Sequence[Kind], lengths: Sequence[int]) -> list[Row]:
    found = {(s.implementation, _kind(s), s.N): s for s in record.results}
    asked = {key[:2] for key in found}
    return [
        Row(name, kind, tuple(found.get((name, kind, n)) for n in lengths))
        for kind in kinds
        for name in names
        if (name, kind) in asked
    ]


def _compared(record: Bench) -> list[Speed]:
    """Results at the longest N at which any of the same kind has errors."""
    longest: dict[Kind, int] = {}
    for s in record.results:
        if s.errors:
            longest[_kind(s)] = max(s.N, longest.get(_kind(s), 0))
    return [s for s in record.results if longest.get(_kind(s)) == s.N]


# ------------------------------------------------------------------------------------------- the interpreter


def _silicon(name: str, record: Silicon, colours: Mapping[str, str], rows: int, points: int) -> SiliconView:
    distances = sorted(record.distances, key=_order)
    panels: list[Panel] = list(dict.fromkeys((d.tensor, d.dtype) for d in distances))
    names = list(dict.fromkeys(b.implementation for b in record.biases))
    dtypes = words.order([b.dtype for b in record.biases], words.DTYPES)
    series = _series(names, colours)
    data = {
        "series": [[s.label, s.kind, s.key] for s in series],
        "panels": [[words.clip(name, 20) for name in panel] for panel in panels],
        "distances": [
            [panels.index((d.tensor, d.dtype)), words.clip(d.arithmetic, 20), words.clip(d.tiles, 20), d.cases,
             list(map(short, d.shares)), short(d.beside_error)]
            for d in distances[:points]
        ],
        "dtypes": [words.clip(dtype, 20) for dtype in dtypes],
        "biases": [
            [names.index(b.implementation), dtypes.index(b.dtype), b.N, short(b.mean), short(b.spread)]
            for b in record.biases[:points]
        ],
    }  # fmt: skip
    return SiliconView(name, record, series, distances[:rows], list(record.biases[:rows]), data)


def _order(d: Distance) -> tuple[Any, ...]:
    """Tensors, dtypes; then what is most alike before what is less."""

    def rank(name: str, known: Sequence[str]) -> tuple[int, str]:
        return (known.index(name) if name in known else len(known), name)

    tensor, dtype = rank(d.tensor, (*IN_DTYPE, "lse")), rank(d.dtype, words.DTYPES)
    return tensor, dtype, rank(d.tiles, ("the same",)), rank(d.arithmetic, ("ieee",))
