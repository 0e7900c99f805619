"""Error budgets: what a gate allows, read from TOML and checked strictly."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .problems import UsageError

SCHEMA = 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Bound(_Strict):
    """A priori bounds: largest allowed error / bound."""

    max_ratio: float = Field(gt=0)


class Ratio(_Strict):
    """Paired RMS error against standard attention's, per cell."""

    margin: float = Field(ge=1)
    confidence: float = Field(gt=0.5, lt=1)
    min_cases: int = Field(ge=2)


class Predictor(_Strict):
    """RMS error against what roundings predict, per cell."""

    margin: float = Field(ge=1)


class Bias(_Strict):
    """Mean signed error in ulp beyond the rounded truth's."""

    max_ulp: float = Field(gt=0)
    min_t: float = Field(gt=0)
    min_cases: int = Field(ge=2)


class Systematic(_Strict):
    """The component of errors along the derivative by a parameter: the parameter's relative error."""

    max_part: float = Field(gt=0)
    min_t: float = Field(gt=0)
    min_cases: int = Field(ge=2)


class Accumulators(_Strict):
    """What roundings of the accumulators may contribute to a tensor's mean squared error."""

    max_part: float = Field(gt=0, lt=1)


class Invariance(_Strict):
    """What a result may depend on."""

    repeat: Literal["fail", "report"]
    batch: Literal["fail", "report"]


class Drift(_Strict):
    """Paired RMS error of two runs of the same cases, per cell."""

    margin: float = Field(ge=1)
    confidence: float = Field(gt=0.5, lt=1)
    min_cases: int = Field(ge=2)


class Coverage(_Strict):
    """Fewer cases than this are no measurement."""

    min_cases: int = Field(ge=1)


class Allowance(_Strict):
    """A scoped allowance, with its reason."""

    implementation: str
    reason: str = Field(min_length=1)
    tensors: tuple[Literal["out", "lse", "dq", "dk", "dv"], ...] | None = Field(default=None, strict=False)
    dtypes: tuple[Literal["fp16", "bf16", "fp32"], ...] | None = Field(default=None, strict=False)
    regimes: tuple[str, ...] | None = Field(default=None, strict=False)
    ratio_margin: float | None = Field(default=None, ge=1)
    predictor_margin: float | None = Field(default=None, ge=1)
    bias_max_ulp: float | None = Field(default=None, gt=0)
    bound_max_ratio: float | None = Field(default=None, gt=0)
    systematic_max_part: float | None = Field(default=None, gt=0)
    accumulators_max_part: float | None = Field(default=None, gt=0, le=1)
    drift_margin: float | None = Field(default=None, ge=1)


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


def load(path: Path | None = None) -> Budgets:
    """The default budgets, overridden by those of a file.

    Raises:
        UsageError: for a file that cannot be read, is not TOML, or has an unknown key or a value of the wrong type.
    """
    data = defaults = tomllib.loads(files(__package__).joinpath("budgets.toml").read_text())
    if path is not None:
        try:
            own = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError) as e:
            raise UsageError(f"budgets {path} cannot be read: {e}") from e
        except tomllib.TOMLDecodeError as e:
            raise UsageError(f"budgets {path} is not TOML: {e}") from e
        data = _merged(data, own)
    try:
        return Budgets.model_validate(data)
    except ValidationError as e:
        first = e.errors()[0]
        place = list(first["loc"])
        if place[0] == "exception" and len(place) > 1:  # the user's file counts from 1, after the defaults' own
            place[1] = int(place[1]) - len(defaults.get("exception", [])) + 1
        where = ".".join(str(p) for p in place)
        message = {"extra_forbidden": "unknown key", "missing": "missing, state it"}.get(first["type"], first["msg"])
        raise UsageError(f"budgets {path}: {where}: {message}") from e


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            out[key] = _merged(base[key], value)
        elif key == "exception" and isinstance(value, list):
            out[key] = [*base.get(key, []), *value]
        else:
            out[key] = value
    return out
