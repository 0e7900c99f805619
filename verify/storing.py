"""Does a function keep scores in memory?  Only that excuses rounding them to half precision.

Asked with a problem whose scores have a pattern that nothing else in it has: every query is alike, and a key's score
is one of two numbers, by the key's group, while the keys of a group differ.  Whatever a function makes of the scores,
scaled, shifted, exponentiated or normalised, has that pattern along the keys: it takes two values, one per group.
Buffers that hold something else (a mask, zeros) do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..kernels.interpreter.listening import Listener, tensors_in
from ..reference.masks import Mask
from .case import Case
from .draws import Draws
from .guards import known_memory
from .implementation import Implementation
from .inputs import DTYPES, Inputs, arranged

_PLAIN = Case(B=1, H=2, HK=2, M=320, N=320, D=64, dtype="bf16", regime="normal", seed=0, backward=False)
#: the first that a function takes is asked: many keys, lest a tile be taken for all of them; at last one query alone
_PROBLEMS = tuple(
    _PLAIN.with_(dtype=dtype, **sizes)
    for sizes in ({}, {"M": 512, "N": 512, "D": 128}, {"M": 128, "N": 128, "D": 32}, {"M": 1})
    for dtype in ("bf16", "fp16", "fp32")
)
_PART = 0.5  # of the elements of the score matrix, in the half-precision results of one operation's calls
_CLEAR = 8.0  # times what the values of a group differ among themselves, by roundings, is what the groups differ by


@dataclass(frozen=True, slots=True, eq=False)
class _Pattern:
    """A problem, and which of its keys have the larger score."""

    inputs: Inputs
    larger: Tensor  # [N], boolean

    @classmethod
    def of(cls, case: Case, device: torch.device) -> _Pattern:
        """Keys of +-1 in an order of their own: by how many of each, the sum over the head dimension is +-D/4."""
        draws = Draws(case.seed, "storing")
        larger = torch.from_numpy(draws.uniform(case.N) < 0.5)
        larger[:2] = torch.tensor([True, False])
        place = torch.from_numpy(draws.uniform(case.B, case.HK, case.N, case.D)).argsort(-1)
        positive = torch.where(larger, 5 * case.D // 8, 3 * case.D // 8)[:, None]
        k = torch.where(place < positive, 1.0, -1.0)
        q = torch.full((case.B, case.H, case.M, case.D), 0.5)
        v = torch.from_numpy(draws.normal(case.B, case.HK, case.N, case.D))
        q, k, v = (x.to(DTYPES[case.dtype]) for x in (q, k, v))
        return cls(arranged(case, q, k, v, torch.zeros_like(q), Mask()).to(device), larger.to(device))

    def found(self, x: Tensor) -> int:
        """How many elements of a tensor are in rows of scores: rows that hold a number for every key."""
        return max((self._along(x, axis) for axis in range(x.dim())), default=0)

    def _along(self, x: Tensor, axis: int) -> int:
        n, length = len(self.larger), x.shape[axis]
        if length < n:
            return 0
        rows = x.detach().movedim(axis, -1)
        # several rows may lie on one axis; or it is longer by what pads the keys to whole tiles
        rows = torch.unflatten(rows, -1, (-1, n)) if length % n == 0 else rows[..., :n]
        high, low = rows[..., self.larger].float(), rows[..., ~self.larger].float()
        spread = torch.maximum(high.amax(-1) - high.amin(-1), low.amax(-1) - low.amin(-1))
        return int(((high.mean(-1) - low.mean(-1)).abs() > _CLEAR * spread).count_nonzero()) * n


class _Stored(Listener):
    """How many scores the half-precision results of each torch operation held, over all of its calls."""

    def __init__(self, pattern: _Pattern) -> None:
        super().__init__()
        self._pattern = pattern
        self._elements: dict[Any, int] = {}
        self._others: list[tuple[Any, Tensor]] = []  # results without scores: a kernel may yet write some there

    def heard(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        if not func.is_view:
            for x in tensors_in([out]):
                # a subclass need not have values: those of torch's compiler have none
                if type(x) is Tensor and x.dtype in (torch.float16, torch.bfloat16) and not self._note(func, x):
                    self._others.append((func, x))
        return out

    def _note(self, func: Any, x: Tensor) -> int:
        found = self._pattern.found(x)
        self._elements[func] = self._elements.get(func, 0) + found
        return found

    def most(self) -> int:
        """Of any one operation, now that the function has returned: what kernels wrote into its results counts too."""
        others, self._others = self._others, []
        for func, x in others:
            self._note(func, x)
        return max(self._elements.values(), default=0)


@lru_cache(maxsize=256)
def stores_scores(implementation: Implementation, device: str) -> bool:
    """Whether half-precision tensors of the forward pass hold whole rows of scores, at least half of [B, H, M, N].

    A function that takes none of the plain problems is taken to store them: that asks less of it, and the survey will
    say what is wrong.
    """
    for problem in _PROBLEMS:
        # contiguous in the function's own order
        case = problem.with_(layout="contiguous" if implementation.layout == "bhsd" else "bshd")
        pattern = _Pattern.of(case, torch.device(device))
        stored = _Stored(pattern)
        with suppress(Exception):  # whatever a kernel does; it is not judged here
            with known_memory(), stored:  # memory that is never written must not hold the scores of an earlier call
                implementation(case, pattern.inputs)
            return stored.most() >= _PART * case.B * case.H * case.M * case.N
    return True
