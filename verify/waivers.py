"""Waivers: known failures of single cases that do not fail the gate until a date, and are told all the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import date
from fnmatch import fnmatch
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..reports.record import Check, Row, Waived
from ..reports.words import plural
from .gates import CASE_CHECKS

_OF_THE_CALL = ("returns", "inputs-unchanged")  # checks of no single tensor
_OF_ACCURACY = ("finite", "bound")  # a row that fails these is no part of a distribution of errors


class Waiver(BaseModel):
    """One known failure: which check, of which implementation and cases, why, and until when (that day included)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, str_strip_whitespace=True)

    implementation: str
    check: str
    tensor: Literal["out", "lse", "dq", "dk", "dv"] | None = None
    dtype: Literal["fp16", "bf16", "fp32"] | None = None
    regime: str | None = None
    mask: str | None = None  # as the report names it, patterns allowed: causal-*
    max_scale: float | None = None
    causal: bool | None = None
    reason: str = Field(min_length=1)
    expires: date

    @field_validator("check")
    @classmethod
    def _of_single_cases(cls, check: str) -> str:
        if check not in CASE_CHECKS:
            raise ValueError(
                f"{check!r} is not a check of single cases ({', '.join(CASE_CHECKS)}); margins of the others are "
                "widened with an [[exception]]"
            )
        return check

    @model_validator(mode="after")
    def _tensor_fits(self) -> Self:
        if self.tensor is not None and self.check in _OF_THE_CALL:
            raise ValueError(f"{self.check!r} concerns the call, not a tensor: leave `tensor` out")
        return self

    def covers(self, check: str, row: Row) -> bool:
        """Whether this check's failure in this row's case is the known one."""
        kinds = (row.mask or "none").split("+")
        return (
            check == self.check
            and (self.tensor is None or self.tensor == row.tensor)
            and (self.dtype is None or self.dtype == row.dtype)
            and (self.regime is None or fnmatch(row.regime or "", self.regime))
            and (self.mask is None or fnmatch(row.mask or "none", self.mask))
            and (self.max_scale is None or (row.scale is not None and row.scale <= self.max_scale))
            and (self.causal is None or self.causal == any(kind.startswith("causal") for kind in kinds))
        )

    def __str__(self) -> str:
        said = {k: getattr(self, k) for k in ("tensor", "dtype", "regime", "mask", "max_scale", "causal")}
        scope = ", ".join(f"{k} {v}" for k, v in said.items() if v is not None)
        return f"{self.check} ({scope})" if scope else self.check


class Waivers:
    """The waivers of one implementation on one day, and a count of what they covered."""

    def __init__(self, waivers: Iterable[Waiver], implementation: str, today: date) -> None:
        own = [w for w in waivers if fnmatch(implementation, w.implementation)]
        self._valid = [w for w in own if today <= w.expires]
        self._expired = [w for w in own if today > w.expires]
        self._cases: dict[int, set[str]] = defaultdict(set)
        self._left_out: set[int] = set()  # rows, by identity: a record has several of one case

    def uncovered(self, check: str, failed: Sequence[Row]) -> tuple[list[Row], str]:
        """Of the rows that fail a check, those that no waiver covers; and of the others, which are counted, how many
        and why, in words.
        """
        left: list[Row] = []
        covered: dict[int, set[str]] = defaultdict(set)
        for row in failed:
            place = next((i for i, w in enumerate(self._valid) if w.covers(check, row)), None)
            if place is None:
                left.append(row)
                continue
            covered[place].add(row.case_id)
            if check in _OF_ACCURACY:
                self._left_out.add(id(row))
        for place, cases in covered.items():
            self._cases[place] |= cases
        said = (
            f"; {plural(len(cases), 'case')} waived until {self._valid[i].expires}: {self._valid[i].reason}"
            for i, cases in covered.items()
        )
        return left, "".join(said)

    def covers(self, check: str, row: Row) -> bool:
        """Whether a failure is waived; counts nothing."""
        return any(w.covers(check, row) for w in self._valid)

    def leaves_out(self, row: Row) -> bool:
        """Whether the row's errors are known to be wrong: then they are no part of a distribution."""
        return id(row) in self._left_out

    def told(self) -> tuple[Waived, ...]:
        """Every waiver with the cases that it covered: none, too, for then it is not needed any more."""
        return tuple(
            Waived(check=w.check, scope=str(w), cases=len(self._cases[i]), reason=w.reason,
                   expires=w.expires.isoformat())
            for i, w in enumerate(self._valid)
        )  # fmt: skip

    def check(self) -> list[Check]:
        """A failed check where a waiver has expired, whether or not it is still needed."""
        if not self._expired:
            return []
        said = "; ".join(f"{w} on {w.expires.isoformat()} ({w.reason})" for w in self._expired)
        detail = f"expired: {said}: repair it and drop the waiver, or decide on a new date"
        return [Check(name="waivers", status="fail", n=len(self._expired), detail=detail)]
