"""The answer to one question asked of one case."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One question asked of one case.  `observed` over `allowed` is the evidence; both are in the check's own unit."""

    name: str
    tensor: str | None
    passed: bool
    observed: float
    allowed: float
    detail: str
