"""What came of calling a function: its tensors, or why there are none."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..reports.record import TENSORS

_LONG = 300  # characters
_QUOTED = re.compile(r"^ *([\w.]*(?:Error|Exception|OutOfResources)\w*: .*\S)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one call gave, in [B, H, M, D] order; gradients as from `backward(dO)`."""

    out: Tensor
    lse: Tensor | None = None
    dq: Tensor | None = None
    dk: Tensor | None = None
    dv: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that there are, by name."""
        named = {n: getattr(self, n) for n in TENSORS}
        return {n: t for n, t in named.items() if t is not None}

    def to(self, device: torch.device) -> Outputs:
        """The same on a device."""
        return replace(self, **{n: t.to(device) for n, t in self.tensors().items()})


class WrongResultError(Exception):
    """The function returned something that is not attention's result: type, shape, dtype or device."""


class RefusedError(Exception):
    """The function said, loudly and before computing, that it does not do this."""


class LayoutRefusedError(RefusedError):
    """It said so of how its inputs lie in memory, or failed: whether it takes contiguous ones will tell."""


class CompilerGaveUpError(RefusedError):
    """`torch.compile` would have run it uncompiled (`isolation.settle_compiler`), and that is another function."""


def describe(e: BaseException) -> str:
    """An exception in one line, for a record; of a long text its beginning, and the last error that it quotes.

    Compilers quote whole tracebacks of other processes, which end with what went wrong.
    """
    text = " ".join(str(e).split())
    if isinstance(e, RefusedError):  # its text is that of the exception that refused
        return text
    if len(text) > _LONG and (quoted := _QUOTED.findall(str(e))):
        cause = quoted[-1][: _LONG // 2]
        text = f"{text[: _LONG - len(cause)]} ... {cause}"
    else:
        text = text[:_LONG]
    return f"{type(e).__name__}: {text}" if text else type(e).__name__
