"""torch's compiler stays out of what runs here, whoever called it: it would compile an interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def keep_out(function: Callable[..., Any]) -> None:
    """Of a function and all that it calls, as `torch.compiler.disable` does, which imports the compiler: a second."""
    _set(function, "SKIP")


def let_in(function: Callable[..., Any]) -> None:
    """Undo `keep_out`."""
    _set(function, "DEFAULT")


def _set(function: Callable[..., Any], action: str) -> None:
    frames: Any = torch._C._dynamo.eval_frame
    chosen = getattr(frames._FrameAction, action)
    frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(chosen, chosen))
