"""How a record is put into words: numbers, durations, names, commands, and what counts as a failure."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Sequence

from pydantic import JsonValue

from .record import Finding, Recipe, Run
from .rows import Row

DTYPES = ("fp16", "bf16", "fp32")
_THIN = "\N{NARROW NO-BREAK SPACE}"  # between thousands


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table: 0.51, 1.2e-07, 12 400; a dash where nothing was measured."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{decimals}f}".replace(",", _THIN)
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        text = f"{value:.{digits - 1}e}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


def ratio(value: float | None) -> str:
    """A ratio for a column of ratios, its decimals aligned: 0.51, 1.00, 12.3, 0.004."""
    if value is None or not math.isfinite(value) or value >= 1000:
        return number(value, 2)
    if value < 0.0995:
        return f"{value:.3f}" if value >= 5e-4 or value == 0 else "<0.001"
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"


def count(value: int) -> str:
    """An integer, its thousands apart."""
    return f"{value:,}".replace(",", _THIN)


def percent(share: float) -> str:
    """A share in per cent: 0.3 %, 51 %, 100 %."""
    return f"{number(100 * share, 2 if abs(share) < 0.995 else 3)} %"


def plural(n: int, noun: str) -> str:
    """1 case, 2 cases."""
    return f"{count(n)} {noun}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """0.42 s, 42 s, 3 min 10 s, 2 h 5 min."""
    if not math.isfinite(seconds) or seconds < 60:
        return f"{number(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(n: int) -> str:
    """Bytes in decimal units: 640 bytes, 48 kB, 1.1 MB."""
    for unit, power in (("MB", 6), ("kB", 3)):
        if n >= 10**power:
            return f"{number(n / 10**power, 2)} {unit}"
    return plural(n, "byte")


def clip(text: str, limit: int = 2000) -> str:
    """The text, or its beginning and how much is missing: no message may fill the page."""
    return text if len(text) <= limit else f"{text[:limit]}… ({count(len(text) - limit)} more characters)"


def parted(text: str, limit: int) -> tuple[str, str]:
    """The text cut at a semicolon: as many clauses as fit the limit, at least the first, and the others."""
    clauses = text.split("; ")
    kept = 1
    while kept < len(clauses) and len("; ".join(clauses[: kept + 1])) <= limit:
        kept += 1
    return "; ".join(clauses[:kept]), "; ".join(clauses[kept:])


def labels(runs: Sequence[Run]) -> list[str]:
    """A short name for each run, no two the same."""
    return distinct(clip(run.manifest.implementation, 80) for run in runs)


def distinct(names: Iterable[str]) -> list[str]:
    """The names, a repeated one numbered: no two the same."""
    found: list[str] = []
    for name in names:
        same = sum(other == name or other.startswith(f"{name} #") for other in found)
        found.append(f"{name} #{same + 1}" if same else name)
    return found


def replay(row: Row, implementation: str) -> str:
    """The command that runs this row's case again, quoted for a POSIX shell."""
    if row.case_json is None:
        return ""
    return f"flashproof replay {shlex.quote(row.case_json)} {shlex.quote(implementation)}"


def replay_exact(case: Recipe, implementation: str) -> str:
    """The command that compares this case with the definition again, in exact arithmetic."""
    return f"flashproof exact {shlex.quote(implementation)} --case {shlex.quote(json.dumps(case))}"


def shape(row: Row) -> str:
    """Regime, mask and sizes of a row's case, in one line."""
    sizes = " ".join(f"{name}{getattr(row, name)}" for name in ("B", "H", "HK", "M", "N", "D"))
    return f"{row.regime or 'no regime'} · mask {row.mask or 'none'} · {sizes.replace('None', '–')}"


def briefly(case: Recipe) -> str:
    """A recipe in short words: dtype, regime, mask, sizes, and what else is not as usual; any other JSON as it is."""
    sizes = " ".join(f"{name}{case[name]}" for name in ("B", "H", "HK", "M", "N", "D") if name in case)
    if not sizes:
        return json.dumps(case, ensure_ascii=False)
    parts = [str(case[name]) for name in ("dtype", "regime") if name in case]
    parts += [f"mask {_mask(case['mask'])}"] if "mask" in case else []
    parts.append(sizes)
    parts += [f"scale {case['scale']}"] if case.get("scale") is not None else []
    parts += [f"layout {case['layout']}"] if case.get("layout", "contiguous") != "contiguous" else []
    parts += ["forward only"] if case.get("backward") is False else []
    return " · ".join(parts)


def _mask(mask: JsonValue) -> str:
    if not isinstance(mask, dict):
        return str(mask or "none")
    window = mask.get("window")
    sides = ["∞" if side is None else str(side) for side in window] if isinstance(window, list) else []
    parts = [
        "causal" if mask.get("causal") else "",
        f"window {', '.join(sides)}" if sides else "",
        "bottom-right" if mask.get("alignment") == "bottom-right" and (mask.get("causal") or sides) else "",
        *(f"{name} {mask[name]}" for name in ("boolean", "bias") if mask.get(name)),
        "key lengths" if mask.get("key_lengths") else "",
    ]
    return " ".join(filter(None, parts)) or "none"


# --------------------------------------------------------------------------------------------------- failures

_MEANINGS = {
    "returns": "The call gave no result of attention's shape and dtype: it raised, hung or died.",
    "finite": "NaN, or an infinity that the true result does not have.",
    "bound": "An error beyond what the roundings that attention needs can do, in whatever order: not bad luck.",
    "memory": "Elements of a result depend on what the memory held before.",
    "kept": "A result that was returned changes when the function is called again: a buffer is shared.",
    "invariance": "The answer to a related problem (other units, another order, a part of it) contradicts this one.",
    "systematic": "Errors lie along the derivative by a parameter: a constant or delta is systematically off.",
    "inputs-unchanged": "The call changes its inputs, or the memory around them.",
    "repeat": "The same call gave other bits when it was repeated.",
    "inference": "Beyond the a priori bound when no gradients are asked for: that path of the function is wrong.",
    "batch-invariance": "The result of a batch element depends on the others of its batch.",
    "ratio": "Further from the truth than standard attention, by more than its margin and than its roundings predict.",
    "predictor": "The typical error is larger than the algorithm's roundings make it: precision is lost somewhere.",
    "bias": "The errors lean to one side: something truncates where it should round to nearest.",
    "waivers": "A failure was let pass until a date, and that date is past.",
    "algebra": "Without any rounding, the kernel's own source does not compute attention: its formula is wrong, "
    "whatever its precision.",
    "accumulators": "Sums are carried in too few bits: with the rounding of the accumulators alone, the source makes "
    "this part of the squared error. In fp32 it would be next to nothing.",
}
_CONFLICT = (
    "Programs of the kernel touch the same memory, one of them writing, without an atomic: on a GPU the result depends "
    "on which of them comes first."
)


def meaning(check: str, detail: str = "") -> str:
    """What a failed check says, in plain language; nothing for a check of another version."""
    return _CONFLICT if "ConflictError" in detail else _MEANINGS.get(check, "")


def did_not_return(row: Row) -> bool:
    """No result to measure: the kernel raised, hung, crashed, or gave something that is no such tensor."""
    return row.status not in ("ok", "unsupported")


def measured(row: Row) -> bool:
    """A tensor that came back and was compared with the truth."""
    return row.status == "ok" and row.tensor is not None and row.dtype is not None


_CERTIFICATES = frozenset({"bound", "finite", "memory"})


def violates(row: Row) -> bool:
    """Beyond any statistics: over the a priori bound, not finite where it must be, or never written.

    `nonfinite` alone is no violation: where the bound itself is infinite, a correct kernel may overflow.
    """
    over = row.bound_ratio is not None and not row.bound_ratio <= 1  # NaN is over as well
    return over or not _CERTIFICATES.isdisjoint((row.failed or "").split(","))


def in_scale(error: float | None, row: Row) -> float | None:
    """An absolute error of this row in units of its natural scale; None where there is no scale."""
    if error is None or not row.natural_scale or not math.isfinite(row.natural_scale):
        return None
    return error / row.natural_scale


def used(finding: Finding) -> float:
    """How many times the allowed value was observed; infinite where nothing is allowed, or NaN came out.

    A finding with no allowed value is one that only the distribution over many cases shows: 0.
    """
    if math.isnan(finding.allowed):
        return 0.0
    if math.isnan(finding.observed) or finding.allowed <= 0:
        return math.inf
    return abs(finding.observed) / finding.allowed


def amounts(finding: Finding) -> str:
    """'15.9 observed, 1 allowed', or nothing where no single number was."""
    if math.isnan(finding.allowed):
        return ""
    return f"{number(finding.observed)} observed, {number(finding.allowed)} allowed"


def times(finding: Finding) -> str:
    """': 3.1 times what is allowed', or nothing where a multiple would say nothing."""
    factor = used(finding)
    return f": {number(factor, 2)} times what is allowed" if 1 < factor < math.inf else ""


def sentence(finding: Finding) -> str:
    """The amounts and the detail, as far as there are any."""
    return ": ".join(filter(None, (amounts(finding), finding.detail))) or "the check failed"


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Findings by how far they are over what is allowed; equal ones keep the order of the record."""
    return sorted(findings, key=used, reverse=True)


def order(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Distinct names in the order of `known`, then the others by name."""
    return sorted(set(names), key=lambda name: (known.index(name) if name in known else len(known), name))
