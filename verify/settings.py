"""What was asked for: the settings of one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .budgets import Budgets
from .profiles import Profile

Progress = Callable[[str, int, int], None]  # phase, done, total


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for."""

    spec: str
    profile: Profile
    budgets: Budgets
    seed: int
    device: str
    workers: int
    out: Path
    command: str
    phases: tuple[str, ...] = ("survey", "hunt", "exact")
