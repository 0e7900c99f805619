"""A record as one HTML file that needs nothing else: no network, no server, and for its tables no script.

`page.html` is the page, `style.css` its looks, `page.js` draws the figures in the browser with Observable
Plot (`plot.umd.min.js`, `d3.min.js`, both ISC, inlined); `hardware.html`, `.css` and `.js` are the part on GPU
records.  Text from a record is escaped by Jinja; the data of the figures travel as JSON whose `<` are escaped, so
that nothing in a record can end the script element.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import jinja2
from markupsafe import Markup

from . import algebra, drawn, figures, hardware_page, overview, paired, positions, words
from .hardware import OUT_OF_MEMORY, Records, circumstances, mask_of
from .points import Choice, choose
from .record import Cell, Check, Finding, Run, Share
from .rows import EIGHTHS
from .templates import SIZE, fitting, sized, style, template, text_of

MAX_BYTES = 2_000_000
_SHOWN = 300  # characters of an answer's evidence that stand on the first screen; the others unfold


@dataclass(frozen=True, slots=True)
class _Budget:
    """How much of a record one page shows: points drawn, characters of their data, rows per table."""

    points: int
    characters: int
    findings: int
    rows: int


# The first that fits into MAX_BYTES is used.  The record itself always has everything.
_BUDGETS = (
    _Budget(3000, 500_000, 40, 300),
    _Budget(1000, 200_000, 20, 120),
    _Budget(200, 50_000, 8, 40),
    _Budget(0, 0, 2, 10),
)


def render(runs: Sequence[Run], records: Sequence[Records] = ()) -> str:
    """The report on runs, side by side, and on records of GPU runs, at most about MAX_BYTES long."""
    if not runs and not records:
        raise ValueError("no run or record to report on: give at least one")
    return fitting((sized(_page(runs, records, budget)) for budget in _BUDGETS), MAX_BYTES)


def _page(runs: Sequence[Run], records: Sequence[Records], budget: _Budget) -> str:
    share = max(1, budget.rows // max(1, len(runs)))
    groups = figures.group(runs)
    distributions = {
        "ecdf": [d for d in figures.distributions(groups, figures.error_in_scale) if d.n],
        "bias": figures.distributions(groups, figures.bias),
        "bound": figures.distributions(groups, figures.bound_ratio),
        "predictor": figures.distributions(groups, figures.predictor_ratio),
    }
    ulps = figures.ulps(groups)
    choice = choose(runs, budget.points, budget.characters)
    cells = drawn.worst_cells(runs)
    places = {"rows": positions.worst_rows(groups), "tiles": positions.worst_in_tiles(groups)}
    profiles = positions.profiles(groups)
    pairs = paired.paired(runs)
    digits, bars = algebra.digits(runs, budget.rows), algebra.bars(runs, budget.rows)
    colours = {r.manifest.implementation: s.key for r, s in reversed(list(zip(runs, groups.series, strict=False)))}
    hardware = hardware_page.view(records, colours, max(1, budget.rows // max(1, len(records))), budget.points)
    data = {
        "hardware": hardware.data(),
        "series": [[s.label, s.kind, s.key] for s in groups.series],
        "panels": groups.panels,
        **{name: drawn.compact(found, groups.panels, curves=name == "ecdf") for name, found in distributions.items()},
        "ulp": [[groups.panels.index(u.panel), u.series, *map(drawn.short, u.shares)] for u in ulps],
        "tile": positions.TILE,
        "profiles": [drawn.profile(p, groups.panels) for p in profiles],
        **{f"worst-{name}": [drawn.shares(s, groups.panels) for s in found] for name, found in places.items()},
        "paired": [drawn.pairs(p) for p in pairs],
        "cells": cells,
        "digits": [[d.run, d.case, d.status, [[n, drawn.short(x)] for n, x in d.points]] for d in digits],
        "kinds": algebra.KINDS,
        "sites": [drawn.site(bar) for bar in bars],
        **drawn.scatter(runs, choice, groups.panels),
    }
    names = words.labels(runs)
    return _template().render(
        title=" and ".join(names or [words.clip(device, 80) for device in hardware.devices]),
        hardware=hardware if records else None,
        views=[_view(run, name, budget, share) for run, name in zip(runs, names, strict=True)],
        series=groups.series,
        distributions=distributions,
        ulps=ulps,
        choice=choice,
        axes=drawn.AXES,
        regimes=words.order([p.row.regime for p in choice.points if p.row.regime], ("normal",)),
        worst_points=_worst_points(runs, choice),
        profiles=profiles,
        places=places,
        paired=pairs,
        cells=cells,
        digits=digits,
        bars=bars,
        sample=algebra.sample(bars),
        used={kind for bar in bars for kind, _, _ in bar.parts},
        data=drawn.as_json(data),
    )


# ----------------------------------------------------------------------------------------------------- views


@dataclass(frozen=True, slots=True)
class _View:
    """What the page says of one run."""

    name: str
    run: Run
    grid: overview.Table
    findings: list[Finding]
    findings_left_out: int
    unfound: list[Check]  # failed checks that no finding is about
    broken: list[overview.Broken]
    broken_left_out: int
    unsupported: int
    exact: algebra.Exact
    shares: list[Share]
    unattributed: str
    heat: overview.HeatMap
    cells: list[Cell]
    kinds: overview.Kinds
    checks: list[tuple[int, object]]
    checks_left_out: int
    coverage: overview.Coverage
    not_covered: list[str]
    not_covered_left_out: int
    worst_bound: float | None


def _view(run: Run, name: str, budget: _Budget, share: int) -> _View:
    findings = words.worst_first(run.findings)
    found = {(f.check, f.tensor) for f in findings}
    broken, broken_left_out = overview.broken(run, max(1, share // 10))
    ranks = {"fail": 0, "waived": 1, "pass": 2, "skipped": 3}
    checks = sorted(enumerate(run.verdict.checks), key=lambda item: (ranks[item[1].status], item[0]))
    bounds = [row.bound_ratio for row in run.rows if row.bound_ratio is not None]
    return _View(
        name=name,
        run=run,
        grid=overview.grid(run),
        findings=findings[: budget.findings],
        findings_left_out=max(0, len(findings) - budget.findings),
        unfound=[c for c in run.verdict.checks if c.status == "fail" and (c.name, c.tensor) not in found][:20],
        broken=broken,
        broken_left_out=broken_left_out,
        unsupported=len({row.case_id for row in run.rows if row.status == "unsupported"}),
        exact=algebra.exact(run, share),
        shares=algebra.shares(run, share),
        unattributed=algebra.unattributed(run),
        heat=overview.heat_map(run.verdict.cells, max(1, share // 4)),
        cells=sorted(run.verdict.cells, key=overview.closeness, reverse=True)[:share],
        kinds=overview.kinds(run.verdict.standings),
        checks=[(index, check) for index, check in checks[:share]],
        checks_left_out=max(0, len(checks) - share),
        coverage=overview.coverage(run),
        not_covered=list(run.verdict.not_covered[:share]),
        not_covered_left_out=max(0, len(run.verdict.not_covered) - share),
        worst_bound=math.nan if any(map(math.isnan, bounds)) else max(bounds, default=None),
    )


def _worst_points(runs: Sequence[Run], choice: Choice) -> list[dict[str, object]]:
    """The cases with the largest errors among those drawn, for the table behind the scatter plot."""

    def error(index: int) -> float:
        row = choice.points[index].row
        value = words.in_scale(row.kernel_rms, row)
        return math.inf if value is None or math.isnan(value) else value

    names = words.labels(runs)
    ranked = sorted(range(len(choice.points)), key=error, reverse=True)[:25]
    return [
        {
            "name": names[point.run],
            "row": point.row,
            "kernel": words.in_scale(point.row.kernel_rms, point.row),
            "standard": words.in_scale(point.row.standard_rms, point.row),
            "shape": words.clip(words.shape(point.row), 200),
            "replay": words.replay(point.row, runs[point.run].manifest.implementation),
            "failing": point.failing,
        }
        for point in (choice.points[index] for index in ranked)
    ]


# ----------------------------------------------------------------------------------------------- the template

_GOOD = {"pass", "yes", "equal", "exact", "proved", "holds", "ok"}
_BAD = {"fail", "no", "refuted", "violated", "crashed", "raised", "timeout", "wrong-result", "different"}


def tone(status: str) -> str:
    """good, bad or open: the colour and the sign of a status, which is always written out as well."""
    return "good" if status.lower() in _GOOD else "bad" if status.lower() in _BAD else "open"


def breakable(name: str) -> Markup:
    """A file and function name that may wrap after its separators."""
    return Markup("<wbr>").join(re.split(r"(?<=[/:])", name))


@cache
def _template() -> jinja2.Template:
    return template(
        "page.html",
        filters={
            "clip": words.clip,
            "heat": overview.heat,
            "amounts": words.amounts,
            "times": words.times,
            "percent": words.percent,
            "briefly": words.briefly,
            "parted": lambda text: words.parted(text, _SHOWN),
            "tone": tone,
            "mask": mask_of,
            "circumstances": circumstances,
            "breakable": breakable,
            "plain": lambda value: ", ".join(map(str, value)) if isinstance(value, list) else str(value),
            "recipe": lambda case: json.dumps(case, ensure_ascii=False),
        },
        kinds=algebra.KINDS,
        bins=figures.ULP_BINS,
        eighths=range(EIGHTHS),
        tile=positions.TILE,
        size=SIZE,
        distances=hardware_page.BINS,
        out_of_memory=OUT_OF_MEMORY,
        style=style("hardware.css"),
        libraries=[_library("d3.min.js", "LICENSE-d3"), _library("plot.umd.min.js", "LICENSE-plot")],
        script=text_of("hardware.js") + text_of("page.js"),
    )


def _library(name: str, licence: str) -> Markup:
    """A library with its licence, which must travel with every copy."""
    return Markup("/*\n{}*/\n{}").format(text_of(licence), text_of(name))
