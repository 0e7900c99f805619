"""Error budgets: what a gate allows, read from TOML and checked strictly."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..reports.record import Allowed
from .problems import UsageError
from .waivers import Waiver

SCHEMA = 1
_LISTS = ("exception", "waiver")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, str_strip_whitespace=True)


class _Section(_Strict):
    """A table of the file; `reason` says why it is looser than the default."""

    reason: str | None = Field(default=None, min_length=1)


class Bound(_Section):
    """A priori bounds: largest allowed error / bound."""

    max_ratio: float = Field(gt=0)


class Ratio(_Section):
    """Paired RMS error against standard attention's, per cell."""

    margin: float = Field(ge=1)
    confidence: float = Field(gt=0.5, lt=1)
    min_cases: int = Field(ge=2)


class Predictor(_Section):
    """RMS error against what roundings predict, per cell."""

    margin: float = Field(ge=1)


class Bias(_Section):
    """Mean signed error in ulp beyond the rounded truth's."""

    max_ulp: float = Field(gt=0)
    min_t: float = Field(gt=0)
    min_cases: int = Field(ge=2)


class Systematic(_Section):
    """The component of errors along the derivative by a parameter: the parameter's relative error."""

    max_part: float = Field(gt=0)
    min_t: float = Field(gt=0)
    min_cases: int = Field(ge=2)


class Accumulators(_Section):
    """What roundings of the accumulators may contribute to a tensor's mean squared error."""

    max_part: float = Field(gt=0, lt=1)


class Invariance(_Section):
    """What a result may depend on."""

    repeat: Literal["fail", "report"]
    batch: Literal["fail", "report"]


class Drift(_Section):
    """Paired RMS error of two runs of the same cases, per cell."""

    margin: float = Field(ge=1)
    confidence: float = Field(gt=0.5, lt=1)
    min_cases: int = Field(ge=2)


class Coverage(_Section):
    """Fewer cases than this are no measurement."""

    min_cases: int = Field(ge=1)


class Allowance(_Strict):
    """A scoped allowance, with its reason."""

    implementation: str
    reason: str = Field(min_length=1)
    tensors: tuple[Literal["out", "lse", "dq", "dk", "dv"], ...] | None = Field(default=None, strict=False)
    dtypes: tuple[Literal["fp16", "bf16", "fp32"], ...] | None = Field(default=None, strict=False)
    regimes: tuple[str, ...] | None = Field(default=None, strict=False)
    ratio_margin: float | None = Field(default=None, gt=0)
    predictor_margin: float | None = Field(default=None, ge=1)
    bias_max_ulp: float | None = Field(default=None, gt=0)
    bound_max_ratio: float | None = Field(default=None, gt=0)
    systematic_max_part: float | None = Field(default=None, gt=0)
    accumulators_max_part: float | None = Field(default=None, gt=0, le=1)
    drift_margin: float | None = Field(default=None, ge=1)

    @property
    def limits(self) -> dict[str, float]:
        """What it sets: section_key of the budgets, and the value."""
        scope = {"implementation", "reason", "tensors", "dtypes", "regimes"}
        return self.model_dump(exclude_none=True, exclude=scope)

    def beyond(self, defaults: dict[str, Any]) -> bool:
        """Whether it allows more than the default budgets: one may also be stricter for some cells."""
        entries = ((name.partition("_"), value) for name, value in self.limits.items())
        return any(_looser(value, defaults[section][key]) for (section, _, key), value in entries)

    def __str__(self) -> str:
        """What it sets, for what."""
        limits = [f"{name} = {value:g}" for name, value in self.limits.items()]
        scope = [" or ".join(names) for names in (self.tensors, self.dtypes, self.regimes) if names is not None]
        return f"{', '.join(limits)} for {', '.join([*scope, self.implementation])}"


class Budgets(_Strict):
    """All budgets of a run."""

    version: int = Field(alias="schema", ge=1, le=SCHEMA)
    bound: Bound
    ratio: Ratio
    predictor: Predictor
    bias: Bias
    systematic: Systematic
    accumulators: Accumulators
    invariance: Invariance
    drift: Drift
    coverage: Coverage
    exceptions: tuple[Allowance, ...] = Field(default=(), alias="exception", strict=False)
    waivers: tuple[Waiver, ...] = Field(default=(), alias="waiver", strict=False)

    def allowance(
        self, key: str, default: float, implementation: str, dtype: str, tensor: str, regime: str | None = None
    ) -> float:
        """The value of `key` (ratio_margin, predictor_margin, ...) for a cell."""
        value = default
        for e in self.exceptions:
            fits = (
                fnmatch(implementation, e.implementation)
                and (e.tensors is None or tensor in e.tensors)
                and (e.dtypes is None or dtype in e.dtypes)
                and (e.regimes is None or regime in e.regimes)
            )
            stated = getattr(e, key)
            if fits and stated is not None:
                value = stated
        return value


def beyond_default(budgets: Budgets, implementation: str) -> tuple[Allowed, ...]:
    """What these budgets allow an implementation that the default ones do not, with the reasons that they state."""
    defaults, own = default_entries(), budgets.model_dump(exclude={"exceptions", "waivers"}, exclude_none=True)
    entries = [
        Allowed(what=f"{section}.{key} = {own[section][key]} instead of {defaults[section][key]}",
                reason=own[section].get("reason", "not stated"))
        for section, key in loosened(defaults, own)
    ]  # fmt: skip
    return (*entries, *(
        Allowed(what=str(e), reason=e.reason)
        for e in budgets.exceptions if fnmatch(implementation, e.implementation) and e.beyond(defaults)
    ))  # fmt: skip


def load(path: Path | None = None) -> Budgets:
    """The default budgets, overridden by those of a file.

    Raises:
        UsageError: for a file that cannot be read, is not TOML, has an unknown key or a value of the wrong type, or
            loosens a default without a reason.
    """
    return checked({} if path is None else file_entries(path), path)


def checked(own: dict[str, Any], path: Path | None) -> Budgets:
    """The default budgets, overridden by entries that stand in a file; raises as `load`."""
    defaults = default_entries()
    try:
        budgets = Budgets.model_validate(_merged(defaults, own))
    except ValidationError as e:
        first = e.errors()[0]
        place = list(first["loc"])
        if place[0] in _LISTS and len(place) > 1:  # the user's file counts from 1, after the defaults' own
            place[1] = int(place[1]) - len(defaults.get(str(place[0]), [])) + 1
        where = ".".join(str(p) for p in place)
        message = {"extra_forbidden": "unknown key", "missing": "missing, state it"}.get(first["type"], first["msg"])
        raise UsageError(f"budgets {path}: {where}: {message.removeprefix('Value error, ')}") from e
    for section, key in loosened(defaults, own):
        if not own[section].get("reason"):
            raise UsageError(
                f"budgets {path}: {section}.{key}: {own[section][key]} is looser than the default "
                f"{defaults[section][key]}: state a reason in [{section}], or scope it with an [[exception]]"
            )
    return budgets


def default_entries() -> dict[str, Any]:
    """The default budgets as TOML has them."""
    return tomllib.loads(files(__package__).joinpath("budgets.toml").read_text())


def file_entries(path: Path) -> dict[str, Any]:
    """A file of budgets as TOML has it."""
    return entries_of(text_of(path), path)


def text_of(path: Path) -> str:
    """What a file of budgets holds."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"budgets {path} cannot be read: {e}") from e


def entries_of(text: str, path: Path) -> dict[str, Any]:
    """The text of a file as TOML has it."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise UsageError(f"budgets {path} is not TOML: {e}") from e


def loosened(defaults: dict[str, Any], own: dict[str, Any]) -> list[tuple[str, str]]:
    """The (section, key) of a file by which less fails than by default: larger limits, and "report" for "fail".

    A limit, the confidence that it is exceeded, and the cases that this takes are all looser when larger.  `coverage`
    alone is not asked: its size is part of every verdict.
    """
    found = []
    for section, entries in own.items():
        if section == "coverage" or not isinstance(entries, dict) or not isinstance(defaults.get(section), dict):
            continue
        for key, value in entries.items():
            usual = defaults[section].get(key)
            if usual is not None and _looser(value, usual):
                found.append((section, key))
    return found


def _looser(value: float | str, usual: float | str) -> bool:
    if isinstance(value, str) or isinstance(usual, str):
        return (value, usual) == ("report", "fail")
    return value > usual


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            out[key] = _merged(base[key], value)
        elif key in _LISTS and isinstance(value, list):
            out[key] = [*base.get(key, []), *value]
        else:
            out[key] = value
    return out
