"""How much a run measures: sizes, numbers of cases, limits."""

from __future__ import annotations

from dataclasses import dataclass

from .case import DType


@dataclass(frozen=True, slots=True)
class Profile:
    """One answer to "how long may it take"."""

    name: str
    survey: int  # independent cases
    comparison: int  # plain cases of every regime and dtype; up to 16 times as many where these decide nothing
    hunt: int  # examples that the search for the worst case may try, per dtype
    max_length: int  # of M and N
    head_dims: tuple[int, ...]
    dtypes: tuple[DType, ...] = ("fp16", "bf16")
    case_limit: float = 60.0  # seconds after which a kernel is killed
    max_lost: int = 16  # cases that hang or die, after which a run stops measuring: each costs a process
    max_findings: int = 4  # shrunk and written out; the others are counted


PROFILES: dict[str, Profile] = {
    p.name: p
    for p in (
        Profile("quick", survey=1000, comparison=4, hunt=32, max_length=130, head_dims=(16, 32, 64, 8, 40, 3, 128, 96)),
        Profile("ci", survey=1600, comparison=8, hunt=200, max_length=300,
                head_dims=(16, 32, 64, 128, 1, 8, 24, 40, 80, 96, 256)),
        Profile("deep", survey=20000, comparison=32, hunt=4000, max_length=1100,
                head_dims=(16, 32, 64, 128, 256, 1, 2, 3, 8, 24, 40, 59, 80, 96, 111, 160, 192)),
    )
}  # fmt: skip
