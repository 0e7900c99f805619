"""Does a function keep scores in memory?  Only that excuses rounding them to half precision."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from ..kernels.interpreter.listening import Listener, tensors_in
from .case import Case
from .implementation import Implementation
from .inputs import build

# long enough that no tile is taken for the matrix of all scores, and D so small that no input is
_PROBE = Case(B=1, H=2, HK=2, M=320, N=320, D=8, dtype="bf16", regime="normal", seed=0, backward=False)
_PART = 0.5  # of the elements of the score matrix, in one half-precision tensor


class _Largest(Listener):
    """The number of elements of the largest half-precision tensor that any torch operation returns."""

    elements = 0

    def heard(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        for x in tensors_in([out]):
            if x.dtype in (torch.float16, torch.bfloat16):
                self.elements = max(self.elements, x.numel())
        return out


@lru_cache(maxsize=256)
def stores_scores(implementation: Implementation, device: str) -> bool:
    """Whether some half-precision tensor of the forward pass is as large as the score matrix [B, H, M, N].

    A function that does not run on the plainest problem is taken to store them: that asks less of it, and the survey
    will say what is wrong.
    """
    case = _PROBE
    largest = _Largest()
    try:
        with largest:
            implementation(case, build(case).to(torch.device(device)))
    except Exception:  # noqa: BLE001  (whatever a kernel does; it is not judged here)
        return True
    return largest.elements >= _PART * case.B * case.H * case.M * case.N
